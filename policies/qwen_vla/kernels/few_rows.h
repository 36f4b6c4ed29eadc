/* What the files of the kernel for few rows share; few_rows.c says what it is. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

/* What Python has to know of this file; other numbers mean another version of it. */
enum { VERSION = 1 };
enum { NONE = 0, AVX2 = 1, AVX512 = 2 };

enum {
    GROUP = 128,      /* inputs that share a step: the sum of so many products fits in 32 bits */
    PANEL = 32,       /* outputs that are computed together */
    PAIRS = 8,        /* pairs of inputs in a unit */
    WORDS = 5,        /* vectors of 16-bit words that hold the weights of a unit and 16 outputs */
    WORD_BYTES = 64,
    UNITS = GROUP / (2 * PAIRS),
    UNIT_BYTES = PANEL / 16 * WORDS * WORD_BYTES,
    MOST_ROWS = 8,    /* rows whose sums fit in registers */
    ALL_ROWS = 64,
    AHEAD_BYTES = 8192 /* 4096 to 32768 did about as well; without, a third slower */
};

typedef void (*parallel_function)(void (*)(void *), void *, unsigned, unsigned);

struct few_rows_map {
    const uint8_t *words; /* [panel][group][unit][half panel][word][output][2] */
    const float *steps;   /* [panel][group][output] */
    const float *bias;    /* [output] */
    int32_t inputs, outputs, relu, instructions;
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(FEW_ROWS_ELSEWHERE)
#define FEW_ROWS_X86
#endif

struct job {
    const struct few_rows_map *map;
    const int16_t *values; /* [row][input], rounded */
    const float *scales;   /* [row] */
    float *results;        /* [row][output] */
    long groups;
    int rows;
    atomic_int next;
};

/* Round a row to whole numbers of 16 bits; gives the size of one. A row that holds anything but
   finite numbers gets a size that is none, so that all its results are none either. */
float few_rows_round_avx512(const float *row, long inputs, int16_t *to);
float few_rows_round_avx2(const float *row, long inputs, int16_t *to);

/* Compute panels of a `struct job` until there are none left: what every thread does. */
void few_rows_work_avx512(void *job);
void few_rows_work_avx2(void *job);
