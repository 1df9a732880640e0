/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: the state's share of the cache (M1), exact sizes (M2), and sizes that follow their parameters. */
#include <inttypes.h>
#include <stdio.h>

#include "groups.h"
#include "world.h"

static const struct s_row {
    const char *name;
    uint32_t decode_rows, slots;
    double share; /* of the K/V cache, at most */
    prhs_residual residual;
} rows[] = {
    { "one row", 1, 1, 0.003, PRHS_RESIDUAL_MEAN },
    { "one row, 64 slots", 1, 64, 0.003, PRHS_RESIDUAL_MEAN },
    { "eight rows", 8, 4, 0.005, PRHS_RESIDUAL_MEAN },
    { "one row, retrieved", 1, 1, 0.003, PRHS_RESIDUAL_RETRIEVED },
    { "eight rows, retrieved", 8, 4, 0.005, PRHS_RESIDUAL_RETRIEVED },
};
#define ROWS (int)(sizeof rows / sizeof *rows)

static const char *row_name(int row) { return row < ROWS ? rows[row].name : row == ROWS ? "exact" : row == ROWS + 1 ? "residuals" : "references"; }

static prhs_session_params big(t_ctx *t) {
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    T_OK(t, prhs_policy_preset("cis-mass", 32, &p.policy));
    p.shape = (prhs_shape){ 32, 8, 128, 0 };
    p.layers = 32;
    p.max_slots = p.max_seqs = p.max_rows = 1;
    p.max_kv_len = 8192;
    p.kv_dtype = PRHS_F16;
    return p;
}

static void share(t_ctx *t, const struct s_row *row) {
    prhs_session_params p = big(t);
    prhs_session_sizes sizes = { .size = sizeof sizes };
    p.decode_rows = row->decode_rows;
    p.max_slots = row->slots;
    p.policy.residual = row->residual;
    T_CHECK(t, p.policy.k + p.policy.sinks + p.policy.local == 512, "the preset keeps %u tokens",
            p.policy.k + p.policy.sinks + p.policy.local);
    T_OK(t, prhs_session_get_sizes(t->dev, &p, &sizes));
    double cache = 2.0 * 2 * 8192 * 8 * 128 * 32 * row->slots;
    T_CHECK(t, (double)sizes.state <= row->share * cache, "state of %" PRIu64 " bytes is %.4f %% of the cache", sizes.state,
            100.0 * (double)sizes.state / cache);
    T_CHECK(t, sizes.slot * row->slots <= sizes.state, "the state is smaller than its slots");
    snprintf(t->note, sizeof t->note, "%.3f %% of the K/V cache, workspace %" PRIu64 " bytes", 100.0 * (double)sizes.state / cache,
             sizes.workspace);
}

/* What a slot holds for its residual: one row of floats a head, or exact sums and counts; nothing where there is none. */
static void residuals(t_ctx *t) {
    const uint64_t layers = 31, retrieved = layers * 32 * 128 * 4, mean = layers * 8 * (128 * 8 + 8);
    uint64_t slot[3];
    for (int i = 0; i < 3; i++) {
        prhs_session_params p = big(t);
        prhs_session_sizes sizes = { .size = sizeof sizes };
        p.policy.residual = (prhs_residual)i;
        T_OK(t, prhs_session_get_sizes(t->dev, &p, &sizes));
        slot[i] = sizes.slot;
    }
    for (int i = 1; i < 3; i++) {
        const uint64_t want = i == PRHS_RESIDUAL_MEAN ? mean : retrieved, more = slot[i] - slot[PRHS_RESIDUAL_NONE];
        T_CHECK(t, (more + 255) / 256 == (want + 255) / 256, "residual %d takes %" PRIu64 " bytes of a slot instead of %" PRIu64, i, more,
                want);
    }
}

/* What each of several references takes of a slot: its unit state, then masses, query, moments and list, all of it by 16 bytes. One takes nothing. */
static void references(t_ctx *t) {
    const uint64_t each = 64 + 4 * 12 + 3 * 4 * 128 * 4 + 476 * 4, units = 31 * 8;
    uint64_t one = 0;
    double share[17] = { 0 };
    for (uint32_t n = 1; n <= 16; n++) {
        prhs_session_params p = big(t);
        prhs_session_sizes sizes = { .size = sizeof sizes };
        p.policy.references = n;
        T_OK(t, prhs_session_get_sizes(t->dev, &p, &sizes));
        one = n == 1 ? sizes.slot : one;
        share[n] = 100.0 * (double)sizes.state / (2.0 * 2 * 8192 * 8 * 128 * 32);
        const uint64_t want = n == 1 ? 0 : n * units * each, more = sizes.slot - one;
        T_CHECK(t, more < want + 256 && want < more + 256, "%u references take %" PRIu64 " bytes of a slot instead of %" PRIu64, n, more, want);
    }
    snprintf(t->note, sizeof t->note, "%.2f %% of the K/V cache with 1, %.2f %% with 8, %.2f %% with 16", share[1], share[8], share[16]);
}

/* Buffers of exactly the size queried work, with the guard bands right behind them; one byte less is refused. */
static void exact(t_ctx *t) {
    static const char *const presets[] = { "dense", "streaming", "topk", "cis", "cpe", "cis-mass", "cis-mass", "cis-mass" };
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        t_world w;
        t_setup s = t_setup_default(t, presets[i], &t_shapes[S_G3_D64]);
        s.max_kv_len = 97;
        if (i == 6)
            s.policy.residual = PRHS_RESIDUAL_RETRIEVED;
        if (i == 7)
            s.policy.references = 5;
        s.decode_rows = 3;
        s.audit = 1;
        t_world_make(t, &w, &s);
        t_wseq *seq = t_world_seq(&w, 1, (int32_t)s.max_slots - 1);
        t_world_prompt(&w, seq, 80, 64);
        while (seq->len + 3 <= 97) {
            t_world_one(&w, seq, 3, 0);
            t_world_resize(&w, seq, W_COMMIT, seq->len - 1);
        }
        prhs_session_params p = t_world_params(&s);
        prhs_session *none = NULL;
        prhs_buffer *small;
        T_OK(t, prhs_buffer_create(t->dev, w.sizes.state + 255, &small));
        t_own(t, T_FOREIGN, small, 0);
        prhs_mem at = { small, 256 };
        T_STATUS(t, PRHS_ERR_MEMORY, prhs_session_create(t->dev, &p, t->queue, at, w.ws.mem, &none));
        T_OK(t, prhs_buffer_create(t->dev, w.sizes.workspace + 255, &small));
        t_own(t, T_FOREIGN, small, 0);
        at.buffer = small;
        T_STATUS(t, PRHS_ERR_MEMORY, prhs_session_create(t->dev, &p, t->queue, w.state.mem, at, &none));
        t_check_guards(t);
    }
}

static void run(t_ctx *t, int row) {
    if (row < ROWS)
        share(t, &rows[row]);
    else if (row == ROWS)
        exact(t);
    else if (row == ROWS + 1)
        residuals(t);
    else
        references(t);
}

const t_group t_group_sizes = { "sizes", ROWS + 3, ROWS + 3, row_name, run };
