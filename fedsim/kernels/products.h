// Products of matrices small enough for the cache, and the layouts that their factors want.
//
// Matrices are multiplied in words of 32 bits: one float, or two bfloat16 neighbours along the summed axis. T' and C'
// are T and C rounded up to whole vectors.

#pragma once

#include <stdlib.h>

#include "vectors.h"

#define WORD_ELEMENTS ((long)(4 / sizeof(Element)))
// Sums stay in registers only if the compiler takes the loops over a tile apart early.
#define UNROLL _Pragma("GCC unroll 16")
#define TILE_ROWS 6
#define TILE_VECTORS 4

typedef uint32_t Word;

INLINE long rounded_up(long value, long unit) { return (value + unit - 1) / unit * unit; }

INLINE Floats multiply_add(Floats total, Words a, Words b) {
#if defined(BF16) && defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#elif defined(BF16)
    total += (Floats)(a << 16) * (Floats)(b << 16);
    return total + (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
#else
    return total + (Floats)a * (Floats)b;
#endif
}

// A product's first factor: word (row, step) lies at `words[row * row_stride + step * step_stride]`.
struct Factor {
    const Word *words;
    long row_stride, step_stride;
};

template <int rows, int vectors>
static void tile(Factor a, const Word *b, long width, long depth, float *out, bool add) {
    Floats total[rows][vectors];
    UNROLL
    for (int row = 0; row < rows; row++) {
        UNROLL
        for (int part = 0; part < vectors; part++)
            total[row][part] = add ? load_floats(out + row * width + part * LANES) : splat(0);
    }
    for (long step = 0; step < depth; step++) {
        Words right[vectors];
        UNROLL
        for (int part = 0; part < vectors; part++) right[part] = *(const Words *)(b + step * width + part * LANES);
        UNROLL
        for (int row = 0; row < rows; row++) {
            Words left = a.words[row * a.row_stride + step * a.step_stride] - (Words){0};
            UNROLL
            for (int part = 0; part < vectors; part++)
                total[row][part] = multiply_add(total[row][part], left, right[part]);
        }
    }
    UNROLL
    for (int row = 0; row < rows; row++) {
        UNROLL
        for (int part = 0; part < vectors; part++) store_floats(out + row * width + part * LANES, total[row][part]);
    }
}

// As many rows as there are, of `vectors` * 16 columns.
template <int vectors>
static void strip(long rows, Factor a, const Word *b, long width, long depth, float *out, bool add) {
    for (; rows >= TILE_ROWS; rows -= TILE_ROWS) {
        tile<TILE_ROWS, vectors>(a, b, width, depth, out, add);
        a.words += TILE_ROWS * a.row_stride;
        out += TILE_ROWS * width;
    }
    switch (rows) {
    case 5: return tile<5, vectors>(a, b, width, depth, out, add);
    case 4: return tile<4, vectors>(a, b, width, depth, out, add);
    case 3: return tile<3, vectors>(a, b, width, depth, out, add);
    case 2: return tile<2, vectors>(a, b, width, depth, out, add);
    case 1: return tile<1, vectors>(a, b, width, depth, out, add);
    }
}

// out (rows, width), plus what it holds if `add`: the product of a (rows, depth) and b (depth, width), width whole
// vectors.
static void multiply(long rows, Factor a, const Word *b, long width, long depth, float *out, bool add) {
    for (long column = 0; column < width; column += TILE_VECTORS * LANES) {
        const Word *right = b + column;
        float *place = out + column;
        switch ((width - column) / LANES) {
        case 1: strip<1>(rows, a, right, width, depth, place, add); break;
        case 2: strip<2>(rows, a, right, width, depth, place, add); break;
        case 3: strip<3>(rows, a, right, width, depth, place, add); break;
        default: strip<TILE_VECTORS>(rows, a, right, width, depth, place, add);
        }
    }
}

// Rows of C elements as a product's first factor.
INLINE Factor as_rows(const Element *from, long stride) { return {(const Word *)from, stride / WORD_ELEMENTS, 1}; }

// Swap the off-diagonal squares, of `size`, in every square of twice that size along the diagonal of 16 x 16 words.
template <int size> static void swap_squares(Words *rows) {
    UNROLL
    for (int row = 0; row < LANES; row++) {
        if (row & size) continue;
        Words upper = rows[row], lower = rows[row + size];
#define FROM_UPPER(lane) ((lane) & size ? ((lane) ^ size) + 16 : (lane))
#define FROM_LOWER(lane) ((lane) & size ? (lane) + 16 : (lane) ^ size)
#define ALL(of)                                                                                                        \
    of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8), of(9), of(10), of(11), of(12), of(13), of(14), of(15)
        rows[row] = __builtin_shufflevector(upper, lower, ALL(FROM_UPPER));
        rows[row + size] = __builtin_shufflevector(upper, lower, ALL(FROM_LOWER));
    }
}

// (T, C) rows to words (C / WORD_ELEMENTS, T'), the second factor of a product that sums over C.
static void transposed(const Element *from, long stride, long rows, long width, Word *to) {
    long columns = rounded_up(rows, LANES), steps = width / WORD_ELEMENTS;
    for (long first = 0; first < columns; first += LANES)
        for (long step = 0; step < steps; step += LANES) {
            long wide = steps - step < LANES ? steps - step : LANES;
            Words square[LANES];
            UNROLL
            for (int row = 0; row < LANES; row++) {
                square[row] = (Words){0};
                if (first + row < rows) {
                    const Word *place = (const Word *)(from + (first + row) * stride) + step;
                    square[row] = load_some<Words>(place, wide);
                }
            }
            swap_squares<8>(square);
            swap_squares<4>(square);
            swap_squares<2>(square);
            swap_squares<1>(square);
            UNROLL
            for (int row = 0; row < LANES; row++)
                if (row < wide) *(Words *)(to + (step + row) * columns + first) = square[row];
        }
}

INLINE Words pair(Elements first, Elements second) {
#if defined(BF16)
    return __builtin_convertvector(first, Words) | __builtin_convertvector(second, Words) << 16;
#else
    (void)second;
    return (Words)first;
#endif
}

// (T, C) rows to words (T / WORD_ELEMENTS, C'), a factor of a product that sums over T.
static void interleaved(const Element *from, long stride, long rows, long width, Word *to) {
    for (long row = 0; row < rows; row += WORD_ELEMENTS)
        for (long column = 0; column < width; column += LANES, to += LANES) {
            const Element *place = from + row * stride + column;
            Elements none = {0};
            *(Words *)to = pair(load_some<Elements>(place, width - column),
                                row + 1 < rows ? load_some<Elements>(place + stride, width - column) : none);
        }
}

static void narrowed(const float *from, long rows, long width, Element *to, long stride) {
    long columns = rounded_up(width, LANES);
    for (long row = 0; row < rows; row++)
        for (long column = 0; column < width; column += LANES)
            store_some(to + row * stride + column, load_floats(from + row * columns + column), width - column);
}

template <typename T> struct Scratch {
    T *const items;
    explicit Scratch(long count) : items((T *)aligned_alloc(64, rounded_up(count * sizeof(T), 64))) {}
    ~Scratch() { free(items); }
    operator T *() const { return items; }
};
