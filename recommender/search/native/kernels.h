/* What Python hands over (`library.py` declares the same structures for ctypes), and what the parts share.

   Shapes: T tokens, H hidden, D head_dim, N query heads, K key/value heads, F intermediate, W wanted rows,
   S nodes, E their children, C columns of a slot. Matrices that are not packed stand row by row. */
#ifndef ESPALIER_KERNELS_H
#define ESPALIER_KERNELS_H

#include <stdint.h>

/* Floats of a vector, and the rows whose sums fit the registers beside the weights. */
#if defined(__AVX512F__)
#define LANES 16
#define TILE_ROWS 12
#elif defined(__AVX2__)
#define LANES 8
#define TILE_ROWS 6
#else
#define LANES 4
#define TILE_ROWS 8
#endif
#define PANEL (2 * LANES) /* columns of a packed weight that stand together */
#define PHASES 9 /* of a layer */
#define PADDED(n, to) (((n) + (to) - 1) / (to) * (to))

/* One decoder layer. Matrices are packed (`espalier_pack`). */
typedef struct {
    const float *input_norm;  /* (H) gains */
    const void *qkv;          /* H -> (N + 2 K) D */
    const float *qkv_bias;    /* padded to whole panels, or null */
    const float *qk_norm;     /* ((N + K) D) gains of Qwen3's norms, or null */
    const void *o;            /* N D -> H */
    const float *o_bias;      /* as qkv_bias */
    const float *mlp_norm;    /* (H) gains */
    const void *gate_up;      /* H -> 2 F: in each panel LANES gates, then their ups */
    const void *down;         /* F, padded to LANES, -> H */
} Layer;

/* `halves`: all matrices are bfloat16, whose products are float32 all the same. */
typedef struct {
    int32_t hidden, heads, kv_heads, head_dim, inner, layers, halves;
    float epsilon;
    const void *embedding; /* (V, H) */
    const float *norm;     /* (H) */
    const Layer *layer;
} Model;

/* Tokens to read, those of a slot one after the other. A token at column c of its slot sees the columns before `prefix`, and c, above(c),
   above(above(c)), … as long as those are not among them. Its keys and values go to c. */
typedef struct {
    int32_t tokens, wanted;
    const int32_t *token, *position, *slot, *column, *prefix; /* (T) each */
    const int32_t *wanted_rows;                               /* (W) rows of T, ascending */
    const int32_t *above;                                     /* (slots, C) */
    float *kv;                                                /* (slots, 2 · layers, K, C, D) */
    int64_t columns;                                          /* C */
    const float *cosine, *sine;                               /* (positions, D / 2) */
    float *out;                                               /* (W, H) normed hidden states */
} Reading;

/* Nodes whose children are to be scored. */
typedef struct {
    int32_t nodes, hidden, halves;
    const int32_t *node, *edge_offsets;  /* (S); (S + 1) where each node's children stand among E */
    const int32_t *child_offsets, *label_offsets, *label_tokens; /* the trie's */
    const void *head;                    /* (V, H), bfloat16 if `halves` */
    const float *states;                 /* (S, H) */
    const double *score;                 /* (S) log-probability of each node */
    int32_t *children;                   /* (E) out */
    double *scores;                      /* (E) out */
} Scoring;

typedef struct Pool Pool;
/* Does item number `item` of a phase, on thread number `thread` of `espalier_threads`. */
typedef void (*Work)(void *job, int phase, int item, int thread);

/* A pool for models of so many layers, or null if memory is short. One caller at a time. */
Pool *espalier_pool(int threads, int layers);
void espalier_close_pool(Pool *pool);
int espalier_threads(const Pool *pool);
/* Runs the phases one after the other, the items of each in any order on any thread. */
void run_phases(Pool *pool, Work work, void *job, int phases, const int *items);

#endif
