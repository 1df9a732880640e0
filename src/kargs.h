/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arguments of every kernel, as plain C structs that the host, OpenCL C and CUDA all include. Members are ordered so that no
 * compiler pads. Offsets named *_off are bytes into the buffer of the same role; strides are elements unless they say bytes.
 * An offset of PRHS_NONE means that the array is absent. Counts are capacities: what is really there is device data.
 */
#ifndef PRHS_KARGS_H
#define PRHS_KARGS_H

#if defined(__OPENCL_VERSION__) || defined(__OPENCL_C_VERSION__)
#include "device_types.h"
#else
#include <prhs/device_types.h>
#endif

#include "draw.h"

#define PRHS_NONE (-1)

/* K/V element types; equal to enum prhs_dtype, which kernels cannot include. */
#define PRHS_K_F32 0
#define PRHS_K_F16 1
#define PRHS_K_BF16 2

/* Gates, joins and residuals; equal to the enums of policy.h. */
#define PRHS_K_GATE_NONE 0
#define PRHS_K_GATE_COSINE 1
#define PRHS_K_GATE_MASS 2
#define PRHS_K_JOIN_SUM 0
#define PRHS_K_JOIN_MAX 1
#define PRHS_K_RESIDUAL_NONE 0
#define PRHS_K_RESIDUAL_MEAN 1
#define PRHS_K_RESIDUAL_RETRIEVED 2

/* What score and moments sum: nothing; the middle's keys; its keys and its values. */
#define PRHS_K_MOMENTS_KEYS 1
#define PRHS_K_MOMENTS_VALUES 2

/* Bits of the session's error word. */
#define PRHS_FAULT_SLOT 1      /* a slot id >= max_slots */
#define PRHS_FAULT_LENGTH 2    /* kv_len > max_kv_len, < row_count, or a negative number */
#define PRHS_FAULT_ROWS 4      /* more rows than the step's capacity */
#define PRHS_FAULT_PAGE 8      /* a page id outside the cache (checked where the session validates) */
#define PRHS_FAULT_PROMPT 16   /* ETF with prompt_len 0 */

/* The paged cache of one layer: element (page p, slot-in-page i, head h, channel d) is at off + (p*page + i*token + h*head + d). */
typedef struct prhs_k_kv {
    prhs_i64 k_off, v_off;                /* bytes */
    prhs_i64 k_page, k_token, k_head;     /* strides in elements; channels are contiguous */
    prhs_i64 v_page, v_token, v_head;
    prhs_i32 page_size, pages;            /* tokens a page; pages in the cache */
    prhs_i32 dtype, page_shift;           /* j / page_size is (2 j * page_inverse >> 32) >> page_shift for every 0 <= j < 2^31: */
    prhs_u32 page_inverse;                /* page_inverse = floor(2^(31 + page_shift) / page_size) + 1, 2^page_shift >= page_size */
    prhs_i32 reserved;
} prhs_k_kv;

/* The batch: prhs_seq[max_seqs] and the page table i32[max_seqs][page_stride]. */
typedef struct prhs_k_batch {
    prhs_i64 seqs_off, pages_off;         /* bytes */
    prhs_i32 max_seqs, page_stride;
    prhs_i32 rows;                        /* R: decode rows a sequence, at most; work rows are indexed b*R + r */
    prhs_i32 max_rows;                    /* rows of q / k / v / out in all, at most */
    prhs_i32 max_kv_len, max_slots;
    prhs_i64 active_off;                  /* i32 in the buffer of seqs: how many sequences there are; they lie closed up, in the workspace,
                                             each with its entry's index in reserved[0]. PRHS_NONE: the caller's batch */
} prhs_k_batch;

typedef struct prhs_k_shape {
    prhs_i32 heads, kv_heads, group, dim; /* H, H_kv, G = H/H_kv, D */
    prhs_i32 units, unit_heads;           /* selection units a sequence; query heads a unit: unit u serves heads
                                             [u*unit_heads, (u+1)*unit_heads), whose KV head is u*unit_heads/group */
    float scale;
    prhs_i32 reserved;
} prhs_k_shape;

/* A [rows][heads][D] array of the caller: q, k, v or out. */
typedef struct prhs_k_rows {
    prhs_i64 off;                         /* bytes */
    prhs_i64 row, head;                   /* strides in elements */
    prhs_i32 dtype, reserved;
} prhs_k_rows;

/* What a unit remembers; one a (slot, sparse layer, unit). */
typedef struct prhs_unit_state {
    prhs_set set;                         /* of the reference's retrieval (set.end: N then; set.mode: how the last step was served) */
    prhs_i32 ref_pos;                     /* position of the reference query; < 0: none */
    prhs_i32 used;                        /* with several references: position of the last step for which recall took it; < 0: none */
    prhs_i32 reserved[2];
} prhs_unit_state;

/* What a query head remembers of the reference step. */
typedef struct prhs_head_ref {
    float l_dropped;                      /* L_D: log-sum-exp of the dropped middle; -inf: nothing was dropped */
    float delta;                          /* exact dropped mass at the reference */
    float delta_last;                     /* dropped mass of the last step of row 0 (exact or estimated: see set.mode), NaN: unknown */
    float audit_last;                     /* exact dropped mass of the last audited step, NaN: none */
} prhs_head_ref;

typedef struct prhs_value_count {
    prhs_i32 rows;                        /* rows in the sum: [0, rows) */
    prhs_i32 nonfinite;                   /* of these, rows with a NaN or inf channel; they add nothing */
} prhs_value_count;

/* Counters; integers, so that any order of addition gives the same. Masses and their squares are fixed point: times 2^40. */
typedef struct prhs_sample_stat {         /* audited steps whose delta was not known without the audit */
    prhs_i64 count, sum, square;          /* of delta */
    prhs_i64 worst_sum, worst_square;     /* of max(delta, the residual's weight); without a residual the same */
} prhs_sample_stat;
typedef struct prhs_unit_stat {
    prhs_i64 steps;                       /* decode steps of row 0 */
    prhs_i64 missed;                      /* of `dense`: no list would have met the target */
    prhs_i64 dense, window, stream, share, retrieve, copy, seed;
    prhs_i64 kept;                        /* tokens attended on sparse steps without the window's growth */
    prhs_i64 attended;                    /* tokens attended by row 0, all steps, growth included */
    prhs_i64 rows_dense;                  /* rows after the first whose own gate failed */
    prhs_i64 cosine_failed, mass_failed;  /* retrievals by cause: the cosine (gate or floor), the mass gate */
    prhs_sample_stat sample;              /* of the mean over the unit's heads, where all of them are numbers */
} prhs_unit_stat;
typedef struct prhs_head_stat {
    prhs_i64 exact_sum, exact_count;      /* delta of retrieval steps */
    prhs_i64 estimate_sum, estimate_count;/* delta of shared steps: the gate's estimate, or stale (delta at the reference) */
    prhs_i64 audit_sum, audit_count;      /* exact delta of audited steps (all sparse modes) */
    prhs_i64 within;                      /* of audit_count: at most the target */
    prhs_i64 nan_count;                   /* masses that were NaN; in no sum */
    prhs_sample_stat sample;
    prhs_i64 pair_count;                  /* audited shared steps that have an estimate; of these */
    prhs_i64 pair_exact, pair_estimate;   /* sums of the exact delta and of the estimate, */
    prhs_i64 pair_off, pair_square;       /* of |estimate - exact| and of its square */
} prhs_head_stat;
#define PRHS_MASS_ONE 1099511627776.0f    /* 2^40 */

/* One layer's part of the session state; offsets into the state buffer are for slot 0. */
typedef struct prhs_k_state {
    prhs_i64 slot_bytes;                  /* bytes between the blocks of two slots */
    prhs_i64 unit_off;                    /* prhs_unit_state[units] */
    prhs_i64 list_off;                    /* i32[units][list_cap], ascending run positions */
    prhs_i64 qref_off;                    /* f32[heads][dim] */
    prhs_i64 head_off;                    /* prhs_head_ref[heads] */
    prhs_i64 moment_off;                  /* f32[heads][2][dim]: mean, variance of the dropped keys; PRHS_NONE without mass gate */
    prhs_i64 spread_off;                  /* f32[heads][2]: variance of the dropped tokens' scores at the reference; what a shared step
                                             last judged the dropped mass to be, the residual's weight then. As moment_off */
    prhs_i64 vhat_off;                    /* f32[heads][dim]: mean value of the dropped tokens; PRHS_NONE without a retrieved residual */
    prhs_i64 vsum_off;                    /* i64[kv_heads][dim]; PRHS_NONE without a mean residual */
    prhs_i64 vcount_off;                  /* prhs_value_count[kv_heads] */
    prhs_i64 stat_slot_bytes;             /* bytes between the statistics of two slots */
    prhs_i64 unit_stat_off;               /* prhs_unit_stat[units] */
    prhs_i64 head_stat_off;               /* prhs_head_stat[heads] */
    prhs_i64 fault_off;                   /* i32: the error word */
    prhs_i32 list_cap;                    /* runs */
    prhs_i32 reserved;
} prhs_k_state;

/*
 * The references among which a unit may choose, of one layer: offsets into the state buffer for slot 0, slots prhs_k_state.slot_bytes apart. A
 * record has what prhs_k_state keeps of the reference in force, for one unit: f32[unit_heads][2], l_dropped and delta; after it, from
 * PRHS_POOL_ROWS bytes on, the arrays of qref_off, of moment_off and of vhat_off as far as there are any; last the list, i32[list_cap].
 */
typedef struct prhs_k_pool {
    prhs_i64 unit_off;                    /* prhs_unit_state[units][count]; used: the position of the last step that it served */
    prhs_i64 record_off;                  /* [units][count] */
    prhs_i64 record_bytes;
    prhs_i32 count, reserved;             /* 0: units keep one reference, and no pool */
} prhs_k_pool;
#define PRHS_POOL_ROWS(heads) (((heads) * 12 + 15) / 16 * 16)

/* Work of a row of a unit, i32[max_seqs*rows][units]; written by plan and finish, read by attend and finish. */
#define PRHS_WORK_NONE 0
#define PRHS_WORK_SET 1                   /* attend over the unit's set */
#define PRHS_WORK_ALL 2                   /* attend over all tokens up to the row's own */
#define PRHS_WORK_HELD 3                  /* attended over the unit's set: only finish still has to see it (where verdicts come with score) */

#define PRHS_PASSES 3                     /* attend + finish pairs of a layer step, at most */
#define PRHS_TICKET_WINDOWS 4             /* of units, as those who walk over them count them, that have tickets; the others do without */
#define PRHS_TICKETS ((PRHS_PASSES + 1) * PRHS_TICKET_WINDOWS) /* of each attend, then of score */
#define PRHS_ACTIVE 80

/*
 * select on a GPU: tokens of a unit that one block takes alone; longer middles are cut into slices. What a unit's slices leave for each
 * other, in words: three bitmaps of the middle's runs, the runs' keys, counts, and what the groups of dropped tokens sum up to.
 */
#define PRHS_K_SLICE 8192
#define PRHS_K_GROUP 256
#define PRHS_K_SLICES(n) (((n) + PRHS_K_SLICE - 1) / PRHS_K_SLICE)
#define PRHS_K_GROUPS(n) ((n) / PRHS_K_GROUP + 2 * PRHS_K_SLICES(n) + 384) /* with those of the candidates that are dropped */
#define PRHS_K_SLICE_WORDS(n, heads) \
    ((PRHS_K_SLICES(n) * (3 * PRHS_K_SLICE / 32 + PRHS_K_SLICE + 2) + 4 + 4 * PRHS_K_GROUPS(n) * (heads) + 31) / 32 * 32)

/* Units whose sets, work and counts may be read before it is known how many sequences are active. */
#define PRHS_AHEAD 1024

/* Workspace arrays that several kernels share; offsets into the workspace buffer. */
typedef struct prhs_k_work {
    prhs_i64 set_off;                     /* prhs_set[max_seqs][units] */
    prhs_i64 work_off;                    /* i32[max_seqs*rows][units] */
    prhs_i64 part_off;                    /* f32[max_seqs*rows][heads][chunks][dim]: normalised partial outputs */
    prhs_i64 part_lse_off;                /* f32[max_seqs*rows][heads][chunks] */
    prhs_i64 lse_off;                     /* f32[max_seqs*rows][heads]: log-sum-exp of the merged parts */
    prhs_i64 score_off;                   /* f32[max_seqs][heads][score_stride], by position */
    prhs_i64 norm_off;                    /* f32[max_seqs][heads][score_chunks][4]: max and sum over the scored tokens without
                                             NaN/+inf; max and sum over the middle */
    prhs_i64 mom_off;                     /* f32[max_seqs][heads][score_chunks][2][dim]: sum w(k-c), sum w(k-c)^2 over the
                                             middle, w relative to the chunk's middle maximum; PRHS_NONE without moments */
    prhs_i64 vmid_off;                    /* f32[max_seqs][heads][score_chunks][dim]: sum w v over the middle, w as in mom_off; PRHS_NONE
                                             without moments of values */
    prhs_i64 score_stride;                /* floats */
    prhs_i64 attend_count_off;            /* i32[PRHS_PASSES][max_seqs][units]: chunks of the unit's rows in each attend of the step (1
                                             may stand for none); with its neighbours PRHS_NONE where a backend does not keep them. In the
                                             ops tier score and attend have room for them, which nobody has filled */
    prhs_i64 score_count_off;             /* i32[max_seqs][units]: chunks to score for retrieval; 0: the unit does not retrieve. With
                                             judge_off, another one after it: the same before the mass gate's verdicts, where < 0 is
                                             what a unit will have to score whose shared list fails */
    prhs_i64 judge_off;                   /* [max_seqs][heads] of f32[3], i32, with the counts and moments: the dropped log-sum-exp as
                                             it is judged and as it is reported, that of row 0 from which on the shared list holds, and what
                                             attend finds of that: see head_record in cuda/common.cuh */
    prhs_i64 fresh_off;                   /* prhs_set[max_seqs][units], with judge_off: the sets of units that retrieve, or may */
    prhs_i64 aim_off;                     /* u32[max_seqs][units][score_stride]: keys of a retrieval's candidates, where there is a target */
    prhs_i64 slice_off;                   /* u32[max_seqs][units][PRHS_K_SLICE_WORDS(max_kv_len, unit_heads)], with the counts and where
                                             max_kv_len > PRHS_K_SLICE; else PRHS_NONE */
    prhs_i64 active_off;                  /* i32[1 + PRHS_TICKETS], from PRHS_ACTIVE bytes on prhs_seq[max_seqs], with the counts: how many
                                             sequences decode or seed, tickets that the attends of the step and its score have given out,
                                             and these sequences, closed up by plan. All arrays above are by their places; up to
                                             PRHS_AHEAD units the rest is idle */
    prhs_i32 chunks, chunk_min;           /* attend: at most `chunks` chunks of at least chunk_min tokens */
    prhs_i32 score_chunks, score_chunk_min;
} prhs_k_work;

/* The policy, per layer. */
typedef struct prhs_k_policy {
    prhs_i32 layer;                       /* for the staggered block number floor((t + layer)/block); of the layer whose lists are read */
    prhs_i32 dense;                       /* 1: this layer attends densely, and ignores PSAW */
    prhs_i32 k;                           /* tokens; 0: never retrieve (mode STREAM) */
    prhs_i32 sinks, local_tokens;         /* c_sink, c_local */
    prhs_i32 min_sparse_n;
    prhs_i32 block;                       /* s */
    prhs_i32 gate;                        /* PRHS_K_GATE_* ; not NONE: w and P stay those of the retrieval */
    float tau, eps;
    prhs_i32 dilate_m, dilate_back, dilate_ahead;
    prhs_i32 run;                         /* granularity g */
    prhs_i32 join;                        /* PRHS_K_JOIN_*; unit_heads == 1 where every head has its own list */
    prhs_i32 residual;                    /* PRHS_K_RESIDUAL_* */
    prhs_u32 psaw, etf;                   /* a_l: P = a*t >> 32; 0: off */
    prhs_i32 least;                       /* > 0: there is a target. A list has at least so many tokens, a middle of no more is attended
                                             whole, and at most k: aim says how many. And
                                             the mass gate holds while delta, not its rise, is at most eps */
    prhs_i32 copies;                      /* 1: the lists are another layer's, and so are plan's unit states and every list_off */
} prhs_k_policy;

/* --- one argument struct an op --------------------------------------------------------------------------------------- */

/* Writes the step's K and V rows into the cache, then brings the value sums up to date: rows [counted, target) with target =
   kv_len for prompt rows and seeds, else (position of row 0) + 1. write 0: K/V are there already. Item: (sequence, KV head). */
typedef struct prhs_k_append {
    prhs_k_kv kv;
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows k, v;
    prhs_k_state state;                   /* vsum_off, vcount_off, slot_bytes, fault_off; vsum_off may be PRHS_NONE */
    prhs_i32 write, validate;             /* validate 1: check slots, lengths, rows and page ids, raise fault bits, skip the bad */
} prhs_k_append;

/* Value sums of each sequence's slot: sign 1: rebuilt over rows [0, kv_len); sign -1: rows [kv_len, counted) leave. Item:
   (sequence, KV head). */
typedef struct prhs_k_range_sum {
    prhs_k_kv kv;
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_state state;
    prhs_i32 sign, reserved;
} prhs_k_range_sum;

/* Truncation of slots to seq.kv_len rows: a unit loses its reference, and those in its pool, where ref_pos >= kv_len (all 1: everywhere).
   Item: (sequence, unit). */
typedef struct prhs_k_truncate {
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_state state;
    prhs_k_pool pool;
    prhs_i32 all, reserved;
} prhs_k_truncate;

/*
 * Before plan, where units keep several references: saves the one that the last step has made, then takes the one closest to row 0, so that
 * `state` has it, as if the unit had no other. A seed only saves. Item: (sequence, unit).
 */
typedef struct prhs_k_recall {
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows q;
    prhs_k_state state;
    prhs_k_pool pool;
    prhs_i32 layer, block;                /* as in prhs_k_policy */
} prhs_k_recall;

/* Decides each unit's mode and set, the rows' first work, and evaluates the cosines. Item: (sequence, unit). */
typedef struct prhs_k_plan {
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows q;
    prhs_k_state state;
    prhs_k_work work;
    prhs_k_policy policy;
} prhs_k_plan;

/* Scores of the decision row's query heads for units whose mode is in `modes` (a bit per mode). full 0: positions
   [0, sink_end) + [mid_begin, N); full 1: [0, N), for units that are drawn. moments: 0 or PRHS_K_MOMENTS_*, and their arrays in `work`. Item: (sequence, unit,
   chunk of absolute positions). */
typedef struct prhs_k_score {
    prhs_k_kv kv;
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows q;
    prhs_k_work work;
    prhs_i32 modes, full, moments, reserved;
    prhs_k_sample sample;                 /* of the units in these modes; all of them but for audits */
} prhs_k_score;

/* Units in mode RETRIEVE: the fewest runs, best first, with which every head drops at most `mass` of what was scored, into
   set.reserved[1]; where the list does not hold them the unit attends densely. Item: (sequence, unit). */
typedef struct prhs_k_aim {
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_state state;                   /* list_cap; unit_stat_off, stat_slot_bytes */
    prhs_k_work work;
    prhs_k_policy policy;                 /* k, least, run, join */
    prhs_i64 mass;                        /* times 2^40, as each token's weight is */
    prhs_i32 pass, reserved;              /* pass: attends before it in the step (a backend that counts sets it) */
} prhs_k_aim;

/* Top-k of the joint weights of units in mode RETRIEVE; completes the set, writes the list, and where `state_off` arrays are
   present the reference (set, ref_pos, query, L_D by direct summation). Item: (sequence, unit). */
typedef struct prhs_k_select {
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows q;
    prhs_k_state state;                   /* list_off and list_cap always; unit_off, qref_off, head_off may be PRHS_NONE */
    prhs_k_work work;
    prhs_k_policy policy;                 /* k, run, dilation, join; with `least` the set says how many runs: see aim */
} prhs_k_select;

/* Mean and variance of the dropped keys from the score chunks' moments, minus the selected rows; where state.vhat_off is present the
   dropped values' mean likewise. Item: (sequence, head). */
typedef struct prhs_k_moments {
    prhs_k_kv kv;
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_state state;
    prhs_k_work work;
} prhs_k_moments;

/* Partial attention. Item: (sequence, row, unit, chunk of the set's linear index). work.work_off PRHS_NONE: every row of every
   sequence that is not a prompt has PRHS_WORK_SET. */
typedef struct prhs_k_attend {
    prhs_k_kv kv;
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows q;
    prhs_k_state state;                   /* list_off, list_cap, slot_bytes */
    prhs_k_work work;
} prhs_k_attend;

/* Merges a row's parts and ends the row: verdict of the mass gate, residual, dropped mass, statistics, output. Item:
   (sequence, unit), rows in order. verify 1: first pass of the mass gate. */
typedef struct prhs_k_finish {
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows q, out;
    prhs_i64 lse_off;                     /* caller's f32[max_rows][heads], or PRHS_NONE */
    prhs_k_state state;
    prhs_k_work work;
    prhs_k_policy policy;
    prhs_i32 verify, reserved;
} prhs_k_finish;

/* Exact dropped mass of row 0 from full scores, for the units that this score took; statistics only. Item: (sequence, unit). */
typedef struct prhs_k_audit {
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_state state;
    prhs_k_work work;
    prhs_k_sample sample;
    prhs_i32 modes;                       /* as of that score */
    prhs_i32 unknown;                     /* modes in which nothing but an audit knows delta: prhs_sample_stat */
    prhs_i32 residual;                    /* PRHS_K_RESIDUAL_* */
    float target;                         /* masses of at most this are counted as within; < 0: none */
} prhs_k_audit;

/* Causal prompt rows. Item: (sequence, KV head, tile of rows). */
typedef struct prhs_k_prefill {
    prhs_k_kv kv;
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows q, out;
    prhs_i64 lse_off;                     /* caller's f32[max_rows][heads], or PRHS_NONE */
    prhs_i64 fault_off;                   /* i32 in the state buffer, or PRHS_NONE */
    prhs_i32 sinks;
    prhs_u32 psaw, etf;
    prhs_i32 tile;                        /* rows a work item takes together; bits never depend on it */
} prhs_k_prefill;

/* Merges `parts` partial results: o f32 at o_off + 4*(p*part + r*row + h*head + d), lse f32 at lse_off + 4*((p*rows + r)*heads + h);
   writes out rows, and the merged lse where out_lse_off is not PRHS_NONE. Item: (row, head). */
typedef struct prhs_k_merge {
    prhs_k_shape shape;
    prhs_k_rows out;
    prhs_i64 o_off, lse_off, out_lse_off;
    prhs_i64 o_part, o_row, o_head;
    prhs_i32 parts, rows;
} prhs_k_merge;

/* Merges the chunk parts that attend left in the workspace, for the ops tier: out rows and lse of every decode row. */
typedef struct prhs_k_combine {
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows out;
    prhs_i64 lse_off;                     /* caller's f32[max_rows][heads], or PRHS_NONE */
    prhs_k_work work;
} prhs_k_combine;

/* The gate by itself: per (row, head) cosine and estimated dropped mass of q against a reference; f32[rows][heads] each. */
typedef struct prhs_k_gate {
    prhs_k_shape shape;
    prhs_k_rows q;
    prhs_i64 qref_off;                    /* f32[rows][heads][dim] */
    prhs_i64 moment_off;                  /* f32[rows][heads][2][dim] */
    prhs_i64 dropped_off;                 /* f32[rows][heads]: L_D */
    prhs_i64 spread_off;                  /* f32[rows][heads]: variance of the dropped scores; PRHS_NONE: the channels speak for it */
    prhs_i64 lse_off;                     /* f32[rows][heads]: L_C */
    prhs_i64 cosine_off, delta_off;       /* outputs */
    prhs_i32 rows, reserved;
} prhs_k_gate;

#endif
