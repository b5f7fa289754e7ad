// Gradients of low-rank factors example by example: every T rows belong to one of N examples.
//
// An example's gradient is made tile by tile, and again when its share is known: its norm is of just those numbers that
// the sum then takes. Shapes as in lora.cpp, with M = N T; `starts` (K + 1,) counts examples.

#include "products.h"

#define STRIP (TILE_VECTORS * LANES)

struct Layer {
    const Element *grad, *x, *hidden, *inner; // (M, S O), (M, D), (M, G R') and (M, G R')
    const long *targets;
    long tokens, width, out_width, slices, adapted, rank;
    bool has_a, has_b;

    long whole_rank() const { return rounded_up(rank, WORD_ELEMENTS); }
    long inner_width() const { return adapted * whole_rank(); }
    long strips_of_a() const { return has_a ? rounded_up(width, STRIP) / STRIP : 0; }
    long strips_of_b() const { return has_b ? rounded_up(out_width, STRIP) / STRIP : 0; }
    long strips() const { return strips_of_a() + adapted * strips_of_b(); }
    long depth() const { return rounded_up(tokens, WORD_ELEMENTS) / WORD_ELEMENTS; }
};

// A strip of a factor's gradient: `rows` of the rank, and `columns` of what stands on the factor's other side.
struct Part {
    const Element *left, *right; // of the first token of the first example
    long left_stride, right_stride, rows, columns;
    long target, first; // the slice of B, -1 for A; the first of the columns

    long whole_columns() const { return rounded_up(columns, LANES); }
};

static Part part_of(const Layer &n, long strip) {
    bool is_a = strip < n.strips_of_a();
    long place = is_a ? 0 : strip - n.strips_of_a();
    long target = is_a ? -1 : place / n.strips_of_b();
    long first = (is_a ? strip : place % n.strips_of_b()) * STRIP;
    long left = (is_a ? n.width : n.out_width) - first, columns = left < STRIP ? left : STRIP;
    if (is_a) return {n.inner, n.x + first, n.inner_width(), n.width, n.inner_width(), columns, target, first};
    long stride = n.slices * n.out_width;
    const Element *hidden = n.hidden + target * n.whole_rank(),
                  *grad = n.grad + n.targets[target] * n.out_width + first;
    return {hidden, grad, n.inner_width(), stride, n.whole_rank(), columns, target, first};
}

struct Space {
    Scratch<Word> left, right;
    Scratch<float> found;
    explicit Space(const Layer &n)
        : left(n.depth() * rounded_up(n.inner_width(), LANES)), right(n.depth() * STRIP),
          found(n.inner_width() * STRIP) {}
};

// The part of an example's gradient, (rows, whole_columns): the sum over its tokens of left times right.
static const float *gradient_of(const Layer &n, const Part &part, long example, Space &space) {
    long token = example * n.tokens, left_columns = rounded_up(part.rows, LANES);
    interleaved(part.left + token * part.left_stride, part.left_stride, n.tokens, part.rows, space.left);
    interleaved(part.right + token * part.right_stride, part.right_stride, n.tokens, part.columns, space.right);
    Factor factor = {space.left, 1, left_columns};
    multiply(part.rows, factor, space.right, part.whole_columns(), n.depth(), space.found, false);
    return space.found;
}

// squares (N,) gets every example's squared norm. What is behind a rank or a width is zero and counts nothing.
extern "C" void lora_squares(const Element *grad, const Element *x, const Element *hidden, const Element *inner,
                             const long *targets, double *squares, long examples, long tokens, long width,
                             long out_width, long slices, long adapted, long rank, long has_a, long has_b,
                             long threads) {
    Layer n = {grad,      x,      hidden,  inner, targets,    tokens,    width,
               out_width, slices, adapted, rank,  has_a != 0, has_b != 0};
#pragma omp parallel num_threads(threads)
    {
        Space space(n);
#pragma omp for schedule(static)
        for (long example = 0; example < examples; example++) {
            squares[example] = 0;
            for (long strip = 0; strip < n.strips(); strip++) {
                Part part = part_of(n, strip);
                const float *found = gradient_of(n, part, example, space);
                Floats total = splat(0);
                for (long place = 0; place < part.rows * part.whole_columns(); place += LANES) {
                    Floats values = load_floats(found + place);
                    total += values * values;
                }
                squares[example] += sum(total);
            }
        }
    }
}

// grad_a (K, G, R, D) and grad_b (K, G, O, R), each unless NULL: the sums over a client's examples of their gradients
// times factors (N,).
extern "C" void lora_sums(const Element *grad, const Element *x, const Element *hidden, const Element *inner,
                          const long *targets, const float *factors, float *grad_a, float *grad_b, const long *starts,
                          long clients, long tokens, long width, long out_width, long slices, long adapted, long rank,
                          long threads) {
    Layer n = {grad,      x,      hidden,  inner, targets,           tokens,           width,
               out_width, slices, adapted, rank,  grad_a != nullptr, grad_b != nullptr};
    long whole = n.whole_rank();
#pragma omp parallel num_threads(threads)
    {
        Space space(n);
        Scratch<float> total(n.inner_width() * STRIP);
#pragma omp for schedule(static)
        for (long index = 0; index < clients * n.strips(); index++) {
            long client = index / n.strips();
            Part part = part_of(n, index % n.strips());
            long wide = part.whole_columns(), size = part.rows * wide;
            memset(total, 0, size * sizeof(float));
            for (long example = starts[client]; example < starts[client + 1]; example++) {
                const float *found = gradient_of(n, part, example, space);
                for (long place = 0; place < size; place += LANES)
                    store_floats(total + place,
                                 load_floats(total + place) + load_floats(found + place) * factors[example]);
            }
            if (part.target < 0) {
                for (long row = 0; row < adapted * rank; row++)
                    memcpy(grad_a + (client * adapted * rank + row) * width + part.first,
                           total + (row / rank * whole + row % rank) * wide, part.columns * sizeof(float));
            } else {
                float *to = grad_b + ((client * adapted + part.target) * out_width + part.first) * rank;
                for (long column = 0; column < part.columns; column++)
                    for (long row = 0; row < rank; row++) to[column * rank + row] = total[row * wide + column];
            }
        }
    }
}
