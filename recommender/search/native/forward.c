/* A pass over the model: nine phases a layer, and the norm of what is wanted.

   Of the last layer most tokens owe the others only their keys and values. So after these (and queries that
   nobody asks, which would cost more to leave out) it goes on with the wanted rows alone, which then stand in
   `kept` one after the other. */
#include "attention.h"

typedef struct {
    const Model *model;
    const Reading *reading;
    float *hidden, *kept, *normed, *qkv, *mixed, *inner;
    int hidden_stride, qkv_stride, inner_stride, mixed_stride;
    Attention attention;
} Pass;

enum { NORM, QKV, ROTATE, TURN, ATTEND, OUT, NORM_AGAIN, GATE_UP, DOWN };
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
    Product made = {.halves = m->halves, .rows = rows_of(p, phase)};
    switch (kind) {
    case QKV:
        made.a = p->normed, made.a_stride = p->hidden_stride, made.depth = m->hidden;
        made.packed = layer->qkv, made.bias = layer->qkv_bias, made.columns = p->qkv_stride;
        made.out = p->qkv, made.out_stride = p->qkv_stride, made.then = STORE;
        return made;
    case OUT:
        made.a = p->mixed, made.a_stride = p->mixed_stride, made.depth = p->mixed_stride;
        made.packed = layer->o, made.bias = layer->o_bias, made.columns = p->hidden_stride;
        break;
    case GATE_UP:
        made.a = p->normed, made.a_stride = p->hidden_stride, made.depth = m->hidden;
        made.packed = layer->gate_up, made.columns = 2 * p->inner_stride;
        made.out = p->inner, made.out_stride = p->inner_stride, made.then = GATE;
        return made;
    default:
        made.a = p->inner, made.a_stride = p->inner_stride, made.depth = p->inner_stride;
        made.packed = layer->down, made.columns = p->hidden_stride;
    }
    made.out = hidden_of(p, phase), made.out_stride = p->hidden_stride, made.then = ADD;
    return made;
}

static float inverse_rms(const float *x, int n, float epsilon) { return 1.0f / sqrtf(dot(x, x, n) / n + epsilon); }

static void norm(const Model *m, const float *row, const float *gain, float *out) {
    const float scale = inverse_rms(row, m->hidden, m->epsilon);
    for (int i = 0; i < m->hidden; i++) out[i] = row[i] * scale * gain[i];
}

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
    const ptrdiff_t from = (ptrdiff_t)p->reading->token[token] * hidden;
    float *row = p->hidden + (ptrdiff_t)token * p->hidden_stride;
    if (p->model->halves)
        for (int i = 0; i < hidden; i++) row[i] = whole(((const uint16_t *)p->model->embedding)[from + i]);
    else memcpy(row, (const float *)p->model->embedding + from, hidden * sizeof(float));
    memset(row + hidden, 0, (p->hidden_stride - hidden) * sizeof(float));
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
        for (int i = begin; i < stop; i++)
            if (phase == 0) embed(p, i);
            else
                norm(p->model, p->kept + (ptrdiff_t)i * p->hidden_stride, p->model->norm,
                     p->reading->out + (ptrdiff_t)i * p->model->hidden);
        return;
    }
    const int index = (phase - 1) / PHASES, kind = (phase - 1) % PHASES;
    if (kind == NORM || kind == NORM_AGAIN) {
        const Layer *layer = layer_of(p, phase);
        const float *hidden = hidden_of(p, phase), *gain = kind == NORM ? layer->input_norm : layer->mlp_norm;
        for (int i = begin; i < stop; i++) {
            const ptrdiff_t row = (ptrdiff_t)i * p->hidden_stride;
            norm(p->model, hidden + row, gain, p->normed + row);
        }
    } else if (kind == ROTATE) {
        for (int i = begin; i < stop; i++) rotate_and_keep(p, index, i);
    } else if (kind == TURN) {
        turn_keys(&p->attention, index, item);
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
    case NORM:
    case NORM_AGAIN:
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
    p.hidden = floats(tokens * p.hidden_stride), p.normed = floats(tokens * p.hidden_stride);
    p.kept = floats((size_t)r->wanted * p.hidden_stride), p.qkv = floats(tokens * p.qkv_stride);
    p.mixed = floats(tokens * p.mixed_stride), p.inner = floats(tokens * p.inner_stride);
    p.attention = (Attention){.model = m, .reading = r, .qkv = p.qkv, .mixed = p.mixed,
                              .qkv_stride = p.qkv_stride, .mixed_stride = p.mixed_stride};
    const int phases = 2 + m->layers * PHASES;
    int *items = malloc(phases * sizeof *items);
    const int enough = prepare(&p.attention, espalier_threads(pool)) && p.hidden && p.kept && p.qkv && p.mixed &&
                      p.inner && p.normed && items;
    if (enough) {
        for (int phase = 0; phase < phases; phase++) items[phase] = items_of(&p, phase);
        run_phases(pool, do_item, &p, phases, items);
    }
    release(&p.attention);
    free(p.hidden), free(p.kept), free(p.qkv), free(p.mixed), free(p.inner), free(p.normed), free(items);
    return !enough;
}

/* Packs a weight (rows, depth) into panels of PANEL rows: (panel, k, row). With `halves` a word is row i's
   bfloat16 and above it that of row i + LANES; no weight may lose by it. Rows and depth are padded with zeros. */
void espalier_pack(const float *weight, int rows, int depth, int padded_depth, int halves, void *packed) {
    for (int64_t panel = 0; panel < PADDED(rows, PANEL) / PANEL; panel++)
        for (int k = 0; k < padded_depth; k++)
            for (int i = 0; i < PANEL; i++) {
                const int64_t row = panel * PANEL + i, at = panel * padded_depth + k;
                const float value = row < rows && k < depth ? weight[row * depth + k] : 0.0f;
                if (halves) {
                    uint16_t words[2];
                    memcpy(words, &value, sizeof words);
                    ((uint16_t *)packed)[at * PANEL + i % LANES * 2 + i / LANES] = words[1];
                } else {
                    ((float *)packed)[at * PANEL + i] = value;
                }
            }
}

int espalier_lanes(void) { return LANES; }
