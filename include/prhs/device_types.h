/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file device_types.h
 * The records that live in device memory: what the engine writes there (`prhs_seq`, page tables) and what the ops tell each
 * other (`prhs_set`). Plain 32-bit integers, no padding; this header is also read by the kernels' compilers.
 */
#ifndef PRHS_DEVICE_TYPES_H
#define PRHS_DEVICE_TYPES_H

#if defined(__OPENCL_VERSION__) || defined(__OPENCL_C_VERSION__)
typedef int prhs_i32;
typedef uint prhs_u32;
typedef long prhs_i64;
#else
#include <stdint.h>
typedef int32_t prhs_i32;
typedef uint32_t prhs_u32;
typedef int64_t prhs_i64;
#endif

/** prhs_seq.flags: the rows are a chunk of a prompt. They attend causally (PSAW, ETF); nothing is selected for them. */
#define PRHS_SEQ_PREFILL 1
/**
 * prhs_seq.flags: the sequence's last row retrieves, so that the first decode step can share. With PRHS_SEQ_PREFILL: set it on
 * a prompt's last chunk. Alone: the rows' K/V are cached already, the last row's query only seeds, no output is written.
 */
#define PRHS_SEQ_SEED 2
/** prhs_seq.flags, ops tier only: rows see all kv_len cached rows, whatever their own position (a remote shard of K/V). */
#define PRHS_SEQ_FULL 4

/**
 * One sequence of a step; an array of `max_seqs` of them in device memory describes the batch. The engine may rewrite it in
 * place between steps, also under a captured graph: the library reads it on the device only.
 */
typedef struct prhs_seq {
    prhs_i32 slot;        /**< session slot (state and statistics), < 0: this entry is idle. Ops: the row of the state arrays.
                               A slot appears at most once a step, and the rows of two entries do not overlap */
    prhs_i32 row_begin;   /**< index of the sequence's first query row among the step's rows */
    prhs_i32 row_count;   /**< query rows; 0: idle */
    prhs_i32 kv_len;      /**< cached tokens after this step's rows were appended; row i has position kv_len - row_count + i */
    prhs_i32 flags;       /**< PRHS_SEQ_* */
    prhs_i32 prompt_len;  /**< the prompt's final length n; read for ETF in prefill only, 0: unknown */
    prhs_i32 reserved[2]; /**< 0 */
} prhs_seq;

/** How a unit's step is served; prhs_set.mode. */
#define PRHS_MODE_IDLE 0      /**< nothing to do: idle, or prompt rows */
#define PRHS_MODE_DENSE 1     /**< all cached tokens */
#define PRHS_MODE_WINDOW 2    /**< sinks and everything from PSAW's start: the middle held at most k tokens */
#define PRHS_MODE_SHARE 3     /**< the list of an earlier step */
#define PRHS_MODE_RETRIEVE 4  /**< a list made in this step */
#define PRHS_MODE_STREAM 5    /**< sinks and local window, no list */
#define PRHS_MODE_COPY 6      /**< the list that another layer has in force (see prhs_session_params.list_layers) */

/**
 * The critical set of one selection unit:
 * [0, sink_end) + [edge_begin, edge_end) + the listed runs + [win_begin, end), each token once, in this order.
 * A run at position a covers [a, a + run). A row never looks past its own position, whatever `end` says.
 * "All tokens" is {sink_end 0, edge 0..0, count 0, win_begin 0, end kv_len}.
 */
typedef struct prhs_set {
    prhs_i32 mode;        /**< PRHS_MODE_* */
    prhs_i32 sink_end;
    prhs_i32 edge_begin;  /**< the partial run at the low end of the middle (granularity > 1), else empty */
    prhs_i32 edge_end;
    prhs_i32 count;       /**< runs in the list */
    prhs_i32 run;         /**< tokens a run, >= 1 */
    prhs_i32 win_begin;
    prhs_i32 end;         /**< exclusive */
    prhs_i32 mid_begin;   /**< the middle: what is scored as candidates and, where not selected, dropped */
    prhs_i32 mid_end;
    prhs_i32 reserved[2]; /**< 0: retrievals count in them */
} prhs_set;

#endif
