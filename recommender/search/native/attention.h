/* Attention of tokens to the prompt before them and to their own path.

   The prompt's keys are turned first, (C, D) to (D, C), once for all tokens of a slot: then a vector holds
   the scores of neighbouring columns, and no sum runs across one. */
#ifndef ESPALIER_ATTENTION_H
#define ESPALIER_ATTENTION_H

#include "product.h"

#include <math.h>
#include <stdlib.h>

#define HEADS 4 /* query heads of a group that are done together, at most */

typedef struct {
    const Model *model;
    const Reading *reading;
    float *qkv, *mixed;
    int qkv_stride, mixed_stride;
    /* A run: the tokens of one slot. Its turned keys are (K, D, columns), those of `turned_columns`. */
    int runs;
    int *run_of_token, *first_token, *turned_columns;
    size_t *turned_offset;
    float *turned;
    /* Of each thread: the scores of HEADS heads, then the columns on the token's path. */
    float *scratch;
    int longest;
} Attention;

static float *floats(size_t n) { return aligned_alloc(64, PADDED(n * sizeof(float) + 64, 64)); }

static float *plane(const Model *m, const Reading *r, int slot, int layer, int of_values, int head) {
    const int64_t which = ((int64_t)slot * 2 * m->layers + 2 * layer + of_values) * m->kv_heads + head;
    return r->kv + which * r->columns * m->head_dim;
}

/* Finds the runs and takes the memory. Returns whether there was enough. */
static int prepare(Attention *a, int threads) {
    const Model *m = a->model;
    const Reading *r = a->reading;
    a->run_of_token = malloc(r->tokens * sizeof(int)), a->first_token = malloc(r->tokens * sizeof(int));
    a->turned_columns = malloc(r->tokens * sizeof(int)), a->turned_offset = malloc(r->tokens * sizeof(size_t));
    if (!a->run_of_token || !a->first_token || !a->turned_columns || !a->turned_offset) return 0;
    int longest = 0;
    for (int t = 0; t < r->tokens; t++) {
        if (t == 0 || r->slot[t] != r->slot[t - 1]) a->first_token[a->runs] = t, a->turned_columns[a->runs++] = 0;
        const int run = a->run_of_token[t] = a->runs - 1;
        const int columns = PADDED(r->prefix[t], PANEL), sees = r->prefix[t] + r->column[t] + 1;
        if (columns > a->turned_columns[run]) a->turned_columns[run] = columns;
        if (sees > longest) longest = sees;
    }
    a->longest = PADDED(longest, PANEL);
    size_t size = 0;
    for (int run = 0; run < a->runs; run++) {
        a->turned_offset[run] = size;
        size += (size_t)a->turned_columns[run] * m->head_dim * m->kv_heads;
    }
    a->turned = floats(size), a->scratch = floats((size_t)threads * (HEADS + 1) * a->longest);
    return a->turned && a->scratch;
}

static void release(Attention *a) {
    free(a->run_of_token), free(a->first_token), free(a->turned_columns), free(a->turned_offset);
    free(a->turned), free(a->scratch);
}

/* Turns the keys of one run and one head. */
static void turn_keys(const Attention *a, int layer, int item) {
    const int run = item / a->model->kv_heads, head = item % a->model->kv_heads, width = a->model->head_dim;
    const int columns = a->turned_columns[run];
    const float *keys = plane(a->model, a->reading, a->reading->slot[a->first_token[run]], layer, 0, head);
    float *turned = a->turned + a->turned_offset[run] + (size_t)head * width * columns;
    const int there = columns < a->reading->columns ? columns : a->reading->columns;
    for (int from = 0; from < columns; from += LANES)
        for (int d = 0; d < width; d++)
            for (int c = from; c < from + LANES; c++)
                turned[(size_t)d * columns + c] = c < there ? keys[(size_t)c * width + d] : 0.0f;
}

/* Scores of `heads` <= HEADS query heads with the columns before `prefix`, a panel of them at a time. */
INLINE void score_prefix(const int heads, float *scores, int stride, const float *query, int width, float scale,
                         const float *turned, int columns, int prefix) {
    for (int from = 0; from < prefix; from += PANEL) {
        Vector left[HEADS] = {{0}}, right[HEADS] = {{0}};
        for (int d = 0; d < width; d++) {
            const float *keys = turned + (size_t)d * columns + from;
            const Vector k0 = load(keys), k1 = load(keys + LANES);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) {
                const float q = query[h * width + d];
                left[h] += q * k0, right[h] += q * k1;
            }
        }
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) {
            store(scores + (size_t)h * stride + from, left[h] * scale);
            store(scores + (size_t)h * stride + from + LANES, right[h] * scale);
        }
    }
}

/* e^(s - highest) in place, zeros behind. Returns the sum. */
INLINE float exponentials(float *scores, int n) {
    const int padded = PADDED(n, LANES);
    for (int i = n; i < padded; i++) scores[i] = -INFINITY;
    Vector high = load(scores), sum = {0};
    for (int i = LANES; i < padded; i += LANES) high = chosen(load(scores + i) > high, load(scores + i), high);
    float lanes[LANES], highest;
    store(lanes, high), highest = lanes[0];
    for (int i = 1; i < LANES; i++) highest = lanes[i] > highest ? lanes[i] : highest;
    for (int i = 0; i < padded; i += LANES) store(scores + i, exp_of(load(scores + i) - highest));
    for (int i = n; i < padded; i++) scores[i] = 0.0f;
    for (int i = 0; i < padded; i += LANES) sum += load(scores + i);
    return sum_of(sum);
}

/* Adds the values of columns, weighted, for `heads` heads and the PANEL floats of a head from `at`. */
INLINE void weigh(const int heads, float *out, const float *weights, int stride, const float *sums,
                  const float *values, const int32_t *path, int prefix, int n, int width, int at) {
    Vector left[HEADS] = {{0}}, right[HEADS] = {{0}};
    for (int i = 0; i < n; i++) {
        const float *v = values + (size_t)(i < prefix ? i : path[i - prefix]) * width + at;
        const Vector v0 = load(v), v1 = load(v + LANES);
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) {
            const float w = weights[(size_t)h * stride + i];
            left[h] += w * v0, right[h] += w * v1;
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++) {
        const float scale = 1.0f / sums[h];
        store(out + h * width + at, left[h] * scale), store(out + h * width + at + LANES, right[h] * scale);
    }
}

INLINE void attend_heads(const int heads, const Attention *a, int layer, int token, int row, int head, int thread) {
    const Model *m = a->model;
    const Reading *r = a->reading;
    const int width = m->head_dim, group = m->heads / m->kv_heads, prefix = r->prefix[token];
    const int run = a->run_of_token[token], columns = a->turned_columns[run], kv_head = head / group;
    const int32_t *above = r->above + (size_t)r->slot[token] * r->columns;
    const float *keys = plane(m, r, r->slot[token], layer, 0, kv_head);
    const float *values = plane(m, r, r->slot[token], layer, 1, kv_head);
    const float *query = a->qkv + (size_t)token * a->qkv_stride + head * width;
    float *out = a->mixed + (size_t)row * a->mixed_stride + head * width, sums[HEADS];
    float *scores = a->scratch + (size_t)thread * (HEADS + 1) * a->longest;
    int32_t *path = (int32_t *)(scores + (size_t)HEADS * a->longest);
    const float scale = 1.0f / sqrtf((float)width);

    score_prefix(heads, scores, a->longest, query, width, scale,
                 a->turned + a->turned_offset[run] + (size_t)kv_head * width * columns, columns, prefix);
    int n = prefix;
    for (int c = r->column[token]; c >= prefix; c = above[c], n++) {
        path[n - prefix] = c;
        for (int h = 0; h < heads; h++)
            scores[(size_t)h * a->longest + n] = scale * dot(query + h * width, keys + (size_t)c * width, width);
    }
    for (int h = 0; h < heads; h++) sums[h] = exponentials(scores + (size_t)h * a->longest, n);
    int at = 0;
    for (; at + PANEL <= width; at += PANEL)
        weigh(heads, out, scores, a->longest, sums, values, path, prefix, n, width, at);
    for (; at < width; at++)
        for (int h = 0; h < heads; h++) {
            float sum = 0;
            for (int i = 0; i < n; i++)
                sum += scores[(size_t)h * a->longest + i] *
                       values[(size_t)(i < prefix ? i : path[i - prefix]) * width + at];
            out[h * width + at] = sum / sums[h];
        }
}

/* One token's query heads that share a key/value head; the values mixed go to `row`. */
static void attend(const Attention *a, int layer, int token, int row, int kv_head, int thread) {
    const int group = a->model->heads / a->model->kv_heads, first = kv_head * group;
    for (int head = first; head < first + group; head += HEADS)
        switch (first + group - head) {
        case 1: attend_heads(1, a, layer, token, row, head, thread); break;
        case 2: attend_heads(2, a, layer, token, row, head, thread); break;
        case 3: attend_heads(3, a, layer, token, row, head, thread); break;
        default: attend_heads(4, a, layer, token, row, head, thread);
        }
}

#endif
