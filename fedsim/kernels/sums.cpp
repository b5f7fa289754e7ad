// The exact sum's pass over clients' numbers: weigh, round to a grid, add.

#include "vectors.h"

#define COLUMNS 2048 // whose sums stay in the first cache while every client's numbers pass by
#define WIDE 8

typedef float Narrows __attribute__((vector_size(4 * WIDE), aligned(4)));
typedef double Doubles __attribute__((vector_size(8 * WIDE), aligned(8)));
typedef int64_t Wholes __attribute__((vector_size(8 * WIDE), aligned(8)));
typedef uint64_t Wrapping __attribute__((vector_size(8 * WIDE), aligned(8)));

INLINE Doubles load_doubles(const double *from) { return *(const Doubles *)from; }

INLINE Doubles load_doubles(const float *from) { return __builtin_convertvector(*(const Narrows *)from, Doubles); }

INLINE int64_t nearest(double value) { return (int64_t)__builtin_rint(value); }

// Ties to even; what is beyond 2^63 becomes some number.
INLINE Wholes nearest(Doubles values) {
#if defined(__AVX512DQ__)
    return (Wholes)_mm512_cvtpd_epi64((__m512d)values);
#else
    Wholes found;
    for (int lane = 0; lane < WIDE; lane++) found[lane] = nearest(values[lane]);
    return found;
#endif
}

// Add the multiples of one client's numbers onto `sums`. `sent` and `found` grow by how many numbers times `scale` are
// unlike zero, and how many multiples.
template <typename Item>
INLINE void add_row(const Item *values, double scale, uint64_t *sums, long count, long &sent, long &found) {
    Wholes sent_here = {0}, found_here = {0};
    long column = 0;
    for (; column + WIDE <= count; column += WIDE) {
        Doubles scaled = load_doubles(values + column) * scale;
        Wholes multiples = nearest(scaled);
        *(Wrapping *)(sums + column) += (Wrapping)multiples;
        sent_here += scaled != 0; // -1 where it is so
        found_here += multiples != 0;
    }
    for (int lane = 0; lane < WIDE; lane++) {
        sent -= sent_here[lane];
        found -= found_here[lane];
    }
    for (; column < count; column++) {
        double scaled = values[column] * scale;
        int64_t multiple = nearest(scaled);
        sums[column] += (uint64_t)multiple;
        sent += scaled != 0;
        found += multiple != 0;
    }
}

template <typename Item>
static void add_rows(const Item *values, const double *scales, uint64_t *sums, long *counts, long rows, long columns,
                     long stride, long threads) {
    long sent = 0, found = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sent, found)
    for (long first = 0; first < columns; first += COLUMNS) {
        long count = columns - first < COLUMNS ? columns - first : COLUMNS;
        for (long row = 0; row < rows; row++)
            add_row(values + row * stride + first, scales[row], sums + first, count, sent, found);
    }
    counts[0] = sent;
    counts[1] = found;
}

// K rows of P numbers, `stride` apart, times `scales` (K,), each rounded to the nearest whole number and added onto
// `sums` (P,), which wrap around. `counts`: how many are unlike zero before they are rounded, and after.
extern "C" void add_multiples(const void *values, const double *scales, uint64_t *sums, long *counts, long is_double,
                              long rows, long columns, long stride, long threads) {
    if (is_double)
        add_rows((const double *)values, scales, sums, counts, rows, columns, stride, threads);
    else
        add_rows((const float *)values, scales, sums, counts, rows, columns, stride, threads);
}
