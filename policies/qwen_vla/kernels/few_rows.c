/* Linear maps on few rows, with weights of ten bits and values of sixteen.

   With 1 to 33 rows a pass reads every weight once and uses it a few times: what counts is how many
   bytes a weight has, that they are asked for long before they are needed, and that nothing but
   products stands between two reads. `few_rows.py` says how the weights lie and what it costs.

   Sums are of whole numbers, and the steps after them the same in every set of instructions: all
   give the very same results. */

#include "few_rows.h"

#ifdef FEW_ROWS_X86

/* The best instructions of this processor that the maps can use. */
int few_rows_instructions(void)
{
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        return AVX512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? AVX2 : NONE;
}

/* Rows (rows, inputs) to results (rows, outputs), at most ALL_ROWS of them at a time. `values` is
   room for the rounded rows, (rows, inputs rounded up to whole groups). `parallel` runs a function
   on so many threads and returns when all are done (OpenMP's own); may be null. */
void few_rows_multiply(const struct few_rows_map *map, const float *given, float *results,
                       int16_t *values, int rows, int threads, parallel_function parallel)
{
    const long groups = (map->inputs + GROUP - 1) / GROUP;
    const int best = map->instructions == AVX512;
    float scales[ALL_ROWS];
    for (; rows > 0; rows -= ALL_ROWS) {
        struct job job = {map, values, scales, results, groups, rows, 0};
        if (job.rows > ALL_ROWS)
            job.rows = ALL_ROWS;
        for (long row = 0; row < job.rows; row++)
            scales[row] = (best ? few_rows_round_avx512 : few_rows_round_avx2)(
                given + row * map->inputs, map->inputs, values + row * groups * GROUP);
        void (*work)(void *) = best ? few_rows_work_avx512 : few_rows_work_avx2;
        if (parallel && threads > 1)
            parallel(work, &job, (unsigned)threads, 0);
        else
            work(&job);
        given += (long)ALL_ROWS * map->inputs;
        results += (long)ALL_ROWS * map->outputs;
    }
}

#else /* another processor or compiler: nothing here for it */

int few_rows_instructions(void)
{
    return NONE;
}

void few_rows_multiply(const struct few_rows_map *map, const float *given, float *results,
                       int16_t *values, int rows, int threads, parallel_function parallel)
{
    (void)map, (void)given, (void)results, (void)values, (void)rows, (void)threads, (void)parallel;
}

#endif

int few_rows_version(void)
{
    return VERSION;
}
