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
#define INLINE static inline __attribute__((always_inline))

INLINE Vector load(const float *at) { return *(const Vector *)at; }
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

INLINE float dot(const float *a, const float *b, int n) {
    Vector even = {0}, odd = {0};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += load(a + i) * load(b + i);
        odd += load(a + i + LANES) * load(b + i + LANES);
    }
    for (; i + LANES <= n; i += LANES) even += load(a + i) * load(b + i);
    float sum = sum_of(even + odd);
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

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
    const float *a, *packed, *bias, *scale; /* scale: of each row of a; bias: null for none */
    float *out;
    int depth, rows, columns; /* columns: those of the packed weight, whole panels */
    ptrdiff_t a_stride, out_stride;
    Then then;
} Product;

/* One panel's sums for `rows` <= TILE_ROWS rows, a constant once inlined, and what becomes of them. */
INLINE void tile(const int rows, const Product *p, int row, int panel) {
    Vector left[TILE_ROWS] = {{0}}, right[TILE_ROWS] = {{0}};
    const float *a = p->a + row * p->a_stride, *b = p->packed + (ptrdiff_t)panel * PANEL * p->depth;
    for (int k = 0; k < p->depth; k++, b += PANEL) {
        const Vector b0 = load(b), b1 = load(b + LANES);
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
        const float scale = p->scale ? p->scale[row + r] : 1.0f;
        if (p->then == GATE) {
            const Vector gate = left[r] * scale;
            store(out + panel * LANES, gate / (1.0f + exp_of(-gate)) * (right[r] * scale));
            continue;
        }
        out += panel * PANEL;
        Vector first = left[r] * scale, second = right[r] * scale;
        if (p->bias) first += load(p->bias + panel * PANEL), second += load(p->bias + panel * PANEL + LANES);
        if (p->then == ADD) first += load(out), second += load(out + LANES);
        store(out, first), store(out + LANES, second);
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
#define CASE(n) case n: tile(n, p, row, panel); break;
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
