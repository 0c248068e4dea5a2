/* Products with packed weights: (rows, K) times (K, columns), a panel of columns at a time.

   Every element is one sum over k in ascending order, whatever rows stand beside it: a token's result does
   not depend on what else is read with it, to the last bit. */
#ifndef ESPALIER_PRODUCT_H
#define ESPALIER_PRODUCT_H

#include "kernels.h"

#include <stddef.h>
#include <string.h>

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));
#define INLINE static inline __attribute__((always_inline))

INLINE Vector load(const float *at) { return *(const Vector *)at; }
INLINE Vector load_halves(const uint16_t *at) {
    return (Vector)(__builtin_convertvector(*(const Halves *)at, Integers) << 16);
}
INLINE void store(float *at, Vector value) { *(Vector *)at = value; }
INLINE Vector all(float value) { return value - (Vector){0}; }

INLINE Vector chosen(Integers where, Vector yes, Vector no) {
    return (Vector)((where & (Integers)yes) | (~where & (Integers)no));
}

INLINE float sum_of(Vector v) {
    float folded[LANES];
    store(folded, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) folded[i] += folded[i + width];
    return folded[0];
}

INLINE float whole(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* `a` is bfloat16 if `halves`, a constant once inlined. */
INLINE float mixed_dot(const int halves, const void *a, const float *b, int n) {
    const float *floats = a;
    const uint16_t *shorts = a;
    Vector even = {0}, odd = {0};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += (halves ? load_halves(shorts + i) : load(floats + i)) * load(b + i);
        odd += (halves ? load_halves(shorts + i + LANES) : load(floats + i + LANES)) * load(b + i + LANES);
    }
    for (; i + LANES <= n; i += LANES) even += (halves ? load_halves(shorts + i) : load(floats + i)) * load(b + i);
    if (i < n) { /* a vector, too: left alone, a sum may be contracted in one of both kinds only */
        float left[LANES] = {0}, right[LANES] = {0};
        for (int at = 0; i + at < n; at++) left[at] = halves ? whole(shorts[i + at]) : floats[i + at], right[at] = b[i + at];
        odd += load(left) * load(right);
    }
    return sum_of(even + odd);
}

INLINE float dot(const float *a, const float *b, int n) { return mixed_dot(0, a, b, n); }

/* e^x by 2^n · e^r, |r| <= ln 2 / 2, with r's polynomial of Cephes' expf: relative error below 2e-7. */
INLINE Vector exp_of(Vector x) {
    x = chosen(x < -87.0f, all(-87.0f), x);
    x = chosen(x > 88.0f, all(88.0f), x);
    const Vector shift = all(12582912.0f); /* 1.5 · 2^23: adding it rounds to whole numbers */
    Vector n = (x * 1.44269504088896341f + shift) - shift;
    Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return p * (Vector)power;
}

typedef enum { STORE, ADD, GATE } Then;

typedef struct {
    const float *a;
    const void *packed;
    const float *bias; /* or null */
    float *out;
    int halves, depth, rows, columns; /* columns: those of the packed weight, whole panels */
    ptrdiff_t a_stride, out_stride;
    Then then;
} Product;

/* The two vectors of a panel at one k. Of bfloat16 a word holds one of each, the right one above. */
INLINE void weights(const int halves, const void *packed, ptrdiff_t at, Vector *left, Vector *right) {
    if (halves) {
        const Integers words = *(const Integers *)((const int32_t *)packed + at * LANES);
        *left = (Vector)(words << 16), *right = (Vector)(words & ~0xffff);
    } else {
        const float *both = (const float *)packed + at * PANEL;
        *left = load(both), *right = load(both + LANES);
    }
}

/* One panel's sums for `rows` <= TILE_ROWS rows, and what becomes of them. Both numbers before the product
   are constants once inlined. */
INLINE void tile(const int rows, const int halves, const Product *p, int row, int panel) {
    Vector left[TILE_ROWS] = {{0}}, right[TILE_ROWS] = {{0}};
    const float *a = p->a + row * p->a_stride;
    const ptrdiff_t first = (ptrdiff_t)panel * p->depth;
    for (int k = 0; k < p->depth; k++) {
        Vector b0, b1;
        weights(halves, p->packed, first + k, &b0, &b1);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const float x = a[r * p->a_stride + k];
            left[r] += x * b0;
            right[r] += x * b1;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        float *out = p->out + (row + r) * p->out_stride;
        if (p->then == GATE) {
            store(out + panel * LANES, left[r] / (1.0f + exp_of(-left[r])) * right[r]);
            continue;
        }
        out += panel * PANEL;
        if (p->bias) left[r] += load(p->bias + panel * PANEL), right[r] += load(p->bias + panel * PANEL + LANES);
        if (p->then == ADD) left[r] += load(out), right[r] += load(out + LANES);
        store(out, left[r]), store(out + LANES, right[r]);
    }
}

#define BAND 192 /* rows that stay in the cache while the panels pass */

INLINE int product_items(const Product *p) {
    return (p->rows + BAND - 1) / BAND * (p->columns / PANEL);
}

/* One panel for one band of rows, in tiles as equal as they can be. */
INLINE void product_item(const Product *p, int item) {
    const int panels = p->columns / PANEL, panel = item % panels;
    int row = item / panels * BAND;
    const int stop = row + BAND < p->rows ? row + BAND : p->rows;
    for (int tiles = (stop - row + TILE_ROWS - 1) / TILE_ROWS; tiles; tiles--) {
        const int rows = (stop - row + tiles - 1) / tiles;
        switch (rows) {
#define CASE(n) \
    case n: \
        if (p->halves) tile(n, 1, p, row, panel); \
        else tile(n, 0, p, row, panel); \
        break;
        CASE(1) CASE(2) CASE(3)
        CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8)
#endif
#if TILE_ROWS > 8
        CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
        row += rows;
    }
}

#endif
