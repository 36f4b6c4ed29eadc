/* The loops with AVX2. */
#include "few_rows.h"

#ifdef FEW_ROWS_X86
#include <immintrin.h>

#define TARGET "avx2,fma"
#define NAME(x) x##_avx2
#define LANES 8
#define COLUMNS 2
#define VEC __m256i
#define FLOATS __m256
#define ZEROS _mm256_setzero_si256
#define NO_FLOATS _mm256_setzero_ps
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define FLOATS_AT(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define SAME(x) _mm256_set1_epi16(x)
#define SAME_FLOATS(x) _mm256_set1_ps(x)
#define SPREAD(x) _mm256_set1_epi32(x)
#define KEEP(v) __asm__("" : "+x"(v))
#define SHIFT_RIGHT(v, n) _mm256_srai_epi16(v, n)
#define SHIFT_LEFT(v, n) _mm256_slli_epi16(v, n)
#define OR_SOME(a, b, mask) _mm256_or_si256(a, _mm256_and_si256(b, mask))
#define ADD_PRODUCTS(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define TO_FLOATS(v) _mm256_cvtepi32_ps(v)
#define TIMES(a, b) _mm256_mul_ps(a, b)
#define MULTIPLY_ADD(a, b, c) _mm256_fmadd_ps(a, b, c)
#define NOT_BELOW_ZERO(v) _mm256_max_ps(_mm256_setzero_ps(), v)
#define WITHOUT_SIGN(v) _mm256_and_si256(v, _mm256_set1_epi32(0x7fffffff))
#define LARGER(a, b) _mm256_max_epi32(a, b)
#define STORE_ROUNDED(p, v) store_rounded_avx2(p, v)

__attribute__((target(TARGET), always_inline)) static inline void store_rounded_avx2(
    int16_t *to, __m256 values)
{
    const __m256i whole = _mm256_cvtps_epi32(values);
    _mm_storeu_si128((__m128i *)to, _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                                    _mm256_extracti128_si256(whole, 1)));
}
#include "few_rows_loops.h"
#endif
