/* One decoding step on the CPU: the next token of each row through all blocks, in one call.
 *
 * Weights are float32, bfloat16 or int8 with a scale for each output; arithmetic is float32, but for many rows where
 * the processor multiplies bfloat16 (project_many_bfloat16). A token of a small model takes as long as its weights take
 * to come from memory, so they are read once for all rows, and in order: four rows of a matrix side by side would come
 * at a quarter of the speed.
 *
 * Shapes: B rows, D d_model, H query heads, G key/value heads, K head size, S context length, V vocabulary.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define LANES 16     /* rows that go through a matrix together */
#define OUTPUTS 8    /* outputs computed together, so that their sums do not wait for one another */
#define MANY_ROWS 4  /* from here on it pays to take LANES rows through a matrix together */
#define SMALL 20000  /* weights that one thread is done with sooner than several have met */
#define PARALLEL _Pragma("omp parallel for schedule(static) num_threads(threads)")

enum { FLOAT32, BFLOAT16, INT8 };

static const int64_t SIZE[] = {4, 2, 1};

typedef struct {
    const void *weight; /* (rows, cols) */
    const float *scale; /* (rows), for INT8 */
    const float *bias;  /* (rows) or NULL */
    int64_t type, rows, cols;
} Linear;

typedef struct {
    const float *weight, *bias; /* (D); no bias: NULL */
} Norm;

typedef struct {
    Norm attention_norm, feed_forward_norm;
    Linear qkv, o, up, down; /* up: gate and up one after the other where the feed-forward is gated */
} Block;

typedef struct {
    int64_t num_layers, d_model, num_heads, kv_heads, head_size, d_ff, context_length;
    int64_t layernorm, gated, threads;
    float norm_eps;
    Linear embedding, head;
    Norm norm;
    const float *positions;           /* (S, D), or NULL */
    const float *rope_cos, *rope_sin; /* (S, K), or NULL */
    const Block *blocks;
} Model;

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline float bfloat16(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* A row of weights as float32, without its scale. */
static void row_as_float(float *out, const Linear *w, int64_t row) {
    const int64_t cols = w->cols, at = row * cols;
    if (w->type == FLOAT32)
        memcpy(out, (const float *)w->weight + at, cols * sizeof(float));
    else if (w->type == BFLOAT16)
        for (int64_t i = 0; i < cols; i++) out[i] = bfloat16(((const uint16_t *)w->weight)[at + i]);
    else
        for (int64_t i = 0; i < cols; i++) out[i] = ((const int8_t *)w->weight)[at + i];
}

/* A row of weights times x. */
static float dot(const Linear *w, int64_t row, const float *x) {
    const int64_t cols = w->cols, at = row * cols;
    float sum = 0;
    if (w->type == FLOAT32)
        for (int64_t i = 0; i < cols; i++) sum += ((const float *)w->weight)[at + i] * x[i];
    else if (w->type == BFLOAT16)
        for (int64_t i = 0; i < cols; i++) sum += bfloat16(((const uint16_t *)w->weight)[at + i]) * x[i];
    else
        for (int64_t i = 0; i < cols; i++) sum += ((const int8_t *)w->weight)[at + i] * x[i];
    return sum;
}

/* out (B, rows) = x (B, cols) w^T + bias: each row of weights against each x. */
static void project_few(float *out, const float *x, const Linear *w, int64_t B, int threads) {
    PARALLEL
    for (int64_t row = 0; row < w->rows; row++)
        for (int64_t b = 0; b < B; b++)
            out[b * w->rows + row] = dot(w, row, x + b * w->cols) * (w->scale ? w->scale[row] : 1) +
                                     (w->bias ? w->bias[row] : 0);
}

/* The sums of OUTPUTS outputs from `row` for LANES rows from `first`, as far as there are so many, into out. */
static inline void store(float *out, Lanes *sums, const Linear *w, int64_t row, int64_t first, int64_t B) {
    const int64_t outputs = smaller(OUTPUTS, w->rows - row), lanes = smaller(LANES, B - first);
    for (int64_t r = 0; r < outputs; r++)
        sums[r] = sums[r] * (w->scale ? w->scale[row + r] : 1) + (w->bias ? w->bias[row + r] : 0);
    for (int64_t b = 0; b < lanes; b++)
        for (int64_t r = 0; r < outputs; r++) out[(first + b) * w->rows + row + r] = sums[r][b];
}

/* The same, LANES of B at a time, so that a weight once read serves them all. lanes is room for x as
 * (groups, cols, LANES). */
static void project_many(float *out, const float *x, const Linear *w, int64_t B, int threads, Lanes *lanes) {
    const int64_t cols = w->cols, groups = (B + LANES - 1) / LANES, size = SIZE[w->type];
    memset(lanes, 0, groups * cols * sizeof(Lanes));
    PARALLEL
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < cols; i++) /* as a float: another thread writes its neighbour in the vector */
            ((float *)(lanes + b / LANES * cols + i))[b % LANES] = x[b * cols + i];
    PARALLEL
    for (int64_t row = 0; row < w->rows; row += OUTPUTS) {
        float rows[OUTPUTS][cols];
        const char *next = (const char *)w->weight + (row + OUTPUTS) * cols * size;
        for (int64_t r = 0; r < OUTPUTS; r++) row_as_float(rows[r], w, smaller(row + r, w->rows - 1));
        for (int64_t group = 0; group < groups; group++) {
            const Lanes *in = lanes + group * cols;
            Lanes sums[OUTPUTS] = {0};
            for (int64_t i = 0; i < cols; i++) {
                __builtin_prefetch(next + i * OUTPUTS * size);
                for (int r = 0; r < OUTPUTS; r++) sums[r] += rows[r][i] * in[i];
            }
            store(out, sums, w, row, group * LANES, B);
        }
    }
}

#ifdef __AVX512BF16__
static inline uint16_t as_bfloat16(float value) { /* to the nearest, to even in the middle */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static inline __m512bh two_everywhere(const uint16_t *pair) {
    int32_t both;
    memcpy(&both, pair, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

/* A row of BFLOAT16 or INT8 weights as bfloat16, which holds both exactly, without its scale. */
static void row_as_bfloat16(uint16_t *out, const Linear *w, int64_t row) {
    const int64_t cols = w->cols, at = row * cols;
    if (w->type == BFLOAT16)
        memcpy(out, (const uint16_t *)w->weight + at, cols * sizeof(uint16_t));
    else
        for (int64_t i = 0; i < cols; i++) out[i] = as_bfloat16(((const int8_t *)w->weight)[at + i]);
}

/* project_many with x rounded to bfloat16, which the processor multiplies two at a time: lanes is room for x as
 * (groups, pairs, LANES, 2). */
static void project_many_bfloat16(float *out, const float *x, const Linear *w, int64_t B, int threads,
                                  __m512i *lanes) {
    const int64_t cols = w->cols, pairs = (cols + 1) / 2, groups = (B + LANES - 1) / LANES, size = SIZE[w->type];
    memset(lanes, 0, groups * pairs * 64);
    PARALLEL
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < cols; i++)
            ((uint16_t *)(lanes + b / LANES * pairs + i / 2))[b % LANES * 2 + i % 2] = as_bfloat16(x[b * cols + i]);
    PARALLEL
    for (int64_t row = 0; row < w->rows; row += OUTPUTS) {
        uint16_t rows[OUTPUTS][2 * pairs];
        const char *next = (const char *)w->weight + (row + OUTPUTS) * cols * size;
        for (int64_t r = 0; r < OUTPUTS; r++) {
            rows[r][2 * pairs - 1] = 0;
            row_as_bfloat16(rows[r], w, smaller(row + r, w->rows - 1));
        }
        for (int64_t group = 0; group < groups; group++) {
            const __m512i *in = lanes + group * pairs;
            __m512 sums[OUTPUTS] = {0};
            for (int64_t i = 0; i < pairs; i++) {
                __builtin_prefetch(next + 2 * i * OUTPUTS * size);
                for (int r = 0; r < OUTPUTS; r++)
                    sums[r] = _mm512_dpbf16_ps(sums[r], (__m512bh)in[i], two_everywhere(rows[r] + 2 * i));
            }
            store(out, (Lanes *)sums, w, row, group * LANES, B);
        }
    }
}
#endif

static void project(float *out, const float *x, const Linear *w, int64_t B, const Model *m, Lanes *lanes) {
    const int threads = w->rows * w->cols < SMALL ? 1 : m->threads;
    if (B < MANY_ROWS) project_few(out, x, w, B, threads);
#ifdef __AVX512BF16__
    else if (w->type != FLOAT32) project_many_bfloat16(out, x, w, B, threads, (__m512i *)lanes);
#endif
    else project_many(out, x, w, B, threads, lanes);
}

/* Threads for work on each row: for few rows it is done before threads have met. */
static int row_threads(const Model *m, int64_t B) { return B < MANY_ROWS ? 1 : m->threads; }

static void normalize(float *outs, const float *xs, const Norm *norm, const Model *m, int64_t B) {
    const int64_t D = m->d_model;
    const int threads = row_threads(m, B);
    PARALLEL
    for (int64_t b = 0; b < B; b++) {
        const float *x = xs + b * D;
        float *out = outs + b * D, mean = 0, square = 0;
        for (int64_t i = 0; i < D; i++) mean += x[i];
        mean = m->layernorm ? mean / D : 0;
        for (int64_t i = 0; i < D; i++) square += (x[i] - mean) * (x[i] - mean);
        const float scale = 1 / sqrtf(square / D + m->norm_eps);
        for (int64_t i = 0; i < D; i++)
            out[i] = (x[i] - mean) * scale * norm->weight[i] + (norm->bias ? norm->bias[i] : 0);
    }
}

/* Turn heads x (heads, K) in place by their position's angles, cos and sin (K). */
static void rotate(float *x, int64_t heads, int64_t K, const float *cos, const float *sin) {
    for (int64_t h = 0; h < heads; h++, x += K)
        for (int64_t i = 0; i < K / 2; i++) {
            const float first = x[i], second = x[i + K / 2];
            x[i] = first * cos[i] - second * sin[i];
            x[i + K / 2] = second * cos[i + K / 2] + first * sin[i + K / 2];
        }
}

/* y (K) = softmax(q k^T / sqrt(K)) v over S positions k, v (S, K). */
static void attend(float *restrict y, const float *restrict q, const float *restrict k, const float *restrict v,
                   int64_t S, int64_t K) {
    const float scale = 1 / sqrtf(K);
    float weights[S], largest = -INFINITY, total = 0;
    for (int64_t s = 0; s < S; s++) {
        float score = 0;
        for (int64_t i = 0; i < K; i++) score += q[i] * k[s * K + i];
        weights[s] = score * scale;
        if (weights[s] > largest) largest = weights[s];
    }
    for (int64_t s = 0; s < S; s++) total += weights[s] = expf(weights[s] - largest);
    memset(y, 0, K * sizeof(float));
    for (int64_t s = 0; s < S; s++) {
        const float weight = weights[s] / total;
        for (int64_t i = 0; i < K; i++) y[i] += weight * v[s * K + i];
    }
}

/* Queries, keys and values qkv (B, (H + 2G) K) of the new positions: keys and values into the cache of this layer
 * (B, G, S, K), then y (B, H K). */
static void attention(float *y, float *qkv, float *keys, float *values, const int64_t *positions, int64_t B,
                      const Model *m) {
    const int64_t H = m->num_heads, G = m->kv_heads, K = m->head_size, S = m->context_length;
    int threads = row_threads(m, B);
    PARALLEL
    for (int64_t b = 0; b < B; b++) {
        float *row = qkv + b * (H + 2 * G) * K;
        if (m->rope_cos) rotate(row, H + G, K, m->rope_cos + positions[b] * K, m->rope_sin + positions[b] * K);
        for (int64_t g = 0; g < G; g++) {
            const int64_t at = ((b * G + g) * S + positions[b]) * K;
            memcpy(keys + at, row + (H + g) * K, K * sizeof(float));
            memcpy(values + at, row + (H + G + g) * K, K * sizeof(float));
        }
    }
    threads = m->threads;
    PARALLEL
    for (int64_t bh = 0; bh < B * H; bh++) {
        const int64_t b = bh / H, h = bh % H, at = (b * G + h / (H / G)) * S * K;
        attend(y + bh * K, qkv + (b * (H + 2 * G) + h) * K, keys + at, values + at, positions[b] + 1, K);
    }
}

/* Between the feed-forward's matrices: hidden (B, F) from up (B, 2F) where it is gated, else from up (B, F). */
static void activate(float *hidden, const float *up, const Model *m, int64_t B) {
    const int64_t F = m->d_ff, width = m->gated ? 2 * F : F;
    const int threads = row_threads(m, B);
    PARALLEL
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < F; i++) {
            const float x = up[b * width + i];
            /* in fast mathematics 1 / infinity is not a number */
            if (m->gated) hidden[b * F + i] = x / (1 + expf(x > -80 ? -x : 80)) * up[b * width + F + i];
            else hidden[b * F + i] = 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
        }
}

static void add(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

/* logits (V) from the normed residual stream x (D) of one token. */
void head(const Model *m, const float *x, float *logits) { project_few(logits, x, &m->head, 1, m->threads); }

/* logits (B, V) after token ids (B) at positions (B), which join keys and values (layers, B, G, S, K).
 * Returns 0, or 1 if memory is short. */
int step(const Model *m, const int64_t *ids, const int64_t *positions, float *keys, float *values, float *logits,
         int64_t B) {
    const int64_t D = m->d_model, HK = m->num_heads * m->head_size, GK = m->kv_heads * m->head_size, F = m->d_ff;
    const int64_t widest = D > F ? D : F, groups = (B + LANES - 1) / LANES;
    Lanes *lanes = NULL; /* room for all that follows */
    if (posix_memalign((void **)&lanes, sizeof(Lanes),
                       groups * widest * sizeof(Lanes) + B * (2 * D + 2 * HK + 2 * GK + 3 * F) * sizeof(float)))
        return 1;
    float *x = (float *)(lanes + groups * widest), *normed = x + B * D, *qkv = normed + B * D;
    float *y = qkv + B * (HK + 2 * GK), *up = y + B * HK, *hidden = up + B * 2 * F;
    for (int64_t b = 0; b < B; b++) {
        row_as_float(x + b * D, &m->embedding, ids[b]);
        if (m->embedding.scale)
            for (int64_t i = 0; i < D; i++) x[b * D + i] *= m->embedding.scale[ids[b]];
        if (m->positions) add(x + b * D, m->positions + positions[b] * D, D);
    }
    for (int64_t layer = 0; layer < m->num_layers; layer++) {
        const Block *block = m->blocks + layer;
        const int64_t at = layer * B * GK * m->context_length;
        normalize(normed, x, &block->attention_norm, m, B);
        project(qkv, normed, &block->qkv, B, m, lanes);
        attention(y, qkv, keys + at, values + at, positions, B, m);
        project(normed, y, &block->o, B, m, lanes);
        add(x, normed, B * D);
        normalize(normed, x, &block->feed_forward_norm, m, B);
        project(up, normed, &block->up, B, m, lanes);
        activate(hidden, up, m, B);
        project(normed, hidden, &block->down, B, m, lanes);
        add(x, normed, B * D);
    }
    normalize(normed, x, &m->norm, m, B);
    project(logits, normed, &m->head, B, m, lanes);
    free(lanes);
    return 0;
}
