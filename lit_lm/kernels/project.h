/* Matrix products on the CPU: out = x w^T for N tokens, by all threads that call `project` together.
 *
 * Weights are float32, bfloat16 or int8 with one scale per output. Arithmetic is float32; if the processor multiplies
 * bfloat16 matrices (AMX), the inputs of bfloat16 and int8 weights are rounded to bfloat16. For one token of a small
 * model, the time is spent reading weights from memory, so these are stored in the order in which they are read, once
 * per TILE tokens. Each output is summed in the same order whatever else is computed: tokens do not affect each other.
 */

#include "lanes.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define AMX
#endif

/* TILE: number of tokens that are multiplied by a matrix together; their sums fill half of the registers. GROUP: number
 * of blocks of LANES outputs that are computed together for a single token, because each addition to one sum must wait
 * for the previous one. */
#define TILE (LANES == 16 ? 16 : 8)
#define GROUP (LANES == 16 ? 1 : 4)
#define DEPTH 32   /* padding of the inputs of BFLOAT16 and INT8 weights: AMX multiplies 32 at once */
#define AHEAD 2048 /* prefetch distance in bytes */
#define SHARED _Pragma("omp for schedule(static)")

enum { FLOAT32, BFLOAT16, INT8 };

typedef float AnyLanes __attribute__((vector_size(LANES * sizeof(float)), may_alias, aligned(4)));
typedef int16_t Halves __attribute__((vector_size(LANES * sizeof(int16_t))));

typedef struct {
    /* LANES interleaved outputs, padded with zeros: FLOAT32 as (blocks, cols, LANES), the others in pairs of inputs as
     * (blocks, pairs, LANES, 2) */
    const void *weight;
    const float *scale; /* (blocks * LANES), for INT8 */
    const float *bias;  /* (blocks * LANES), or NULL */
    int64_t type, rows, cols;
} Linear;

static int64_t size_of(int64_t type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }

/* The block of weights that starts at output `row`. */
static const char *block_at(const Linear *w, int64_t row) {
    const int64_t cols = w->type == FLOAT32 ? w->cols : rounded_up(w->cols, DEPTH);
    return (const char *)w->weight + row / LANES * LANES * cols * size_of(w->type);
}

/* LANES weights as float32, without scale, of input i (even), or of input i + 1 if second is 1. */
INLINE Lanes weights(const char *block, int64_t i, int second, int64_t type) {
    if (type == FLOAT32) return *(const Lanes *)(block + (i + second) * LANES * 4);
    if (type == BFLOAT16) {
        const Words both = *(const Words *)(block + i / 2 * LANES * 4);
        return (Lanes)(second ? both & (int32_t)0xffff0000 : both << 16);
    }
    const Halves both = *(const Halves *)(block + i / 2 * LANES * 2);
    return __builtin_convertvector(__builtin_convertvector(second ? both >> 8 : (both << 8) >> 8, Words), Lanes);
}

/* x (D): row `row` of an embedding. */
static void embed(float *x, const Linear *w, int64_t row) {
    const char *block = block_at(w, row);
    for (int64_t i = 0; i < w->cols; i++)
        x[i] = weights(block, i / 2 * 2, i % 2, w->type)[row % LANES] * (w->scale ? w->scale[row] : 1);
}

/* Inputs are arranged in tiles of up to TILE tokens, (cols, width) each, so that the values multiplied by one weight
 * are contiguous. The width of the last tile is the power of two that holds the remaining tokens. */
static int64_t tile_width(int64_t tokens) {
    int64_t width = 1;
    while (width < smaller(tokens, TILE)) width *= 2;
    return width;
}

/* Arrange x (N, cols) in tiles. Threads divide the columns: two that write to one cache line wait for each other. */
static void arrange(float *tiles, const float *x, int64_t N, int64_t cols) {
    const int64_t parts = rounded_up(cols, LANES) / LANES;
    SHARED
    for (int64_t part = 0; part < rounded_up(N, TILE) / TILE * parts; part++) {
        const int64_t first = part / parts * TILE, width = tile_width(N - first), column = part % parts * LANES;
        for (int64_t i = column; i < smaller(column + LANES, cols); i++)
            for (int64_t t = 0; t < smaller(TILE, N - first); t++)
                tiles[first * cols + i * width + t] = x[(first + t) * cols + i];
    }
}

/* Write one token's LANES sums to the outputs from `row` on, without the padding; if added, add to the outputs. */
INLINE void store(float *out, Lanes sum, const Linear *w, int64_t row, int added) {
    if (w->scale) sum *= *(const Lanes *)(w->scale + row);
    if (w->bias) sum += *(const Lanes *)(w->bias + row);
    if (w->rows - row >= LANES) *(AnyLanes *)out = (added ? (Lanes) * (AnyLanes *)out : (Lanes){0}) + sum;
    else
        for (int64_t i = 0; i < w->rows - row; i++) out[i] = (added ? out[i] : 0) + sum[i];
}

/* Compute the outputs of `blocks` blocks from `row` on for up to `width` tokens of a tile. With compile-time constants
 * for type, width and blocks, the sums stay in registers. */
INLINE void multiply(float *out, const float *tile, const Linear *w, int64_t row, int64_t tokens, int added,
                     int64_t type, int width, int blocks) {
    Lanes sums[GROUP > TILE ? GROUP : TILE] = {0};
    for (int64_t i = 0; i < w->cols; i += 2)
        for (int k = 0; k < blocks; k++) {
            const char *block = block_at(w, row + k * LANES);
            __builtin_prefetch(block + i * LANES * size_of(type) + AHEAD);
            if (type == FLOAT32 && LANES == 16) __builtin_prefetch(block + (i + 1) * LANES * 4 + AHEAD);
            for (int second = 0; second < 2 && i + second < w->cols; second++) {
                const Lanes weight = weights(block, i, second, type);
                for (int t = 0; t < width; t++) sums[k * width + t] += weight * tile[(i + second) * width + t];
            }
        }
    for (int k = 0; k < blocks; k++)
        for (int t = 0; t < width; t++)
            if (t < tokens) store(out + t * w->rows + row + k * LANES, sums[k * width + t], w, row + k * LANES, added);
}

/* out (N, rows) = x w^T + bias, or if added, out + x w^T + bias; x (N, cols). */
INLINE void project_type(float *out, const float *x, const Linear *w, int64_t N, int added, float *tiles,
                         int64_t type) {
    if (N > 1) arrange(tiles, x, N, w->cols);
    SHARED
    for (int64_t from = 0; from < w->rows; from += GROUP * LANES)
        if (N == 1 && from + GROUP * LANES <= w->rows) multiply(out, x, w, from, 1, added, type, 1, GROUP);
        else
            for (int64_t row = from; row < smaller(from + GROUP * LANES, w->rows); row += LANES)
                for (int64_t first = 0; first < N; first += TILE) {
                    const int64_t tokens = N - first, width = tile_width(tokens);
                    const float *tile = N == 1 ? x : tiles + first * w->cols;
                    float *to = out + first * w->rows;
                    if (width == 1) multiply(to, tile, w, row, tokens, added, type, 1, 1);
                    else if (width == 2) multiply(to, tile, w, row, tokens, added, type, 2, 1);
                    else if (width == 4) multiply(to, tile, w, row, tokens, added, type, 4, 1);
                    else if (width == 8) multiply(to, tile, w, row, tokens, added, type, 8, 1);
                    else multiply(to, tile, w, row, tokens, added, type, TILE, 1);
                }
}

#ifdef AMX
static int has_tiles; /* whether AMX may be used; its registers, called tiles, have 16 rows of 64 bytes */
#define SUMS 0
#define INPUTS 1
#define WEIGHTS 2

static void set_tiles_up(int64_t N) {
    struct {
        uint8_t palette, start, zero[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {1, 0, {0}, {64, 64, 64}, {smaller(N, 16), smaller(N, 16), 16}};
    if (has_tiles) _tile_loadconfig(&tiles);
}

/* 32 int8 weights as bfloat16, which is exact. */
static inline __m512i as_bfloat16(const char *bytes) {
    const __m512i pairs = _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)bytes));
    const __m512 second = _mm512_cvtepi32_ps(_mm512_srai_epi32(pairs, 16));
    const __m512 first = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16));
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16), _mm512_castps_si512(second));
}

/* `project` with AMX; `halves` is a buffer for x as bfloat16 (N rounded up to 16, cols rounded up to DEPTH). */
INLINE void project_tiles(float *out, const float *x, const Linear *w, int64_t N, int added, uint16_t *halves,
                          int64_t type) {
    const int64_t depth = rounded_up(w->cols, DEPTH);
    SHARED
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < depth; i += LANES) {
            const __mmask16 there = (1 << smaller(LANES, larger(0, w->cols - i))) - 1;
            _mm256_storeu_si256((__m256i *)(halves + n * depth + i),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, x + n * w->cols + i)));
        }
    SHARED
    for (int64_t row = 0; row < w->rows; row += LANES)
        for (int64_t first = 0; first < N; first += 16) {
            const char *block = block_at(w, row);
            Lanes sums[16];
            __m512i converted[16];
            _tile_zero(SUMS);
            for (int64_t i = 0; i < depth; i += DEPTH) {
                const char *from = block + i * LANES * size_of(type);
                for (int64_t byte = 0; byte < DEPTH * LANES * size_of(type); byte += 64)
                    __builtin_prefetch(from + byte + AHEAD);
                _tile_loadd(INPUTS, halves + first * depth + i, depth * 2);
                if (type == INT8)
                    for (int pair = 0; pair < 16; pair++) converted[pair] = as_bfloat16(from + pair * 32);
                _tile_loadd(WEIGHTS, type == INT8 ? (const char *)converted : from, 64);
                _tile_dpbf16ps(SUMS, INPUTS, WEIGHTS);
            }
            _tile_stored(SUMS, sums, 64);
            for (int64_t t = 0; t < smaller(16, N - first); t++)
                store(out + (first + t) * w->rows + row, sums[t], w, row, added);
        }
}
#endif

/* Call once, first: Linux grants AMX on request. Returns LANES. */
int prepare(void) {
#ifdef AMX
    const int request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    has_tiles = !syscall(SYS_arch_prctl, request, tile_data);
#endif
    return LANES;
}

static void project(float *out, const float *x, const Linear *w, int64_t N, int added, float *tiles) {
#ifdef AMX
    if (has_tiles && w->type == BFLOAT16) project_tiles(out, x, w, N, added, (uint16_t *)tiles, BFLOAT16);
    else if (has_tiles && w->type == INT8) project_tiles(out, x, w, N, added, (uint16_t *)tiles, INT8);
    else
#endif
    if (w->type == FLOAT32) project_type(out, x, w, N, added, tiles, FLOAT32);
    else if (w->type == BFLOAT16) project_type(out, x, w, N, added, tiles, BFLOAT16);
    else project_type(out, x, w, N, added, tiles, INT8);
}
