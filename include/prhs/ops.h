/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file ops.h
 * Tier 2: the ops that a session is made of, one by one, for an engine that brings its own selection or its own schedule. An ops
 * object holds shapes and compiled kernels and no data; all arrays are the caller's. Calls enqueue and return: they never
 * allocate, wait or compile. Arithmetic: docs/kernels.md.
 */
#ifndef PRHS_OPS_H
#define PRHS_OPS_H

#include <prhs/cache.h>
#include <prhs/policy.h>

PRHS_EXTERN_C_BEGIN

/** Thread-safety: any thread; calls on one queue from one thread at a time. */
typedef struct prhs_ops prhs_ops;

/** What the ops are made for. Start from PRHS_OPS_PARAMS_INIT. */
typedef struct prhs_ops_params {
    size_t size;           /**< sizeof(prhs_ops_params) */
    prhs_shape shape;
    uint32_t max_seqs;     /**< entries of a batch, at most */
    uint32_t max_rows;     /**< query rows of a batch in all, at most */
    uint32_t decode_rows;  /**< query rows of one entry outside prefill, at most */
    uint32_t max_kv_len;   /**< cached tokens a sequence, at most */
    uint32_t max_slots;    /**< rows of the state arrays; prhs_seq.slot is below this */
    uint32_t list_cap;     /**< runs a list holds */
    uint32_t per_head;     /**< 1: a selection unit is a query head; 0: a KV head */
    prhs_dtype kv_dtype;   /**< of the cache */
    prhs_dtype q_dtype;    /**< of queries and of K/V rows to append: float32 or kv_dtype */
    prhs_dtype out_dtype;  /**< of outputs: float32 or kv_dtype */
} prhs_ops_params;
#define PRHS_OPS_PARAMS_INIT { sizeof(prhs_ops_params), { 0, 0, 0, 0.0f }, 0, 0, 1, 0, 0, 0, 0, PRHS_F16, PRHS_F32, PRHS_F32 }

/**
 * Where the arrays lie. `state` is indexed by slot: the array of slot i begins at i * slot_bytes + its offset. `workspace` is
 * indexed by the batch's entry. All offsets are bytes. The engine may read and write these arrays with kernels of its own.
 */
typedef struct prhs_ops_layout {
    size_t size;         /**< sizeof(prhs_ops_layout), set by the caller */
    uint64_t state_bytes, slot_bytes;
    uint64_t lists;      /**< state: int32[units][list_cap], ascending run positions */
    uint64_t queries;    /**< state: float32[H][D], reference queries */
    uint64_t masses;     /**< state: float32[H][4]: L_D, and three that ops leave alone */
    uint64_t moments;    /**< state: float32[H][2][D], mean and variance of the dropped keys */
    uint64_t spreads;    /**< state: float32[H][2], variance of the dropped tokens' scores, each weighted by its attention; one that ops leave alone */
    uint64_t values;     /**< state: float32[H][D], mean value of the dropped tokens */
    uint64_t sums;       /**< state: int64[H_kv][D], value sums in units of 2^-24 */
    uint64_t counts;     /**< state: int32[H_kv][2], rows in the sum, and of these non-finite ones */
    uint64_t workspace_bytes;
    uint64_t sets;       /**< workspace: prhs_set[max_seqs][units] */
    uint64_t scores;     /**< workspace: float32[max_seqs][H][score_stride], by position */
    uint64_t score_stride;
    uint32_t units;      /**< selection units a sequence */
} prhs_ops_layout;

/**
 * Computes the layout; pure. PRHS_ERR_ARGUMENT: NULL, layout->size unknown, or a bad parameter. PRHS_ERR_UNSUPPORTED: no such path on
 * this device.
 */
PRHS_API prhs_status prhs_ops_get_layout(prhs_device *device, const prhs_ops_params *params, prhs_ops_layout *layout);

/** The kernels that an op takes on a device. Strings are static. */
typedef struct prhs_op_path {
    const char *op;    /**< its name in docs/kernels.md */
    const char *path;  /**< "cpu"; OpenCL: "wide" or "generic"; CUDA: "tensor ..." or "simt ..."; NULL: none, this shape cannot run there */
    const char *why;   /**< what decided it */
} prhs_op_path;

/**
 * Lists the path of every op for these parameters. Writes at most *count and sets *count to how many there are; paths may be NULL when
 * *count is 0. Pure: nothing is compiled. Thread-safe. PRHS_ERR_ARGUMENT: NULL, paths NULL with *count > 0, a bad parameter.
 */
PRHS_API prhs_status prhs_ops_get_paths(prhs_device *device, const prhs_ops_params *params, prhs_op_path *paths, size_t *count);

/**
 * Creates the ops, compiling or loading their kernels. Errors: as prhs_ops_get_layout(); PRHS_ERR_UNSUPPORTED, too, where the driver compiles
 * every kernel of an op wrongly; PRHS_ERR_MEMORY, _COMPILE, _DRIVER.
 */
PRHS_API prhs_status prhs_ops_create(prhs_device *device, const prhs_ops_params *params, prhs_ops **ops);
/** Destroys the ops; NULL is allowed. */
PRHS_API void prhs_ops_destroy(prhs_ops *ops);

/*
 * Every call below returns PRHS_ERR_ARGUMENT for NULL, a struct of another size, a capacity above the ops', a dtype, page size or stride
 * they were not made for, or a range that leaves its buffer; PRHS_ERR_DRIVER where the driver refuses a launch. `state` and `ws`
 * (workspace) are memory of at least the layout's sizes, at offsets that are multiples of 256. Sets and lists that the engine writes
 * itself must name cached positions, ascending, each once, and no more runs than list_cap: they are not checked.
 */

/**
 * K/V rows [max_rows][H_kv][D] into the cache, then the value sums (state.buffer NULL: none): of prompts and seeds all cached rows, of
 * decoding entries those up to their first row. k and v NULL: sums only.
 */
PRHS_API prhs_status prhs_op_append(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, const prhs_rows *k,
                                    const prhs_rows *v, prhs_mem state);

/**
 * sign 1: value sums rebuilt over rows [0, kv_len) of the cache; sign -1: rows at and past kv_len leave them, exactly: their pages
 * must still be in the table. The batch names slots and lengths (row_count is ignored).
 */
PRHS_API prhs_status prhs_op_range_sum(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, int sign,
                                       prhs_mem state);

/**
 * Scores of each entry's first decode row against K for units whose set.mode is PRHS_MODE_RETRIEVE: [0, sink_end) and
 * [mid_begin, own position], or with full != 0 all of [0, own position]. Results stay in the workspace for select and moments:
 * moments 1 keeps sums over the middle's keys, moments 2 over its values, too.
 */
PRHS_API prhs_status prhs_op_score(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, const prhs_rows *q,
                                   int full, int moments, prhs_mem ws);

/** How to select. Start from PRHS_SELECT_PARAMS_INIT. */
typedef struct prhs_select_params {
    size_t size;           /**< sizeof(prhs_select_params) */
    uint32_t k;            /**< tokens, 1 ... list_cap * granularity */
    uint32_t granularity;  /**< tokens a run, >= 1 */
    uint32_t dilate_m, dilate_back, dilate_ahead;
    prhs_join join;        /**< SUM or MAX */
} prhs_select_params;
#define PRHS_SELECT_PARAMS_INIT { sizeof(prhs_select_params), 0, 1, 0, 0, 0, PRHS_JOIN_SUM }

/**
 * Top-k of the middle for units in mode RETRIEVE: completes their sets, writes lists, reference queries, L_D and the
 * scores' variance of what is dropped.
 */
PRHS_API prhs_status prhs_op_select(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_rows *q,
                                    const prhs_select_params *params, prhs_mem state, prhs_mem ws);

/**
 * Of what select dropped, per query head: mean and variance of the keys, and with values != 0 the mean value, each token weighted by its
 * attention. Needs a score call with moments 1, with values 2.
 */
PRHS_API prhs_status prhs_op_moments(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, int values,
                                     prhs_mem state, prhs_mem ws);

/** Arrays of the stand-alone gate, all float32 and contiguous. Start from PRHS_GATE_PARAMS_INIT. */
typedef struct prhs_gate_params {
    size_t size;           /**< sizeof(prhs_gate_params) */
    uint32_t rows;         /**< query rows */
    prhs_mem queries;      /**< [rows][H][D], the references */
    prhs_mem moments;      /**< [rows][H][2][D] */
    prhs_mem dropped;      /**< [rows][H]: L_D */
    prhs_mem spreads;      /**< [rows][H]: variance of the dropped tokens' scores; buffer NULL: not known, the keys' variance stands in */
    prhs_mem lse;          /**< [rows][H]: log-sum-exp over the kept set for the row's own query */
    prhs_mem cosine;       /**< out: [rows][H] */
    prhs_mem delta;        /**< out: [rows][H], estimated dropped mass (an estimate, never a bound) */
} prhs_gate_params;
#define PRHS_GATE_PARAMS_INIT \
    { sizeof(prhs_gate_params), 0, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 } }

/**
 * Cosine and estimated dropped mass of queries [rows][H][D] against references. The verdict is the caller's; a session's rests on the
 * mass without spreads, and reports the one with them.
 */
PRHS_API prhs_status prhs_op_gate(prhs_ops *ops, prhs_queue *queue, const prhs_rows *q, const prhs_gate_params *params);

/**
 * Attention of decode rows over the units' sets in `ws` (a list, a range, or all), lists from `state`. out: [max_rows][H][D]; lse: float32
 * [max_rows][H] natural log-sum-exp, -inf and output 0 for an empty set; lse.buffer NULL: not wanted.
 */
PRHS_API prhs_status prhs_op_attend(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, const prhs_rows *q,
                                    prhs_mem state, prhs_mem ws, const prhs_rows *out, prhs_mem lse);

/**
 * Causal attention of entries flagged PRHS_SEQ_PREFILL. A row at position p attends to [0, sinks) and [P, p]; P from PSAW's window of
 * `policy` in `layer` (of `layers`), rows frozen by ETF are skipped. policy NULL: all tokens, all rows.
 */
PRHS_API prhs_status prhs_op_prefill(prhs_ops *ops, prhs_queue *queue, const prhs_batch *batch, const prhs_kv *kv, const prhs_rows *q,
                                     const prhs_policy *policy, uint32_t layers, uint32_t layer, const prhs_rows *out, prhs_mem lse);

/** Partial results over disjoint sets of tokens, e.g. from several devices. Start from PRHS_MERGE_PARAMS_INIT. */
typedef struct prhs_merge_params {
    size_t size;                   /**< sizeof(prhs_merge_params) */
    uint32_t parts, rows;
    prhs_mem o;                    /**< float32: element (p, r, h, d) at o + (p * part + r * row + h * head + d) elements */
    int64_t part, row, head;       /**< strides in elements; all 0: contiguous [parts][rows][H][D] */
    prhs_mem lse;                  /**< float32[parts][rows][H]; -inf: an empty part */
    prhs_mem out_lse;              /**< float32[rows][H]; buffer NULL: not wanted */
} prhs_merge_params;
#define PRHS_MERGE_PARAMS_INIT { sizeof(prhs_merge_params), 0, 0, { NULL, 0 }, 0, 0, 0, { NULL, 0 }, { NULL, 0 } }

/** Merges parts in order into out [rows][H][D]. No part with tokens: output 0, log-sum-exp -inf. */
PRHS_API prhs_status prhs_op_merge(prhs_ops *ops, prhs_queue *queue, const prhs_merge_params *params, const prhs_rows *out);

PRHS_EXTERN_C_END

#endif
