// Convolutions of 3 x 3 over maps with the channels last, in fp32, by Winograd's minimal filtering F(2 x 2, 3 x 3)
// (Lavin and Gray, CVPR 2016): 16 products for a tile of 2 x 2 outputs in place of 36.
//
// Shapes: N images, H x W pixels and P x Q after the convolution, C channels in, O out, in strips of S (a divisor of
// O, 16 to 64); T tiles that are taken together. C and O are whole vectors. Of a tile's transform 16 places are the
// first axis.

#if defined(FP32)
#include "products.h"

#define PLACES 16
// Numbers of the transforms of the tiles that are taken together, so that they stay in the cache.
#define NUMBERS_AT_ONCE 163840

struct Maps {
    long images, height, width, padding;
    long rows() const { return rounded_up(height + 2 * padding - 2, 2) / 2; }
    long columns() const { return rounded_up(width + 2 * padding - 2, 2) / 2; }
    long tiles() const { return images * rows() * columns(); }
};

INLINE long tiles_at_once(long channels) {
    long most = NUMBERS_AT_ONCE / (PLACES * channels) / TILE_ROWS * TILE_ROWS;
    return most < TILE_ROWS ? TILE_ROWS : most;
}

// One pass of B' along an axis: of d0 to d3.
INLINE void inputs_along(Floats *d, int stride) {
    Floats first = d[0] - d[2 * stride], last = d[stride] - d[3 * stride];
    Floats sum = d[stride] + d[2 * stride], rest = d[2 * stride] - d[stride];
    d[0] = first, d[stride] = sum, d[2 * stride] = rest, d[3 * stride] = last;
}

// Tiles `first` to `first + count` of x (N, H, W, C) to (16, T, C).
static void transformed_inputs(const float *x, Maps maps, long channels, const float *zeros, long first, long count,
                               float *to) {
    for (long tile = 0; tile < count; tile++) {
        long index = first + tile, column = index % maps.columns() * 2 - maps.padding;
        long row = index / maps.columns() % maps.rows() * 2 - maps.padding;
        const float *image = x + index / (maps.rows() * maps.columns()) * maps.height * maps.width * channels;
        const float *places[PLACES];
        for (int place = 0; place < PLACES; place++) {
            long y = row + place / 4, x_ = column + place % 4;
            bool within = y >= 0 && y < maps.height && x_ >= 0 && x_ < maps.width;
            places[place] = within ? image + (y * maps.width + x_) * channels : zeros;
        }
        for (long channel = 0; channel < channels; channel += LANES) {
            Floats d[PLACES];
            UNROLL
            for (int place = 0; place < PLACES; place++) d[place] = load_floats(places[place] + channel);
            UNROLL
            for (int along = 0; along < 4; along++) inputs_along(d + along, 4);
            UNROLL
            for (int along = 0; along < 4; along++) inputs_along(d + 4 * along, 1);
            UNROLL
            for (int place = 0; place < PLACES; place++)
                store_floats(to + (place * count + tile) * channels + channel, d[place]);
        }
    }
}

// The places of a tile's outputs in y (N, P, Q, O), NULL for those beyond the edge.
INLINE void output_places(float *y, Maps maps, long outputs, long index, float **to) {
    long height = maps.height + 2 * maps.padding - 2, width = maps.width + 2 * maps.padding - 2;
    long column = index % maps.columns() * 2, row = index / maps.columns() % maps.rows() * 2;
    float *image = y + index / (maps.rows() * maps.columns()) * height * width * outputs;
    for (int place = 0; place < 4; place++) {
        long at_row = row + place / 2, at_column = column + place % 2;
        bool within = at_row < height && at_column < width;
        to[place] = within ? image + (at_row * width + at_column) * outputs : NULL;
    }
}

// y (N, P, Q, O) for x (N, H, W, C) and weights (O / S, 16, C, S), transformed.
extern "C" void winograd_forward(const float *x, const float *weights, float *y, long images, long height, long width,
                                 long padding, long channels, long outputs, long strip, long threads) {
    Maps maps = {images, height, width, padding};
    long tiles = maps.tiles(), most = tiles_at_once(channels + strip), blocks = (tiles + most - 1) / most;
#pragma omp parallel num_threads(threads)
    {
        Scratch<float> own(PLACES * most * channels), found(PLACES * most * strip), zeros(channels);
        memset(zeros, 0, channels * sizeof(float));
#pragma omp for schedule(static)
        for (long block = 0; block < blocks; block++) {
            long first = block * most, count = tiles - first < most ? tiles - first : most;
            transformed_inputs(x, maps, channels, zeros, first, count, own);
            for (long output = 0; output < outputs; output += strip) {
                for (int place = 0; place < PLACES; place++) {
                    const float *right = weights + (output * PLACES + place * strip) * channels;
                    multiply(count, as_rows(own + place * count * channels, channels), (const Word *)right, strip,
                             channels, found + place * count * strip, false);
                }
                for (long tile = 0; tile < count; tile++) {
                    float *places[4];
                    output_places(y, maps, outputs, first + tile, places);
                    for (long column = 0; column < strip; column += LANES) {
                        Floats m[PLACES], part[8];
                        UNROLL
                        for (int place = 0; place < PLACES; place++)
                            m[place] = load_floats(found + (place * count + tile) * strip + column);
                        UNROLL
                        for (int along = 0; along < 4; along++) {
                            part[along] = m[along] + m[4 + along] + m[8 + along];
                            part[4 + along] = m[4 + along] - m[8 + along] - m[12 + along];
                        }
                        UNROLL
                        for (int row = 0; row < 2; row++) {
                            Floats *p = part + 4 * row;
                            long at = output + column;
                            if (places[2 * row]) store_floats(places[2 * row] + at, p[0] + p[1] + p[2]);
                            if (places[2 * row + 1]) store_floats(places[2 * row + 1] + at, p[1] - p[2] - p[3]);
                        }
                    }
                }
            }
        }
    }
}

// The gradient (O / S, 16, C, S) of the transformed weights, for x (N, H, W, C) and grad (N, P, Q, O).
extern "C" void winograd_weights(const float *x, const float *grad, float *weights, long images, long height,
                                 long width, long padding, long channels, long outputs, long strip, long threads) {
    Maps maps = {images, height, width, padding};
    long tiles = maps.tiles(), most = tiles_at_once(channels + strip);
#pragma omp parallel num_threads(threads)
    {
        Scratch<float> own(PLACES * most * channels), grads(PLACES * most * strip), zeros(channels);
        memset(zeros, 0, channels * sizeof(float));
#pragma omp for schedule(static)
        for (long output = 0; output < outputs; output += strip)
            for (long first = 0; first < tiles; first += most) {
                long count = tiles - first < most ? tiles - first : most;
                transformed_inputs(x, maps, channels, zeros, first, count, own);
                for (long tile = 0; tile < count; tile++) {
                    float *places[4];
                    output_places((float *)grad, maps, outputs, first + tile, places);
                    for (long column = 0; column < strip; column += LANES) {
                        Floats g[4], part[8];
                        UNROLL
                        for (int place = 0; place < 4; place++)
                            g[place] = places[place] ? load_floats(places[place] + output + column) : splat(0);
                        UNROLL
                        for (int along = 0; along < 2; along++) {
                            part[along] = g[along];
                            part[2 + along] = g[along] + g[2 + along];
                            part[4 + along] = g[along] - g[2 + along];
                            part[6 + along] = -g[2 + along];
                        }
                        UNROLL
                        for (int row = 0; row < 4; row++) {
                            Floats *p = part + 2 * row, all[4] = {p[0], p[0] + p[1], p[0] - p[1], -p[1]};
                            UNROLL
                            for (int along = 0; along < 4; along++)
                                store_floats(grads + ((4 * row + along) * count + tile) * strip + column, all[along]);
                        }
                    }
                }
                for (int place = 0; place < PLACES; place++) {
                    Factor left = {(const Word *)(float *)(own + place * count * channels), 1, channels};
                    multiply(channels, left, (const Word *)(float *)(grads + place * count * strip), strip, count,
                             weights + (output * PLACES + place * strip) * channels, first > 0);
                }
            }
    }
}
#endif
