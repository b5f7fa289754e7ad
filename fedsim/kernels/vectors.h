// Vectors of 16 floats, loaded from and stored to the element type of the library: float, or bfloat16 with -DBF16.
//
// Written with the vector extensions of GCC and Clang, so that the compiler finds the instructions of the processor it
// runs on; intrinsics only where an instruction (bfloat16's, and loads of part of a vector) has no other name.

#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));

INLINE Floats splat(float value) { return value - (Floats){0}; }

INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

INLINE Floats widen(Floats values) { return values; }

INLINE Floats widen(Halves bits) { return (Floats)(__builtin_convertvector(bits, Words) << 16); }

// The same in the vector type of an item. To bfloat16: the nearest, ties to even; what is no number stays none.
template <typename Item> INLINE auto as(Floats value) {
    if constexpr (sizeof(Item) == sizeof(float)) return value;
#if defined(__AVX512BF16__)
    else
        return (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
    else {
        Words bits = (Words)value;
        Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        return __builtin_convertvector(value == value ? rounded : (Words){0} + 0x7fc0, Halves);
    }
#endif
}

#if defined(BF16)
typedef uint16_t Element;
typedef Halves Elements;
#else
typedef float Element;
typedef Floats Elements;
#endif

INLINE Floats load_floats(const float *from) { return *(const Floats *)from; }

INLINE void store_floats(float *to, Floats value) { *(Floats *)to = value; }

INLINE Floats load(const Element *from) { return widen(*(const Elements *)from); }

INLINE void store(Element *to, Floats value) { *(Elements *)to = as<Element>(value); }

// The first `count` items of a vector, all where it is 16 or more. What is not loaded is zero, the rest is not stored.
template <typename Vector, typename Item> INLINE Vector load_some(const Item *from, long count) {
    Vector values = {0};
    if (count >= LANES) {
        memcpy(&values, from, sizeof values); // a template's argument loses the attribute that makes loads unaligned
        return values;
    }
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(Item) == 4)
        return (Vector)_mm512_maskz_loadu_epi32((1 << count) - 1, from);
    else
        return (Vector)_mm256_maskz_loadu_epi16((1 << count) - 1, from);
#else
    memcpy(&values, from, count * sizeof(Item));
    return values;
#endif
}

template <typename Item> INLINE void store_some(Item *to, Floats value, long count) {
    auto narrowed = as<Item>(value);
    if (count >= LANES) {
        memcpy(to, &narrowed, sizeof narrowed);
        return;
    }
    // A copy of so many bytes would take tens of cycles.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(Item) == 4)
        _mm512_mask_storeu_epi32(to, (1 << count) - 1, (__m512i)narrowed);
    else
        _mm256_mask_storeu_epi16(to, (1 << count) - 1, (__m256i)narrowed);
#else
    memcpy(to, &narrowed, count * sizeof(Item));
#endif
}

// The first `count` numbers of a vector, all where it is 16 or more, and zeros.
INLINE Floats first_lanes(Floats value, long count) {
    Integers lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return count >= LANES ? value : lanes < (int)count ? value : splat(0);
}

// The vector with its lanes moved by `by` places, the first of them to the end.
#define TURNED(value, by)                                                                                              \
    __builtin_shufflevector(value, value, by, by + 1, by + 2, by + 3, by + 4, by + 5, by + 6, by + 7, by + 8, by + 9,  \
                            by + 10, by + 11, by + 12, by + 13, by + 14, by + 15)

INLINE float sum(Floats value) {
    value += TURNED(value, 8);
    value += TURNED(value, 4);
    value += TURNED(value, 2);
    return value[0] + value[1];
}

INLINE float maximum(Floats value) {
    value = larger(value, TURNED(value, 8));
    value = larger(value, TURNED(value, 4));
    value = larger(value, TURNED(value, 2));
    return value[0] > value[1] ? value[0] : value[1];
}

// e^x for x < 88, to about one unit in the last place; zero below -87, and no number where x is none.
// x = n ln 2 + r with |r| <= ln 2 / 2; Taylor's series of e^r.
INLINE Floats exponential(Floats x) {
    Floats within = larger(splat(-87.0f), x);
    Floats shifted = within * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the sum's last bits are the nearest integer
    Floats n = shifted - 12582912.0f;
    Floats r = within - n * 0.693145752f; // ln 2 in two parts, of which the first has few bits
    r = r - n * 1.42860677e-6f;
    Floats series = splat(1.0f / 720);
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    Floats power = (Floats)(((Words)shifted << 23) + 0x3f800000u);
    return x < -87.0f ? splat(0.0f) : series * power;
}
