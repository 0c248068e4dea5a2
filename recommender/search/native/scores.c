/* Log-probabilities of trie nodes' children among their siblings; only the children's rows of the head. */
#include "product.h"

#include <math.h>

#define EDGES 64 /* of an item */
#define NODES 32

static int node_of(const Scoring *s, int edge) {
    int low = 0, high = s->nodes;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (s->edge_offsets[middle] <= edge) low = middle;
        else high = middle;
    }
    return low;
}

static void score(const Scoring *s, int begin, int stop) {
    for (int edge = begin, at = node_of(s, begin); edge < stop; edge++) {
        while (edge >= s->edge_offsets[at + 1]) at++;
        const int32_t child = s->child_offsets[s->node[at]] + 1 + edge - s->edge_offsets[at];
        const int64_t token = s->label_tokens[s->label_offsets[child]];
        s->children[edge] = child;
        const float *state = s->states + (int64_t)at * s->hidden;
        s->scores[edge] = s->halves ? mixed_dot(1, (const uint16_t *)s->head + token * s->hidden, state, s->hidden)
                                    : mixed_dot(0, (const float *)s->head + token * s->hidden, state, s->hidden);
    }
}

static void renormalise(const Scoring *s, int at) {
    double *scores = s->scores + s->edge_offsets[at], highest = -INFINITY, sum = 0.0;
    const int n = s->edge_offsets[at + 1] - s->edge_offsets[at];
    for (int i = 0; i < n; i++) highest = scores[i] > highest ? scores[i] : highest;
    for (int i = 0; i < n; i++) sum += exp(scores[i] - highest);
    const double shift = s->score[at] - highest - log(sum);
    for (int i = 0; i < n; i++) scores[i] += shift;
}

static void do_item(void *job, int phase, int item, int thread) {
    (void)thread;
    const Scoring *s = job;
    const int edges = s->edge_offsets[s->nodes], begin = item * EDGES;
    if (phase == 0) score(s, begin, begin + EDGES < edges ? begin + EDGES : edges);
    else
        for (int at = item * NODES; at < s->nodes && at < (item + 1) * NODES; at++) renormalise(s, at);
}

void espalier_score(const Scoring *scoring, Pool *pool) {
    const int edges = scoring->edge_offsets[scoring->nodes];
    const int items[] = {(edges + EDGES - 1) / EDGES, (scoring->nodes + NODES - 1) / NODES};
    run_phases(pool, do_item, (void *)scoring, 2, items);
}
