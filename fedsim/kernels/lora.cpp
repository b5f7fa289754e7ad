// The low-rank part of an adapted layer for a block of clients, forward and back.
//
// Shapes: K clients, M rows in all, those of a client from `starts` (K + 1,) on, D input width, O width of a slice of
// the output, S such slices, of which `targets` (G,) are adapted, R rank, R' the rank rounded up to whole words.
// Factors A (K or 1, G, R, D) and B (K or 1, G, O, R) and their gradients are fp32, and so are the clients' own
// `scaling` (K,); all else are elements. D and O are even for bfloat16.

#include "products.h"

// Rows, and columns, that are taken together.
#define BLOCK 72
#define STRIP (TILE_VECTORS * LANES)

struct Sizes {
    const long *starts;
    long clients, width, out_width, slices, adapted, rank;
    long whole_rank() const { return rounded_up(rank, WORD_ELEMENTS); }
    long hidden() const { return adapted * whole_rank(); }
    long rows_of(long client) const { return starts[client + 1] - starts[client]; }
    long most_rows() const {
        long most = 0;
        for (long client = 0; client < clients; client++)
            if (rows_of(client) > most) most = rows_of(client);
        return most;
    }
    // Of the client that has most; others have fewer rows in their last block, or none.
    long blocks() const { return rounded_up(most_rows(), BLOCK) / BLOCK; }
    long rows_from(long client, long first) const {
        long left = rows_of(client) - first;
        return left < BLOCK ? left : BLOCK;
    }
};

// The factor B of a client as rows (O, G R') of elements, what is behind a rank is zero.
static void rounded_b(const float *b, Sizes n, Element *to) {
    for (long target = 0; target < n.adapted; target++)
        for (long row = 0; row < n.out_width; row++)
            for (long first = 0; first < n.whole_rank(); first += LANES) {
                const float *from = b + (target * n.out_width + row) * n.rank + first;
                Floats own = load_some<Floats>(from, n.rank - first);
                store_some(to + row * n.hidden() + target * n.whole_rank() + first, own, n.whole_rank() - first);
            }
}

// The factor A of a client as rows (G R', D) of elements, what is behind a rank is zero.
static void rounded_a(const float *a, Sizes n, Element *to) {
    for (long row = 0; row < n.hidden(); row++, to += n.width) {
        long target = row / n.whole_rank(), own = row % n.whole_rank();
        const float *from = a + (target * n.rank + own) * n.width;
        for (long column = 0; column < n.width; column += LANES) {
            long left = n.width - column;
            store_some(to + column, own < n.rank ? load_some<Floats>(from + column, left) : splat(0), left);
        }
    }
}

static void add_to(Element *to, long stride, const float *from, long rows, long width) {
    long columns = rounded_up(width, LANES);
    for (long row = 0; row < rows; row++)
        for (long column = 0; column < width; column += LANES) {
            Element *place = to + row * stride + column;
            Floats sum = widen(load_some<Elements>(place, width - column)) + load_floats(from + row * columns + column);
            store_some(place, sum, width - column);
        }
}

static void scaled(const float *from, long columns, long rows, long width, float scale, Element *to, long stride) {
    for (long row = 0; row < rows; row++)
        for (long column = 0; column < width; column += LANES)
            store_some(to + row * stride + column, load_floats(from + row * columns + column) * scale, width - column);
}

// Adds s x A' B' to the adapted slices of out (M, S O), for x (M, D); hidden (M, G R') gets s x A'.
extern "C" void lora_forward(const Element *x, const float *a, const float *b, const long *targets, Element *hidden,
                             Element *out, const long *starts, long clients, long width, long out_width, long slices,
                             long adapted, long rank, long a_clients, long b_clients, const float *scaling,
                             long threads) {
    Sizes n = {starts, clients, width, out_width, slices, adapted, rank};
    long inner = rounded_up(n.hidden(), LANES), wide = rounded_up(out_width, LANES), most = inner > wide ? inner : wide;
    long depth = n.whole_rank() / WORD_ELEMENTS, blocks = n.blocks();
#pragma omp parallel num_threads(threads)
    {
        Scratch<Element> own_a(n.hidden() * width), own_b(out_width * n.hidden());
        Scratch<Word> down(width * inner), up(adapted * depth * wide);
        Scratch<float> block(BLOCK * most);
        long packed = -1;
#pragma omp for schedule(static)
        for (long index = 0; index < clients * blocks; index++) {
            long client = index / blocks, first = index % blocks * BLOCK, count = n.rows_from(client, first);
            if (count <= 0) continue;
            if (client != packed) {
                rounded_a(a + (a_clients > 1 ? client * adapted * rank * width : 0), n, own_a);
                rounded_b(b + (b_clients > 1 ? client * adapted * rank * out_width : 0), n, own_b);
                transposed(own_a, width, n.hidden(), width, down);
                for (long target = 0; target < adapted; target++)
                    transposed(own_b + target * n.whole_rank(), n.hidden(), out_width, n.whole_rank(),
                               up + target * depth * wide);
                packed = client;
            }
            long place = starts[client] + first;
            Element *own = hidden + place * n.hidden();
            multiply(count, as_rows(x + place * width, width), down, inner, width / WORD_ELEMENTS, block, false);
            scaled(block, inner, count, n.hidden(), scaling[client], own, n.hidden());
            for (long target = 0; target < adapted; target++) {
                Factor left = as_rows(own + target * n.whole_rank(), n.hidden());
                multiply(count, left, up + target * depth * wide, wide, depth, block, false);
                add_to(out + (place * slices + targets[target]) * out_width, slices * out_width, block, count,
                       out_width);
            }
        }
    }
}

// inner (M, G R') gets s grad B, what reaches the hidden values, for grad (M, S O); inner A is added to grad_x (M, D),
// unless NULL.
static void back_through(const Element *grad, const float *a, const float *b, const long *targets, Element *inner,
                         Element *grad_x, Sizes n, long a_clients, long b_clients, const float *scaling, long threads) {
    long narrow = rounded_up(n.whole_rank(), LANES), wide = rounded_up(n.width, LANES);
    long depth = n.out_width / WORD_ELEMENTS, stride = n.slices * n.out_width, blocks = n.blocks();
#pragma omp parallel num_threads(threads)
    {
        Scratch<Element> own_a(n.hidden() * n.width), own_b(n.out_width * n.hidden());
        Scratch<Word> down(n.adapted * depth * narrow), up(n.hidden() / WORD_ELEMENTS * wide);
        Scratch<float> block(BLOCK * (narrow > wide ? narrow : wide));
        long packed = -1;
#pragma omp for schedule(static)
        for (long index = 0; index < n.clients * blocks; index++) {
            long client = index / blocks, first = index % blocks * BLOCK, count = n.rows_from(client, first);
            if (count <= 0) continue;
            if (client != packed) {
                rounded_a(a + (a_clients > 1 ? client * n.adapted * n.rank * n.width : 0), n, own_a);
                rounded_b(b + (b_clients > 1 ? client * n.adapted * n.rank * n.out_width : 0), n, own_b);
                interleaved(own_a, n.width, n.hidden(), n.width, up);
                for (long target = 0; target < n.adapted; target++)
                    interleaved(own_b + target * n.whole_rank(), n.hidden(), n.out_width, n.whole_rank(),
                                down + target * depth * narrow);
                packed = client;
            }
            long place = n.starts[client] + first;
            Element *own = inner + place * n.hidden();
            for (long target = 0; target < n.adapted; target++) {
                Factor left = as_rows(grad + place * stride + targets[target] * n.out_width, stride);
                multiply(count, left, down + target * depth * narrow, narrow, depth, block, false);
                scaled(block, narrow, count, n.whole_rank(), scaling[client], own + target * n.whole_rank(),
                       n.hidden());
            }
            if (grad_x) {
                multiply(count, as_rows(own, n.hidden()), up, wide, n.hidden() / WORD_ELEMENTS, block, false);
                add_to(grad_x + place * n.width, n.width, block, count, n.width);
            }
        }
    }
}

// grad_a (K, G, R, D) from inner and x, grad_b (K, G, O, R) from hidden and grad, each unless NULL; see back_through.
extern "C" void lora_backward(const Element *grad, const Element *x, const float *a, const float *b,
                              const long *targets, const Element *hidden, Element *inner, Element *grad_x,
                              float *grad_a, float *grad_b, const long *starts, long clients, long width,
                              long out_width, long slices, long adapted, long rank, long a_clients, long b_clients,
                              const float *scaling, long threads) {
    Sizes n = {starts, clients, width, out_width, slices, adapted, rank};
    back_through(grad, a, b, targets, inner, grad_x, n, a_clients, b_clients, scaling, threads);
    if (!grad_a && !grad_b) return;
    long columns = rounded_up(n.hidden(), LANES), most = rounded_up(n.most_rows(), WORD_ELEMENTS) / WORD_ELEMENTS;
    long a_strips = rounded_up(width, STRIP) / STRIP, b_strips = rounded_up(out_width, STRIP) / STRIP;
    long strips = a_strips + adapted * b_strips, whole = n.whole_rank();
#pragma omp parallel num_threads(threads)
    {
        Scratch<Word> left(most * columns), right(most * STRIP);
        Scratch<float> found(n.hidden() * STRIP);
#pragma omp for schedule(static)
        for (long index = 0; index < clients * strips; index++) {
            long client = index / strips, strip = index % strips, place = starts[client], rows = n.rows_of(client);
            long depth = rounded_up(rows, WORD_ELEMENTS) / WORD_ELEMENTS;
            if (strip < a_strips) {
                if (!grad_a) continue;
                long first = strip * STRIP, count = width - first < STRIP ? width - first : STRIP;
                long wide = rounded_up(count, LANES);
                interleaved(inner + place * n.hidden(), n.hidden(), rows, n.hidden(), left);
                interleaved(x + place * width + first, width, rows, count, right);
                multiply(n.hidden(), {left, 1, columns}, right, wide, depth, found, false);
                for (long row = 0; row < adapted * rank; row++)
                    memcpy(grad_a + (client * adapted * rank + row) * width + first,
                           found + (row / rank * whole + row % rank) * wide, count * sizeof(float));
            } else if (grad_b) {
                long target = (strip - a_strips) / b_strips, first = (strip - a_strips) % b_strips * STRIP;
                long count = out_width - first < STRIP ? out_width - first : STRIP, wide = rounded_up(count, LANES);
                interleaved(hidden + place * n.hidden() + target * whole, n.hidden(), rows, whole, left);
                interleaved(grad + (place * slices + targets[target]) * out_width + first, slices * out_width, rows,
                            count, right);
                multiply(whole, {left, 1, rounded_up(whole, LANES)}, right, wide, depth, found, false);
                float *to = grad_b + ((client * adapted + target) * out_width + first) * rank;
                for (long column = 0; column < count; column++)
                    for (long row = 0; row < rank; row++) to[column * rank + row] = found[row * wide + column];
            }
        }
    }
}
