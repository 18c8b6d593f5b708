/* Causal attention on the CPU for training, forward and backward: y = dropout(softmax(q k^T / sqrt(K))) v, optionally
 * within documents.
 *
 * Arithmetic is float32. A thread computes all query heads of one key/value head of one row of the batch, with the
 * scores of QUERIES queries in memory at a time, so the results do not depend on the number of threads. The backward
 * pass computes the scores again.
 *
 * Compiled without -ffast-math: infinities and NaN pass through, for the training loop to see.
 *
 * Shapes: B rows, H query heads, G key/value heads, T tokens, K head size. In memory of its own, a head is (T, K) with
 * T rounded up to QUERIES and K to LANES, and zeros as padding.
 */

#include "lanes.h"

#define QUERIES 32
#define ROWS (LANES == 16 ? 8 : 4) /* rows of a product that are computed together: sums fill half of the registers */
#define GOLDEN 0x9e3779b9u

typedef uint32_t Bits __attribute__((vector_size(LANES * sizeof(uint32_t)), may_alias));

typedef struct {
    int64_t B, H, G, T, K, bfloat16, threads, seed;
    float dropout;
    const int64_t *starts; /* (B, T): first key of each query, non-decreasing in a row; NULL: 0 */
} Task;

typedef struct { /* (B, H or G, T, K), in float32 or bfloat16; strides in elements, the last is 1 */
    char *data;
    int64_t row, head, token;
} Heads;

/* ---- Reading and writing ---- */

static char *token_at(const Task *task, const Heads *x, int64_t b, int64_t h, int64_t t) {
    return x->data + (b * x->row + h * x->head + t * x->token) * (task->bfloat16 ? 2 : 4);
}

static void read_head(float *to, const Task *task, const Heads *x, int64_t b, int64_t h, float scale) {
    const int64_t K = task->K, width = rounded_up(K, LANES);
    for (int64_t t = 0; t < task->T; t++, to += width) {
        const char *from = token_at(task, x, b, h, t);
        if (task->bfloat16)
            for (int64_t i = 0; i < K; i++) {
                const union { uint32_t bits; float value; } number = {(uint32_t)((const uint16_t *)from)[i] << 16};
                to[i] = number.value * scale;
            }
        else
            for (int64_t i = 0; i < K; i++) to[i] = ((const float *)from)[i] * scale;
    }
}

static void write_token(char *to, const float *from, const Task *task, float scale) {
    for (int64_t i = 0; i < task->K; i++) {
        union { float value; uint32_t bits; } number = {from[i] * scale};
        if (task->bfloat16) ((uint16_t *)to)[i] = (number.bits + 0x7fff + (number.bits >> 16 & 1)) >> 16; /* to even */
        else ((float *)to)[i] = number.value;
    }
}

/* to (K, T) from a head (T, K) */
static void transpose(float *to, const float *from, const Task *task) {
    const int64_t T = task->T, K = task->K, width = rounded_up(K, LANES), length = rounded_up(T, QUERIES);
    for (int64_t first = 0; first < T; first += LANES)
        for (int64_t i = 0; i < K; i++)
            for (int64_t t = first; t < smaller(T, first + LANES); t++) to[i * length + t] = from[t * width + i];
}

/* ---- Matrix products ---- */

/* c = a b or, if added, c + a b, for ROWS rows and `width` * LANES columns. The strides of a are those of its rows and
 * of its columns. With compile-time constants for width and added, the sums stay in registers. */
INLINE void multiply_tile(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_column, const float *b,
                          int64_t b_row, int64_t inner, int width, int added) {
    Lanes sums[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int w = 0; w < width; w++)
            sums[r][w] = added ? *(const Lanes *)(c + r * c_row + w * LANES) : (Lanes){0};
    for (int64_t i = 0; i < inner; i++)
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < width; w++)
                sums[r][w] += a[r * a_row + i * a_column] * *(const Lanes *)(b + i * b_row + w * LANES);
    for (int r = 0; r < ROWS; r++)
        for (int w = 0; w < width; w++) *(Lanes *)(c + r * c_row + w * LANES) = sums[r][w];
}

INLINE void multiply_any(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_column, const float *b,
                         int64_t b_row, int64_t rows, int64_t inner, int64_t columns, int added) {
    for (int64_t column = 0; column < columns; column += 2 * LANES)
        for (int64_t row = 0; row < rows; row += ROWS) {
            float *to = c + row * c_row + column;
            const float *left = a + row * a_row, *right = b + column;
            if (columns - column > LANES)
                multiply_tile(to, c_row, left, a_row, a_column, right, b_row, inner, 2, added);
            else multiply_tile(to, c_row, left, a_row, a_column, right, b_row, inner, 1, added);
        }
}

/* c (rows, columns) = a (rows, inner) b (inner, columns); the second number of each is the length of its rows. */
static void multiply(float *c, int64_t c_row, const float *a, int64_t a_row, const float *b, int64_t b_row,
                     int64_t rows, int64_t inner, int64_t columns) {
    multiply_any(c, c_row, a, a_row, 1, b, b_row, rows, inner, columns, 0);
}

/* c (rows, columns) += a^T b, with a (inner, rows) and b (inner, columns) */
static void add_transposed(float *c, int64_t c_row, const float *a, int64_t a_row, const float *b, int64_t b_row,
                           int64_t rows, int64_t inner, int64_t columns) {
    multiply_any(c, c_row, a, 1, a_row, b, b_row, rows, inner, columns, 1);
}

/* ---- Softmax and dropout ---- */

static float sum_of(Lanes x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

/* exp(x) for x <= 0, within 2e-7 of it; 0 below -87. */
INLINE Lanes exponential(Lanes x) {
    const Lanes shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f; /* n: x / log(2), rounded */
    const Lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;                    /* x - n log(2) */
    Lanes y = r * (1 / 5040.f) + 1 / 720.f;
    y = y * r + 1 / 120.f;
    y = y * r + 1 / 24.f;
    y = y * r + 1 / 6.f;
    y = y * r + 1 / 2.f;
    y = y * r + 1;
    y = y * r + 1;
    return (Lanes)(((Words)y + ((Words)shifted << 23)) & ~(x < -87.f));
}

/* Replace the scores of the keys from `hidden` to `visible` by exp(score - largest), and the others of `size` by 0.
 * Returns 1 / their sum. */
static float exponentials(float *scores, int64_t hidden, int64_t visible, int64_t size) {
    float largest = scores[hidden];
    Lanes most = largest + (Lanes){0}, sum = {0};
    for (int64_t s = 0; s < hidden; s++) scores[s] = -INFINITY;
    for (int64_t s = visible; s < size; s++) scores[s] = -INFINITY;
    for (int64_t s = 0; s < size; s += LANES) {
        const Lanes x = *(Lanes *)(scores + s);
        const Words above = x > most;
        most = (Lanes)(((Words)x & above) | ((Words)most & ~above));
    }
    for (int i = 0; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
    for (int64_t s = 0; s < size; s += LANES) {
        Lanes *score = (Lanes *)(scores + s);
        sum += *score = exponential(*score - largest);
    }
    return 1 / sum_of(sum);
}

/* The key of a query's dropout: an own number for each seed, row of the batch, head and query (splitmix64). */
static Bits key_of(const Task *task, int64_t b, int64_t h, int64_t t) {
    uint64_t x = (uint64_t)task->seed + ((b * task->H + h) * task->T + t + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    Bits key;
    for (int i = 0; i < LANES; i++) key[i] = (uint32_t)(x >> 32) + i * GOLDEN;
    return key;
}

/* For keys s to s + LANES: 0 if they are dropped, else 1 / (1 - dropout). */
INLINE Lanes kept(const Task *task, Bits key, int64_t s) {
    Bits x = key + (uint32_t)s * GOLDEN;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    const Words random = (Words)((x ^ x >> 16) >> 8); /* 0 to 2^24 - 1 */
    const Lanes scale = (Lanes){0} + 1 / (1 - task->dropout);
    return (Lanes)((Words)scale & (random >= (int32_t)(task->dropout * 16777216)));
}

/* Apply dropout to the weights x (size) of keys from `begin` on. */
static void drop(float *x, const Task *task, Bits key, int64_t begin, int64_t size) {
    for (int64_t s = 0; s < size; s += LANES) *(Lanes *)(x + s) *= kept(task, key, begin + s);
}

/* First key of query t; that of the last token for the padding after it. */
static int64_t start_of(const Task *task, int64_t b, int64_t t) {
    return task->starts ? task->starts[b * task->T + smaller(t, task->T - 1)] : 0;
}

/* ---- The two passes ---- */

static float *allocate(int64_t floats) {
    float *memory = NULL;
    if (posix_memalign((void **)&memory, sizeof(Lanes), floats * sizeof(float))) return NULL;
    return memset(memory, 0, floats * sizeof(float));
}

/* Compute y. Returns 0, or 1 if memory runs out. */
int attention(const Task *task, const Heads *q, const Heads *k, const Heads *v, const Heads *y) {
    const int64_t T = task->T, K = task->K, group = task->H / task->G;
    const int64_t length = rounded_up(T, QUERIES), width = rounded_up(K, LANES), size = length * width;
    int failed = 0;
#pragma omp parallel num_threads(task->threads)
    {
        float *head = allocate(3 * size + QUERIES * (length + width)), *keys = head + size, *values = keys + size;
        float *weights = values + size, *out = weights + QUERIES * length;
        if (!head) failed = 1;
#pragma omp for schedule(static)
        for (int64_t bg = 0; bg < task->B * task->G; bg++) {
            if (!head) continue;
            const int64_t b = bg / task->G, g = bg % task->G;
            read_head(values, task, k, b, g, 1);
            transpose(keys, values, task);
            read_head(values, task, v, b, g, 1);
            for (int64_t h = g * group; h < (g + 1) * group; h++) {
                read_head(head, task, q, b, h, 1 / sqrtf(K));
                for (int64_t first = 0; first < T; first += QUERIES) {
                    const int64_t begin = start_of(task, b, first) / LANES * LANES, seen = first + QUERIES - begin;
                    float inverse[QUERIES];
                    multiply(weights, length, head + first * width, width, keys + begin, length, QUERIES, K, seen);
                    for (int64_t r = 0; r < QUERIES; r++) {
                        float *row = weights + r * length;
                        const int64_t t = first + r;
                        inverse[r] = exponentials(row, start_of(task, b, t) - begin, t + 1 - begin, seen);
                        if (task->dropout > 0) drop(row, task, key_of(task, b, h, t), begin, seen);
                    }
                    multiply(out, width, weights, length, values + begin * width, width, QUERIES, seen, width);
                    for (int64_t r = 0; r < smaller(QUERIES, T - first); r++)
                        write_token(token_at(task, y, b, h, first + r), out + r * width, task, inverse[r]);
                }
            }
        }
        free(head);
    }
    return failed;
}

/* From the exponentials w of a query and dy v^T, in d, to its weights in w and the gradient of its scores in d: with
 * the weights p and the factors m of dropout, p m and p (d m - sum(p d m)). */
static void differentiate(float *restrict w, float *restrict d, float inverse, const Task *task, Bits key,
                          int64_t begin, int64_t size) {
    Lanes sum = {0};
    if (task->dropout > 0) drop(d, task, key, begin, size);
    for (int64_t s = 0; s < size; s += LANES) {
        *(Lanes *)(w + s) *= inverse;
        sum += *(Lanes *)(w + s) * *(Lanes *)(d + s);
    }
    const float mean = sum_of(sum);
    for (int64_t s = 0; s < size; s += LANES) *(Lanes *)(d + s) = *(Lanes *)(w + s) * (*(Lanes *)(d + s) - mean);
    if (task->dropout > 0) drop(w, task, key, begin, size);
}

/* Compute the gradients dq, dk and dv from dy, the gradient of y. Returns 0, or 1 if memory runs out. */
int attention_backward(const Task *task, const Heads *q, const Heads *k, const Heads *v, const Heads *dy,
                       const Heads *dq, const Heads *dk, const Heads *dv) {
    const int64_t T = task->T, K = task->K, group = task->H / task->G;
    const int64_t length = rounded_up(T, QUERIES), width = rounded_up(K, LANES), size = length * width;
    const float scale = 1 / sqrtf(K);
    int failed = 0;
#pragma omp parallel num_threads(task->threads)
    {
        float *head = allocate(7 * size + QUERIES * (2 * length + width)), *keys = head + size;
        float *keys_turned = keys + size, *values_turned = keys_turned + size, *of_out = values_turned + size;
        float *of_keys = of_out + size, *of_values = of_keys + size, *weights = of_values + size;
        float *of_scores = weights + QUERIES * length, *of_head = of_scores + QUERIES * length;
        if (!head) failed = 1;
#pragma omp for schedule(static)
        for (int64_t bg = 0; bg < task->B * task->G; bg++) {
            if (!head) continue;
            const int64_t b = bg / task->G, g = bg % task->G;
            read_head(keys, task, v, b, g, 1);
            transpose(values_turned, keys, task);
            read_head(keys, task, k, b, g, 1);
            transpose(keys_turned, keys, task);
            memset(of_keys, 0, size * sizeof(float));
            memset(of_values, 0, size * sizeof(float));
            for (int64_t h = g * group; h < (g + 1) * group; h++) {
                read_head(head, task, q, b, h, scale);
                read_head(of_out, task, dy, b, h, 1);
                for (int64_t first = 0; first < T; first += QUERIES) {
                    const int64_t begin = start_of(task, b, first) / LANES * LANES, seen = first + QUERIES - begin;
                    const int64_t at = begin * width;
                    const float *queries = head + first * width, *given = of_out + first * width;
                    multiply(weights, length, queries, width, keys_turned + begin, length, QUERIES, K, seen);
                    multiply(of_scores, length, given, width, values_turned + begin, length, QUERIES, K, seen);
                    for (int64_t r = 0; r < QUERIES; r++) {
                        float *row = weights + r * length;
                        const int64_t t = first + r;
                        const float inverse = exponentials(row, start_of(task, b, t) - begin, t + 1 - begin, seen);
                        const Bits key = key_of(task, b, h, t);
                        differentiate(row, of_scores + r * length, inverse, task, key, begin, seen);
                    }
                    multiply(of_head, width, of_scores, length, keys + at, width, QUERIES, seen, width);
                    add_transposed(of_values + at, width, weights, length, given, width, seen, QUERIES, width);
                    add_transposed(of_keys + at, width, of_scores, length, queries, width, seen, QUERIES, width);
                    for (int64_t r = 0; r < smaller(QUERIES, T - first); r++)
                        write_token(token_at(task, dq, b, h, first + r), of_head + r * width, task, scale);
                }
            }
            for (int64_t t = 0; t < T; t++) {
                write_token(token_at(task, dk, b, g, t), of_keys + t * width, task, 1);
                write_token(token_at(task, dv, b, g, t), of_values + t * width, task, 1);
            }
        }
        free(head);
    }
    return failed;
}
