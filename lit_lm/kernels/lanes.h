/* Vectors as wide as the registers of the processor. */

#define _DEFAULT_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), may_alias));
typedef int32_t Words __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
