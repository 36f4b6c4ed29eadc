/* The loops with AVX-512 and its sums of products of 16 bits (VNNI). */
#include "few_rows.h"

#ifdef FEW_ROWS_X86
#include <immintrin.h>

#define TARGET "avx512f,avx512bw,avx512vl,avx512vnni"
#define NAME(x) x##_avx512
#define LANES 16
#define COLUMNS 2
#define VEC __m512i
#define FLOATS __m512
#define ZEROS _mm512_setzero_si512
#define NO_FLOATS _mm512_setzero_ps
#define LOAD(p) _mm512_loadu_si512(p)
#define FLOATS_AT(p) _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define SAME(x) _mm512_set1_epi16(x)
#define SAME_FLOATS(x) _mm512_set1_ps(x)
#define SPREAD(x) _mm512_set1_epi32(x)
#define KEEP(v) __asm__("" : "+v"(v))
#define SHIFT_RIGHT(v, n) _mm512_srai_epi16(v, n)
#define SHIFT_LEFT(v, n) _mm512_slli_epi16(v, n)
#define OR_SOME(a, b, mask) _mm512_ternarylogic_epi32(a, b, mask, 0xF8)
#define ADD_PRODUCTS(sum, a, b) _mm512_dpwssd_epi32(sum, a, b)
#define TO_FLOATS(v) _mm512_cvtepi32_ps(v)
#define TIMES(a, b) _mm512_mul_ps(a, b)
#define MULTIPLY_ADD(a, b, c) _mm512_fmadd_ps(a, b, c)
/* In this order what is not a number stays so. */
#define NOT_BELOW_ZERO(v) _mm512_max_ps(_mm512_setzero_ps(), v)
#define WITHOUT_SIGN(v) _mm512_and_si512(v, _mm512_set1_epi32(0x7fffffff))
#define LARGER(a, b) _mm512_max_epi32(a, b)
#define STORE_ROUNDED(p, v) \
    _mm256_storeu_si256((__m256i *)(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)))
#include "few_rows_loops.h"
#endif
