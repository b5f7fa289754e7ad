// Softmax attention, forward and back, one head of one image at a time, so that all it needs stays in the cache. Of
// the Q T probabilities two numbers a query are kept, from which the way back makes them again.
//
// Shapes: N images, H heads, Q query tokens, T key tokens, C width of a head.

#include "products.h"

// Query tokens that are taken together: a few tiles, an even number, and few enough for the cache.
#define BLOCK 72

// What to add to the scores (T',) of an image: minus infinity where the mask is zero and behind T.
static void exclusions(const uint8_t *mask, long tokens, float *to) {
    for (long token = 0; token < rounded_up(tokens, LANES); token++)
        to[token] = token < tokens && (!mask || mask[token]) ? 0 : -__builtin_inff();
}

// A query's probabilities are exp((score - top) * scale) * share.
struct Softmax {
    float top, share;
};

// Of the scores (T',) of one query, which become powers.
INLINE Softmax softmax(float *scores, const float *excluded, long columns, float scale) {
    Floats largest = splat(-__builtin_inff()), total = {0};
    for (long token = 0; token < columns; token += LANES) {
        Floats own = load_floats(scores + token) + load_floats(excluded + token);
        store_floats(scores + token, own);
        largest = larger(largest, own);
    }
    float top = maximum(largest);
    for (long token = 0; token < columns; token += LANES) {
        Floats power = exponential((load_floats(scores + token) - top) * scale);
        store_floats(scores + token, power);
        total += power;
    }
    return {top, 1.0f / sum(total)};
}

// Places of the tokens of image n and head h: n * image + token * stride + h * C.
struct Strides {
    long image, token;
};

INLINE long place(Strides strides, long index, long heads, long width) {
    return index / heads * strides.image + index % heads * width;
}

// out (N, Q, H, C) and what is kept (N, H, Q) for q (N, Q, H, C), k and v (N, T, H, C) by their strides, in elements;
// mask (N, T) or NULL. C is even for bfloat16.
extern "C" void attention_forward(const Element *q, const Element *k, const Element *v, const uint8_t *mask,
                                  Element *out, Softmax *kept, long images, long heads, long queries, long tokens,
                                  long width, long q_image, long q_token, long k_image, long k_token, long threads) {
    Strides q_at = {q_image, q_token}, k_at = {k_image, k_token}, out_at = {queries * heads * width, heads * width};
    long columns = rounded_up(tokens, LANES), wide = rounded_up(width, LANES);
    long most = columns > wide ? columns : wide;
    float scale = 1.0f / __builtin_sqrtf(width);
#pragma omp parallel num_threads(threads)
    {
        Scratch<Word> keys(width * columns), values(columns * wide);
        Scratch<float> block(BLOCK * most), excluded(columns);
        Scratch<Element> p(BLOCK * columns);
#pragma omp for schedule(static)
        for (long index = 0; index < images * heads; index++) {
            const Element *own_q = q + place(q_at, index, heads, width);
            Element *own_out = out + place(out_at, index, heads, width);
            exclusions(mask ? mask + index / heads * tokens : NULL, tokens, excluded);
            transposed(k + place(k_at, index, heads, width), k_token, tokens, width, keys);
            interleaved(v + place(k_at, index, heads, width), k_token, tokens, width, values);
            for (long first = 0; first < queries; first += BLOCK) {
                long rows = queries - first < BLOCK ? queries - first : BLOCK;
                multiply(rows, as_rows(own_q + first * q_token, q_token), keys, columns, width / WORD_ELEMENTS, block,
                         false);
                for (long row = 0; row < rows; row++) {
                    float *own = block + row * columns;
                    Softmax found = softmax(own, excluded, columns, scale);
                    for (long token = 0; token < columns; token += LANES)
                        store(p + row * columns + token, load_floats(own + token) * found.share);
                    kept[index * queries + first + row] = found;
                }
                long depth = rounded_up(tokens, WORD_ELEMENTS) / WORD_ELEMENTS;
                multiply(rows, as_rows(p, columns), values, wide, depth, block, false);
                narrowed(block, rows, width, own_out + first * out_at.token, out_at.token);
            }
        }
    }
}

// The gradients of q, k and v, by the strides of q, k and v, for grad (N, Q, H, C).
extern "C" void attention_backward(const Element *grad, const Element *q, const Element *k, const Element *v,
                                   const uint8_t *mask, const Softmax *kept, Element *grad_q, Element *grad_k,
                                   Element *grad_v, long images, long heads, long queries, long tokens, long width,
                                   long q_image, long q_token, long k_image, long k_token, long threads) {
    Strides q_at = {q_image, q_token}, k_at = {k_image, k_token}, grad_at = {queries * heads * width, heads * width};
    long columns = rounded_up(tokens, LANES), wide = rounded_up(width, LANES);
    long most = columns > wide ? columns : wide;
    float scale = 1.0f / __builtin_sqrtf(width);
#pragma omp parallel num_threads(threads)
    {
        Scratch<Word> keys(width * columns), values(width * columns), key_rows(columns * wide);
        Scratch<Word> paired(BLOCK * columns), paired_rows(BLOCK * wide);
        Scratch<float> block(BLOCK * most), excluded(columns), sum_k(columns * wide), sum_v(columns * wide);
        Scratch<Element> p(BLOCK * columns), grad_scores(BLOCK * columns);
#pragma omp for schedule(static)
        for (long index = 0; index < images * heads; index++) {
            const Element *own_q = q + place(q_at, index, heads, width);
            const Element *own_grad = grad + place(grad_at, index, heads, width);
            long own_k = place(k_at, index, heads, width);
            exclusions(mask ? mask + index / heads * tokens : NULL, tokens, excluded);
            transposed(k + own_k, k_token, tokens, width, keys);
            transposed(v + own_k, k_token, tokens, width, values);
            interleaved(k + own_k, k_token, tokens, width, key_rows);
            for (long first = 0; first < queries; first += BLOCK) {
                long rows = queries - first < BLOCK ? queries - first : BLOCK;
                long depth = rounded_up(rows, WORD_ELEMENTS) / WORD_ELEMENTS;
                const Element *g = own_grad + first * grad_at.token;
                multiply(rows, as_rows(own_q + first * q_token, q_token), keys, columns, width / WORD_ELEMENTS, block,
                         false);
                for (long row = 0; row < rows; row++) {
                    Softmax own = kept[index * queries + first + row];
                    for (long token = 0; token < columns; token += LANES) {
                        Floats score = load_floats(block + row * columns + token) + load_floats(excluded + token);
                        store(p + row * columns + token, exponential((score - own.top) * scale) * own.share);
                    }
                }
                multiply(rows, as_rows(g, grad_at.token), values, columns, width / WORD_ELEMENTS, block, false);
                for (long row = 0; row < rows; row++) {
                    Floats along = {0};
                    const Element *own_p = p + row * columns;
                    float *own = block + row * columns;
                    for (long token = 0; token < columns; token += LANES)
                        along += load(own_p + token) * load_floats(own + token);
                    float mean = sum(along);
                    for (long token = 0; token < columns; token += LANES)
                        store(grad_scores + row * columns + token,
                              load(own_p + token) * (load_floats(own + token) - mean) * scale);
                }
                // Sums over the queries: v from the probabilities and the gradient, k from the scores' gradient and q.
                interleaved(p, columns, rows, columns, paired);
                interleaved(g, grad_at.token, rows, width, paired_rows);
                multiply(tokens, {paired, 1, columns}, paired_rows, wide, depth, sum_v, first > 0);
                interleaved(grad_scores, columns, rows, columns, paired);
                interleaved(own_q + first * q_token, q_token, rows, width, paired_rows);
                multiply(tokens, {paired, 1, columns}, paired_rows, wide, depth, sum_k, first > 0);
                depth = rounded_up(tokens, WORD_ELEMENTS) / WORD_ELEMENTS;
                multiply(rows, as_rows(grad_scores, columns), key_rows, wide, depth, block, false);
                narrowed(block, rows, width, grad_q + place(q_at, index, heads, width) + first * q_token, q_token);
            }
            narrowed(sum_k, tokens, width, grad_k + own_k, k_token);
            narrowed(sum_v, tokens, width, grad_v + own_k, k_token);
        }
    }
}
