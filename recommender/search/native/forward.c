/* A pass over the model: nine phases a layer, and the norm of what is wanted.

   Of the last layer most tokens owe the others only their keys and values. So after these it goes on with
   the wanted rows alone, which then stand in `kept` one after the other. */
#include "attention.h"

typedef struct {
    const Model *model;
    const Reading *reading;
    float *hidden, *kept, *scale, *qkv, *mixed, *inner;
    int hidden_stride, qkv_stride, inner_stride, mixed_stride;
    Attention attention;
} Pass;

enum { SCALE, QKV, ROTATE, TURN, ATTEND, OUT, SCALE_AGAIN, GATE_UP, DOWN };
#define TOKENS 16 /* of an item, where a token is little work */

static const Layer *layer_of(const Pass *pass, int phase) { return pass->model->layer + (phase - 1) / PHASES; }

/* Whether a phase sees the wanted rows alone. */
static int is_last(const Pass *p, int phase) {
    return (phase - 1) / PHASES == p->model->layers - 1 && (phase - 1) % PHASES >= ATTEND;
}

static int rows_of(const Pass *p, int phase) { return is_last(p, phase) ? p->reading->wanted : p->reading->tokens; }

static float *hidden_of(const Pass *p, int phase) { return is_last(p, phase) ? p->kept : p->hidden; }

static Product product_of(const Pass *p, int phase, int kind) {
    const Model *m = p->model;
    const Layer *layer = layer_of(p, phase);
    const int rows = rows_of(p, phase);
    float *hidden = hidden_of(p, phase);
    switch (kind) {
    case QKV:
        return (Product){hidden, layer->qkv, layer->qkv_bias, p->scale, p->qkv, m->hidden, rows,
                         p->qkv_stride, p->hidden_stride, p->qkv_stride, STORE};
    case OUT:
        return (Product){p->mixed, layer->o, layer->o_bias, NULL, hidden, m->heads * m->head_dim, rows,
                         p->hidden_stride, p->mixed_stride, p->hidden_stride, ADD};
    case GATE_UP:
        return (Product){hidden, layer->gate_up, NULL, p->scale, p->inner, m->hidden, rows,
                         2 * p->inner_stride, p->hidden_stride, p->inner_stride, GATE};
    default:
        return (Product){p->inner, layer->down, NULL, NULL, hidden, p->inner_stride, rows,
                         p->hidden_stride, p->inner_stride, p->hidden_stride, ADD};
    }
}

static float inverse_rms(const float *x, int n, float epsilon) { return 1.0f / sqrtf(dot(x, x, n) / n + epsilon); }

/* Rotary embedding, the halves of a head being the pairs (Hugging Face's layout), after Qwen3's norm. */
static void rotate(const Pass *p, int token, float *head, const float *gain) {
    const int width = p->model->head_dim, half = width / 2;
    if (gain) {
        const float scale = inverse_rms(head, width, p->model->epsilon);
        for (int i = 0; i < width; i++) head[i] *= scale * gain[i];
    }
    const float *cosine = p->reading->cosine + (ptrdiff_t)p->reading->position[token] * half;
    const float *sine = p->reading->sine + (ptrdiff_t)p->reading->position[token] * half;
    for (int i = 0; i < half; i++) {
        const float first = head[i], second = head[i + half];
        head[i] = first * cosine[i] - second * sine[i];
        head[i + half] = second * cosine[i] + first * sine[i];
    }
}

static void rotate_and_keep(const Pass *p, int layer, int token) {
    const Model *m = p->model;
    const int width = m->head_dim;
    const float *gains = m->layer[layer].qk_norm;
    float *row = p->qkv + (ptrdiff_t)token * p->qkv_stride;
    for (int head = 0; head < m->heads + m->kv_heads; head++)
        rotate(p, token, row + head * width, gains ? gains + head * width : NULL);
    const int64_t at = (int64_t)p->reading->column[token] * width;
    const float *keys = row + m->heads * width, *values = keys + m->kv_heads * width;
    for (int head = 0; head < m->kv_heads; head++) {
        memcpy(plane(m, p->reading, p->reading->slot[token], layer, 0, head) + at, keys + head * width, width * sizeof(float));
        memcpy(plane(m, p->reading, p->reading->slot[token], layer, 1, head) + at, values + head * width, width * sizeof(float));
    }
}

static void embed(const Pass *p, int token) {
    const int hidden = p->model->hidden;
    float *row = p->hidden + (ptrdiff_t)token * p->hidden_stride;
    memcpy(row, p->model->embedding + (ptrdiff_t)p->reading->token[token] * hidden, hidden * sizeof(float));
    memset(row + hidden, 0, (p->hidden_stride - hidden) * sizeof(float));
}

static void give(const Pass *p, int wanted) {
    const int hidden = p->model->hidden;
    const float *row = p->kept + (ptrdiff_t)wanted * p->hidden_stride;
    const float scale = inverse_rms(row, hidden, p->model->epsilon);
    float *out = p->reading->out + (ptrdiff_t)wanted * hidden;
    for (int i = 0; i < hidden; i++) out[i] = row[i] * scale * p->model->norm[i];
}

/* Attention of one token and one key/value head. */
static void attend_item(const Pass *p, int phase, int item, int thread) {
    const int layer = (phase - 1) / PHASES, row = item / p->model->kv_heads, head = item % p->model->kv_heads;
    if (!is_last(p, phase)) return attend(&p->attention, layer, row, row, head, thread);
    const int token = p->reading->wanted_rows[row];
    const size_t stride = p->hidden_stride;
    if (head == 0) memcpy(p->kept + row * stride, p->hidden + token * stride, stride * sizeof(float));
    attend(&p->attention, layer, token, row, head, thread);
}

/* Phase 0 embeds, the last one gives what is wanted, and PHASES for each layer lie between. */
static void do_item(void *job, int phase, int item, int thread) {
    const Pass *p = job;
    const int last = 1 + p->model->layers * PHASES;
    const int count = phase == last ? p->reading->wanted : rows_of(p, phase);
    const int begin = item * TOKENS, stop = begin + TOKENS < count ? begin + TOKENS : count;
    if (phase == 0 || phase == last) {
        for (int i = begin; i < stop; i++) phase ? give(p, i) : embed(p, i);
        return;
    }
    const int layer = (phase - 1) / PHASES, kind = (phase - 1) % PHASES;
    if (kind == SCALE || kind == SCALE_AGAIN) {
        const float *hidden = hidden_of(p, phase);
        for (int i = begin; i < stop; i++)
            p->scale[i] = inverse_rms(hidden + (ptrdiff_t)i * p->hidden_stride, p->model->hidden, p->model->epsilon);
    } else if (kind == ROTATE) {
        for (int i = begin; i < stop; i++) rotate_and_keep(p, layer, i);
    } else if (kind == TURN) {
        turn_keys(&p->attention, layer, item);
    } else if (kind == ATTEND) {
        attend_item(p, phase, item, thread);
    } else {
        const Product product = product_of(p, phase, kind);
        product_item(&product, item);
    }
}

/* How many items a phase has. */
static int items_of(const Pass *p, int phase) {
    const int last = 1 + p->model->layers * PHASES;
    const int rows = phase == last ? p->reading->wanted : rows_of(p, phase);
    if (phase == 0 || phase == last) return (rows + TOKENS - 1) / TOKENS;
    const int kind = (phase - 1) % PHASES;
    switch (kind) {
    case SCALE:
    case SCALE_AGAIN:
    case ROTATE: return (rows + TOKENS - 1) / TOKENS;
    case TURN: return p->attention.runs * p->model->kv_heads;
    case ATTEND: return rows * p->model->kv_heads;
    default: {
        const Product product = product_of(p, phase, kind);
        return product_items(&product);
    }
    }
}

/* Reads the tokens. Returns 0, or 1 if memory is short: nothing was read then. */
int espalier_read(const Model *m, const Reading *r, Pool *pool) {
    const size_t tokens = r->tokens;
    Pass p = {.model = m, .reading = r};
    p.hidden_stride = PADDED(m->hidden, PANEL);
    p.qkv_stride = PADDED((m->heads + 2 * m->kv_heads) * m->head_dim, PANEL);
    p.mixed_stride = m->heads * m->head_dim;
    p.inner_stride = PADDED(m->inner, LANES);
    p.hidden = floats(tokens * p.hidden_stride), p.kept = floats((size_t)r->wanted * p.hidden_stride), p.qkv = floats(tokens * p.qkv_stride);
    p.mixed = floats(tokens * p.mixed_stride), p.inner = floats(tokens * p.inner_stride);
    p.scale = floats(tokens);
    p.attention = (Attention){.model = m, .reading = r, .qkv = p.qkv, .mixed = p.mixed,
                              .qkv_stride = p.qkv_stride, .mixed_stride = p.mixed_stride};
    const int phases = 2 + m->layers * PHASES;
    int *items = malloc(phases * sizeof *items);
    const int whole = prepare(&p.attention, espalier_threads(pool)) && p.hidden && p.kept && p.qkv && p.mixed &&
                      p.inner && p.scale && items;
    if (whole) {
        for (int phase = 0; phase < phases; phase++) items[phase] = items_of(&p, phase);
        run_phases(pool, do_item, &p, phases, items);
    }
    release(&p.attention);
    free(p.hidden), free(p.kept), free(p.qkv), free(p.mixed), free(p.inner), free(p.scale), free(items);
    return !whole;
}

/* Packs a weight (rows, depth), scaled by `gain` (depth) if there is one, into panels of PANEL rows:
   (panel, k, row). Rows and depth are padded with zeros. */
void espalier_pack(const float *weight, const float *gain, int rows, int depth, int padded_depth, float *packed) {
    for (int64_t panel = 0; panel < PADDED(rows, PANEL) / PANEL; panel++)
        for (int k = 0; k < padded_depth; k++)
            for (int i = 0; i < PANEL; i++) {
                const int64_t row = panel * PANEL + i;
                const int inside = row < rows && k < depth;
                packed[(panel * padded_depth + k) * PANEL + i] =
                    inside ? weight[row * depth + k] * (gain ? gain[k] : 1.0f) : 0.0f;
            }
}

int espalier_lanes(void) { return LANES; }
