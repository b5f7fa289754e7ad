// Passes over rows of activations: GELU and LayerNorm, forward and back, and PReLU back.

#include "vectors.h"

// y = x P(x) and its slope P(x) + x p(x) for n numbers; P and p are the standard normal distribution and its density.
// P by Abramowitz and Stegun, 7.1.26, to 1.5e-7, with one half and a rest that vanishes far from zero: in fp32 y is
// exactly zero for x = 0 and from x = -5.5431 down. PyTorch's has no such edge: between -5.4858 and -5.5426 some of its
// values are zero and others are not, in the body of a tensor not the same as in its last few numbers.
extern "C" void gelu_forward(const Element *x, Element *y, Element *slope, long count, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < count; first += LANES) {
        Floats own = widen(load_some<Elements>(x + first, count - first));
        Floats size = own < 0 ? -own : own;
        Floats power = exponential(own * own * -0.5f);
        Floats t = 1.0f / (1.0f + size * 0.231641888f);
        Floats series = splat(0.530702714f);
        series = series * t - 0.726576013f;
        series = series * t + 0.710706871f;
        series = series * t - 0.142248368f;
        series = series * t + 0.127414796f;
        Floats half = 0.5f - series * t * power;
        Floats share = 0.5f + (own < 0 ? -half : half);
        store_some(y + first, own * share, count - first);
        store_some(slope + first, share + own * power * 0.398942280f, count - first);
    }
}

// PReLU's gradient `to` of n numbers x for `grad`, with one slope below zero, and that of the slope from every
// PRELU_NUMBERS of them.
#define PRELU_NUMBERS 4096
extern "C" void prelu_backward(const Element *grad, const Element *x, const float *slope, Element *to, float *of_slope,
                               long count, long threads) {
    Floats below = splat(*slope);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long start = 0; start < count; start += PRELU_NUMBERS) {
        Floats total = {0};
        for (long first = start; first < start + PRELU_NUMBERS && first < count; first += LANES) {
            Floats g = widen(load_some<Elements>(grad + first, count - first));
            Floats own = widen(load_some<Elements>(x + first, count - first));
            store_some(to + first, own > 0 ? g : g * below, count - first);
            total += own > 0 ? splat(0) : g * own;
        }
        of_slope[start / PRELU_NUMBERS] = sum(total);
    }
}

// LayerNorm of rows x (M, D), or of their sum with `branch`, with weight and bias (D,). For the way back `normal` (M,
// D) gets what they scale and shift, `inverse` (M,) 1 / deviation. Without a branch it and `total`, the sum, are NULL.
extern "C" void norm_forward(const float *x, const Element *branch, const float *weight, const float *bias,
                             float *total, Element *to, Element *normal, float *inverse, long rows, long width,
                             float epsilon, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        const float *own = x + row * width;
        if (branch) {
            for (long column = 0; column < width; column += LANES) {
                long left = width - column, place = row * width + column;
                Floats added = widen(load_some<Elements>(branch + place, left));
                store_some(total + place, load_some<Floats>(x + place, left) + added, left);
            }
            own = total + row * width;
        }
        Floats sums = {0}, squares = {0};
        for (long column = 0; column < width; column += LANES) sums += load_some<Floats>(own + column, width - column);
        float mean = sum(sums) / width;
        for (long column = 0; column < width; column += LANES) {
            Floats deviation = first_lanes(load_some<Floats>(own + column, width - column) - mean, width - column);
            squares += deviation * deviation;
        }
        float scale = 1.0f / __builtin_sqrtf(sum(squares) / width + epsilon);
        for (long column = 0; column < width; column += LANES) {
            long left = width - column, place = row * width + column;
            Floats found = (load_some<Floats>(own + column, left) - mean) * scale;
            store_some(normal + place, found, left);
            Floats shifted = found * load_some<Floats>(weight + column, left) + load_some<Floats>(bias + column, left);
            store_some(to + place, shifted, left);
        }
        inverse[row] = scale;
    }
}

// The gradient (M, D) of x for `grad` (M, D), plus `besides` (M, D), unless NULL, in fp32 and, unless NULL, also as
// that of the branch. See norm_forward.
extern "C" void norm_backward(const Element *grad, const float *besides, const Element *normal, const float *weight,
                              const float *inverse, float *to, Element *to_branch, long rows, long width,
                              long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        Floats plain = {0}, along = {0};
        for (long column = 0; column < width; column += LANES) {
            long left = width - column, place = row * width + column;
            Floats g = widen(load_some<Elements>(grad + place, left)) * load_some<Floats>(weight + column, left);
            plain += g;
            along += g * widen(load_some<Elements>(normal + place, left));
        }
        float shift = sum(plain) / width, slope = sum(along) / width;
        for (long column = 0; column < width; column += LANES) {
            long left = width - column, place = row * width + column;
            Floats g = widen(load_some<Elements>(grad + place, left)) * load_some<Floats>(weight + column, left);
            Floats own = widen(load_some<Elements>(normal + place, left));
            Floats found = (g - shift - own * slope) * inverse[row];
            if (besides) found += load_some<Floats>(besides + place, left);
            store_some(to + place, found, left);
            if (to_branch) store_some(to_branch + place, found, left);
        }
    }
}
