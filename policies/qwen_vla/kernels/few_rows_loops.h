/* The loops of the kernel for few rows, for the set of vector instructions of who includes them.

   Before including: TARGET, NAME(x), LANES (32-bit lanes of a vector), COLUMNS (vectors of outputs
   worked on at once), VEC, FLOATS and the operations below, which are named for what they do. */

#include <string.h>

#define NOT_A_NUMBER __builtin_nanf("")
static const int32_t INFINITE = 0x7f800000; /* its bits; what is not a number has larger ones */
static const float LARGEST_VALUE = 32767, TINY = 1e-30f;

/* Two neighbouring values as one lane. */
static inline int32_t pair_at(const int16_t *value)
{
    int32_t both;
    memcpy(&both, value, sizeof both);
    return both;
}

#define INLINE __attribute__((target(TARGET), always_inline)) static inline
#define COLUMN_BYTES (4 * LANES)
#define BLOCKS_OF_A_PANEL (PANEL / (LANES * COLUMNS))

/* The bytes at which a column's part of a unit begins: where a vector holds half of the outputs
   that a word holds, two columns share the words. */
INLINE long NAME(offset)(int column)
{
    int whole = column * LANES / 16;
    return (long)whole * WORDS * WORD_BYTES + (column * COLUMN_BYTES - whole * WORD_BYTES);
}

/* The i-th of eight weights of each 16-bit lane, out of five words: five weights lie in the upper
   ten bits of each, the other three in what is left of them (see `few_rows.py`). */
INLINE VEC NAME(weight)(const VEC *word, int i)
{
    if (i < WORDS)
        return SHIFT_RIGHT(word[i], 6);
    VEC joined;
    if (i < 7) {
        const VEC *pair = word + 2 * (i - 5);
        joined = OR_SOME(SHIFT_LEFT(pair[0], 10), SHIFT_LEFT(pair[1], 6), SAME(0x03C0));
    } else {
        joined = OR_SOME(SHIFT_LEFT(word[4], 10), SHIFT_LEFT(word[1], 4), SAME(0x0300));
        joined = OR_SOME(joined, SHIFT_LEFT(word[3], 2), SAME(0x00C0));
    }
    return SHIFT_RIGHT(joined, 6);
}

/* A few rows times COLUMNS vectors of outputs. `rows` is a constant wherever this is expanded, so
   that the sums stay in registers. */
INLINE void NAME(block)(const int rows, const struct job *job, long panel, int first, int row)
{
    const struct few_rows_map *map = job->map;
    const long groups = job->groups, inputs = groups * GROUP;
    const uint8_t *unit = map->words + panel * groups * UNITS * UNIT_BYTES;
    const float *steps = map->steps + panel * groups * PANEL + first * LANES;
    const int16_t *value = job->values + row * inputs;
    FLOATS result[MOST_ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < MOST_ROWS; r++)
#pragma GCC unroll 2
        for (int c = 0; c < COLUMNS; c++)
            result[r][c] = NO_FLOATS();
    for (long group = 0; group < groups; group++, steps += PANEL) {
        VEC sum[MOST_ROWS][COLUMNS];
#pragma GCC unroll 8
        for (int r = 0; r < MOST_ROWS; r++)
#pragma GCC unroll 2
            for (int c = 0; c < COLUMNS; c++)
                sum[r][c] = ZEROS();
        for (int u = 0; u < UNITS; u++, unit += UNIT_BYTES, value += 2 * PAIRS) {
            if (row == 0 && first == 0)
                for (int line = 0; line < UNIT_BYTES; line += 64)
                    __builtin_prefetch(unit + AHEAD_BYTES + line, 0, 2);
            VEC word[COLUMNS][WORDS];
#pragma GCC unroll 2
            for (int c = 0; c < COLUMNS; c++)
#pragma GCC unroll 5
                for (int i = 0; i < WORDS; i++)
                    word[c][i] = LOAD(unit + NAME(offset)(first + c) + i * WORD_BYTES);
#pragma GCC unroll 8
            for (int i = 0; i < PAIRS; i++) {
                VEC weight[COLUMNS];
#pragma GCC unroll 2
                for (int c = 0; c < COLUMNS; c++)
                    weight[c] = NAME(weight)(word[c], i);
#pragma GCC unroll 8
                for (int r = 0; r < MOST_ROWS; r++)
                    if (r < rows) {
                        VEC both = SPREAD(pair_at(value + r * inputs + 2 * i));
                        KEEP(both); /* one load for all columns */
#pragma GCC unroll 2
                        for (int c = 0; c < COLUMNS; c++) {
                            sum[r][c] = ADD_PRODUCTS(sum[r][c], weight[c], both);
                            KEEP(sum[r][c]); /* in this order: others take more registers */
                        }
                    }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < MOST_ROWS; r++)
            if (r < rows)
#pragma GCC unroll 2
                for (int c = 0; c < COLUMNS; c++)
                    result[r][c] =
                        MULTIPLY_ADD(TO_FLOATS(sum[r][c]), FLOATS_AT(steps + c * LANES), result[r][c]);
    }
    const long place = panel * PANEL + first * LANES;
#pragma GCC unroll 8
    for (int r = 0; r < MOST_ROWS; r++)
        if (r < rows)
#pragma GCC unroll 2
            for (int c = 0; c < COLUMNS; c++) {
                const long at = place + c * LANES;
                FLOATS all = MULTIPLY_ADD(
                    result[r][c], SAME_FLOATS(job->scales[row + r]), FLOATS_AT(map->bias + at));
                STORE(job->results + (long)(row + r) * map->outputs + at,
                      map->relu ? NOT_BELOW_ZERO(all) : all);
            }
}

#define ROWS(n) \
    case n: \
        NAME(block)(n, job, panel, block * COLUMNS, row); \
        break;

__attribute__((target(TARGET))) void NAME(few_rows_work)(void *given)
{
    struct job *job = given;
    const int panels = job->map->outputs / PANEL;
    for (;;) {
        const int panel = atomic_fetch_add(&job->next, 1);
        if (panel >= panels)
            return;
        for (int block = 0; block < BLOCKS_OF_A_PANEL; block++)
            for (int row = 0, left = job->rows, parts = (left + MOST_ROWS - 1) / MOST_ROWS; left;
                 parts--) {
                const int some = (left + parts - 1) / parts; /* parts of nearly one size */
                switch (some) { ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) }
                row += some;
                left -= some;
            }
    }
}

__attribute__((target(TARGET))) float NAME(few_rows_round)(const float *row, long inputs, int16_t *to)
{
    const long padded = (inputs + GROUP - 1) / GROUP * GROUP, whole = inputs / GROUP * GROUP;
    float rest[GROUP] = {0};
    memcpy(rest, row + whole, (size_t)(inputs - whole) * sizeof *rest);
    VEC top = ZEROS();
    for (long i = 0; i < padded; i += LANES)
        top = LARGER(top, WITHOUT_SIGN(LOAD(i < whole ? row + i : rest + i - whole)));
    int32_t bits[LANES], most = 0;
    memcpy(bits, &top, sizeof bits);
    for (int lane = 0; lane < LANES; lane++)
        most = bits[lane] > most ? bits[lane] : most;
    float largest;
    memcpy(&largest, &most, sizeof largest);
    const int finite = most < INFINITE;
    const float times = finite && largest > TINY ? LARGEST_VALUE / largest : 0;
    for (long i = 0; i < padded; i += LANES) {
        const float *from = i < whole ? row + i : rest + i - whole;
        STORE_ROUNDED(to + i, TIMES(FLOATS_AT(from), SAME_FLOATS(times)));
    }
    return finite ? largest / LARGEST_VALUE : NOT_A_NUMBER;
}
