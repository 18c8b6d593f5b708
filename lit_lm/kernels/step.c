/* Generation on the CPU: new tokens through all blocks in one call, the next tokens of many rows or a whole prompt.
 *
 * All threads run `step` together; an `omp for` divides its iterations among the threads and waits for all of them.
 *
 * Shapes: N tokens, M tokens with logits, D d_model, H query heads, G key/value heads, K head size, F feed-forward
 * size, V vocabulary; B rows of the cache, S positions in it, a multiple of LANES.
 */

#include "project.h"

#ifdef _OPENMP
int omp_get_thread_num(void); /* not from omp.h, which some compilers install apart */
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#define AT_ONCE 1024 /* tokens that pass through all blocks together, which bounds the buffers */

typedef struct {
    const float *weight, *bias; /* (D), or (K) for heads; NULL if there is none */
} Norm;

typedef struct {
    Norm attention_norm, q_norm, k_norm, feed_forward_norm;
    Linear qkv, o, up, down; /* up: gate and up concatenated if the feed-forward is gated */
} Block;

typedef struct {
    int64_t num_layers, d_model, num_heads, kv_heads, head_size, d_ff;
    int64_t layernorm, gated, exact, threads; /* exact: GELU with erf, not tanh */
    float norm_eps;
    Linear embedding, head;
    Norm norm;
    const float *positions;           /* (context, D), or NULL */
    const float *rope_cos, *rope_sin; /* (context, K), or NULL */
    const Block *blocks;
} Model;

/* Normalize n rows xs (n, size) as RMSNorm or LayerNorm; outs may be xs. */
static void norm_rows(float *outs, const float *xs, const Norm *norm, int64_t n, int64_t size, int layernorm,
                      float eps) {
    for (int64_t row = 0; row < n; row++) {
        const float *x = xs + row * size;
        float *out = outs + row * size, mean = 0, square = 0;
        for (int64_t i = 0; i < size; i++) mean += x[i];
        mean = layernorm ? mean / size : 0;
        for (int64_t i = 0; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
        const float scale = 1 / sqrtf(square / size + eps);
        for (int64_t i = 0; i < size; i++)
            out[i] = (x[i] - mean) * scale * norm->weight[i] + (norm->bias ? norm->bias[i] : 0);
    }
}

static void normalize(float *outs, const float *xs, const Norm *norm, const Model *m, int64_t N) {
    const int64_t D = m->d_model;
    SHARED
    for (int64_t n = 0; n < N; n++) norm_rows(outs + n * D, xs + n * D, norm, 1, D, m->layernorm, m->norm_eps);
}

/* Rotate heads x (heads, K) in place by cos and sin (K) of their position. */
static void rotate(float *x, int64_t heads, int64_t K, const float *cos, const float *sin) {
    for (int64_t h = 0; h < heads; h++, x += K)
        for (int64_t i = 0; i < K / 2; i++) {
            const float first = x[i], second = x[i + K / 2];
            x[i] = first * cos[i] - second * sin[i];
            x[i + K / 2] = second * cos[i + K / 2] + first * sin[i + K / 2];
        }
}

/* y (K) = softmax(q k^T / sqrt(K)) v over S positions, k (S / LANES, K, LANES), v (S, K); scores (S / LANES). */
static void attend(float *restrict y, const float *restrict q, const float *restrict k, const float *restrict v,
                   Lanes *restrict scores, int64_t S, int64_t K) {
    const float scale = 1 / sqrtf(K);
    float *weight = (float *)scores, largest = -INFINITY, total = 0;
    for (int64_t s = 0; s < S; s += LANES) {
        Lanes score = {0};
        for (int64_t i = 0; i < K; i++) score += q[i] * *(const Lanes *)(k + s * K + i * LANES);
        scores[s / LANES] = score * scale;
    }
    for (int64_t s = 0; s < S; s++) largest = weight[s] > largest ? weight[s] : largest;
    for (int64_t s = 0; s < S; s++) total += weight[s] = expf(weight[s] - largest);
    memset(y, 0, K * sizeof(float));
    int64_t s = 0;
    for (; s + 4 <= S; s += 4) /* four at a time, to write y less often */
        for (int64_t i = 0; i < K; i++)
            y[i] += weight[s] * v[s * K + i] + weight[s + 1] * v[(s + 1) * K + i] +
                    weight[s + 2] * v[(s + 2) * K + i] + weight[s + 3] * v[(s + 3) * K + i];
    for (; s < S; s++)
        for (int64_t i = 0; i < K; i++) y[i] += weight[s] * v[s * K + i];
    for (int64_t i = 0; i < K; i++) y[i] /= total;
}

/* The cache, and the places of new tokens in it: token n belongs to row rows[n] of B at positions[n]. In each layer, a
 * row's keys are (G, S / LANES, K, LANES) and its values (G, S, K). */
typedef struct {
    float *keys, *values; /* (layers, B, G * S * K) */
    const int64_t *rows, *positions;
    int64_t B, S;
} Cache;

/* Memory for up to AT_ONCE tokens. It is not on the stack, where a long context would not fit. */
typedef struct {
    float *tiles, *x, *normed, *qkv, *y, *up, *hidden;
    Lanes *scores; /* (threads, S / LANES) */
} Buffers;

/* Write keys and values of the new tokens, from qkv (N, (H + 2G) K), to the cache; compute attention's output
 * y (N, H K). */
static void attention(const Buffers *buffers, const Cache *cache, int64_t layer, int64_t N, const Model *m) {
    const int64_t H = m->num_heads, G = m->kv_heads, K = m->head_size, S = cache->S;
    float *keys = cache->keys + layer * cache->B * G * S * K, *values = cache->values + layer * cache->B * G * S * K;
    float *y = buffers->y, *qkv = buffers->qkv;
    Lanes *scores = buffers->scores + omp_get_thread_num() * (S / LANES);
    SHARED
    for (int64_t n = 0; n < N; n++) {
        const int64_t s = cache->positions[n];
        float *all = qkv + n * (H + 2 * G) * K;
        const Block *block = m->blocks + layer;
        if (block->q_norm.weight) norm_rows(all, all, &block->q_norm, H, K, 0, m->norm_eps);
        if (block->k_norm.weight) norm_rows(all + H * K, all + H * K, &block->k_norm, G, K, 0, m->norm_eps);
        if (m->rope_cos) rotate(all, H + G, K, m->rope_cos + s * K, m->rope_sin + s * K);
        for (int64_t g = 0; g < G; g++) {
            const int64_t at = (cache->rows[n] * G + g) * S * K;
            float *key = keys + at + s / LANES * K * LANES + s % LANES;
            for (int64_t i = 0; i < K; i++) key[i * LANES] = all[(H + g) * K + i];
            memcpy(values + at + s * K, all + (H + G + g) * K, K * sizeof(float));
        }
    }
    SHARED
    for (int64_t nh = 0; nh < N * H; nh++) {
        const int64_t n = nh / H, h = nh % H, at = (cache->rows[n] * G + h / (H / G)) * S * K;
        attend(y + nh * K, qkv + (n * (H + 2 * G) + h) * K, keys + at, values + at, scores, cache->positions[n] + 1, K);
    }
}

/* Activation of the feed-forward: hidden (N, F) from up, which is (N, 2F) if gated, else (N, F). */
static void activate(float *restrict hidden, const float *restrict up, const Model *m, int64_t N) {
    const int64_t F = m->d_ff, width = m->gated ? 2 * F : F;
    SHARED
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < F; i++) {
            const float x = up[n * width + i];
            /* with -ffast-math, 1 / infinity is NaN */
            if (m->gated) hidden[n * F + i] = x / (1 + expf(x > -80 ? -x : 80)) * up[n * width + F + i];
            else if (m->exact) hidden[n * F + i] = 0.5f * x * (1 + erff(x * 0.7071067812f));
            else hidden[n * F + i] = 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
        }
}

/* Write N token ids, at most AT_ONCE, to the cache, and logits (M, V) for the last M. */
static void forward(const Model *m, const int64_t *ids, int64_t N, const Cache *cache, const Buffers *buffers,
                    float *logits, int64_t M) {
    const int64_t D = m->d_model;
    float *tiles = buffers->tiles, *x = buffers->x, *normed = buffers->normed;
    SHARED
    for (int64_t n = 0; n < N; n++) {
        embed(x + n * D, &m->embedding, ids[n]);
        for (int64_t i = 0; m->positions && i < D; i++) x[n * D + i] += m->positions[cache->positions[n] * D + i];
    }
    for (int64_t layer = 0; layer < m->num_layers; layer++) {
        const Block *block = m->blocks + layer;
        normalize(normed, x, &block->attention_norm, m, N);
        project(buffers->qkv, normed, &block->qkv, N, 0, tiles);
        attention(buffers, cache, layer, N, m);
        project(x, buffers->y, &block->o, N, 1, tiles);
        normalize(normed, x, &block->feed_forward_norm, m, N);
        project(buffers->up, normed, &block->up, N, 0, tiles);
        activate(buffers->hidden, buffers->up, m, N);
        project(x, buffers->hidden, &block->down, N, 1, tiles);
    }
    normalize(normed, x + (N - M) * D, &m->norm, m, M);
    project(logits, normed, &m->head, M, 0, tiles);
}

/* Divide one allocation among the buffers for up to N tokens and `threads` threads; tiles is NULL if memory runs out. */
static Buffers allocate(const Model *m, int64_t N, int64_t S, int64_t threads) {
    const int64_t D = m->d_model, HK = m->num_heads * m->head_size, F = m->d_ff;
    const int64_t QKV = HK + 2 * m->kv_heads * m->head_size, widest = larger(D, larger(HK, F));
    const int64_t room = rounded_up(N, 16) * (widest + DEPTH);
    const int64_t others = rounded_up(N * (2 * D + QKV + HK + 3 * F), LANES);
    float *tiles = NULL;
    Buffers b = {NULL};
    if (posix_memalign((void **)&tiles, sizeof(Lanes), (room + others + threads * S) * sizeof(float))) return b;
    b.tiles = tiles, b.x = tiles + room, b.normed = b.x + N * D, b.qkv = b.normed + N * D, b.y = b.qkv + N * QKV;
    b.up = b.y + N * HK, b.hidden = b.up + N * 2 * F, b.scores = (Lanes *)(tiles + room + others);
    return b;
}

/* Write N token ids to the cache, and logits (M, V) for the last M. Returns 0, or 1 if memory runs out. */
int step(const Model *m, const int64_t *ids, int64_t N, const Cache *cache, float *logits, int64_t M) {
    const int64_t threads = m->threads; /* once: a call from another thread may change it */
    const Buffers buffers = allocate(m, smaller(N, AT_ONCE), cache->S, threads);
    if (!buffers.tiles) return 1;
#pragma omp parallel num_threads(threads)
    {
#ifdef AMX
        set_tiles_up(N);
#endif
        for (int64_t first = 0; first < N; first += AT_ONCE) {
            const int64_t n = smaller(AT_ONCE, N - first), before = N - M - first; /* before: tokens without logits */
            Cache part = *cache;
            part.rows += first, part.positions += first;
            forward(m, ids + first, n, &part, &buffers, logits + larger(0, -before) * m->head.rows,
                    larger(0, n - larger(0, before)));
        }
#ifdef AMX
        if (has_tiles) _tile_release();
#endif
    }
    free(buffers.tiles);
    return 0;
}

#define PARTS 8 /* parts of a row of logits, so that threads can share a single row */
#define ROWS 64 /* rows that threads divide among themselves at once */

/* log(sum of sums * exp(largest)). Not inlined, because rounding would then depend on the number of rows. */
static __attribute__((noinline)) float log_sum(const float *largest, const float *sums) {
    float most = largest[0], sum = 0;
    for (int p = 1; p < PARTS; p++) most = largest[p] > most ? largest[p] : most;
    for (int p = 0; p < PARTS; p++) sum += sums[p] ? sums[p] * expf(largest[p] - most) : 0;
    return most + logf(sum);
}

/* totals (M): log(sum(exp(logits))) of each row of logits (M, V). */
void logsumexp(const float *logits, float *totals, int64_t M, int64_t V, int64_t threads) {
    float largest[ROWS * PARTS], sums[ROWS * PARTS];
    for (int64_t first = 0; first < M; first += ROWS) {
        const int64_t rows = smaller(ROWS, M - first);
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t part = 0; part < rows * PARTS; part++) {
            const int64_t from = part % PARTS * V / PARTS, size = (part % PARTS + 1) * V / PARTS - from;
            const float *row = logits + (first + part / PARTS) * V + from;
            float most = size ? row[0] : -INFINITY, sum = 0;
            for (int64_t i = 0; i < size; i++) most = row[i] > most ? row[i] : most;
            for (int64_t i = 0; i < size; i++) sum += expf(row[i] - most);
            largest[part] = most, sums[part] = sum;
        }
        for (int64_t m = 0; m < rows; m++) totals[first + m] = log_sum(largest + m * PARTS, sums + m * PARTS);
    }
}
