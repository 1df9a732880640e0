/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file cache.h
 * Tier 2: how the engine's memory looks: the paged K/V cache, rows of queries and outputs, the batch of a step.
 */
#ifndef PRHS_CACHE_H
#define PRHS_CACHE_H

#include <prhs/device.h>
#include <prhs/device_types.h>

PRHS_EXTERN_C_BEGIN

/**
 * One layer's paged K/V cache, in the engine's layout. The element (page p, token i of the page, KV head h, channel d) of K is at
 * k + (p * k_page + i * k_token + h * k_head + d) elements; V likewise. NHD: token > head stride; HND: head > token stride.
 * Strides are multiples of 8 elements. K and V may lie in one buffer. The engine owns the memory.
 */
typedef struct prhs_kv {
    prhs_dtype dtype;
    uint32_t page_size;                /**< tokens a page, 1 ... 256 */
    uint32_t pages;                    /**< pages in the cache; page ids are below this */
    prhs_mem k, v;
    int64_t k_page, k_token, k_head;   /**< strides in elements, 64 bits */
    int64_t v_page, v_token, v_head;
} prhs_kv;

/**
 * Fills strides for K and V of [pages][page_size][kv_heads][dim] (NHD) or [pages][kv_heads][page_size][dim] (HND), each contiguous;
 * kv->page_size must be set. NULL is allowed. Pure.
 */
PRHS_API void prhs_kv_strides_nhd(prhs_kv *kv, uint32_t kv_heads, uint32_t dim);
PRHS_API void prhs_kv_strides_hnd(prhs_kv *kv, uint32_t kv_heads, uint32_t dim);

/** Rows of a caller's array: element (row r, head h, channel d) at mem + (r * row + h * head + d) elements. */
typedef struct prhs_rows {
    prhs_mem mem;
    prhs_dtype dtype;      /**< float32 or the cache's dtype */
    int64_t row, head;     /**< strides in elements, multiples of 8; 0, 0: contiguous [rows][heads][dim] */
} prhs_rows;

/** The batch of a step. Capacities are the host's, contents the device's. */
typedef struct prhs_batch {
    prhs_mem seqs;           /**< prhs_seq[max_seqs] */
    prhs_mem pages;          /**< int32[max_seqs][page_stride]: page table, by index in `seqs` */
    uint32_t max_seqs;
    uint32_t page_stride;    /**< entries a sequence; a kv_len beyond what they hold is bad data, as one beyond max_kv_len */
    uint32_t max_rows;       /**< query rows of all sequences together, at most */
    uint32_t decode_rows;    /**< query rows of one decoding sequence, at most (1 without speculation) */
    uint32_t kinds;          /**< PRHS_HAS_*: which entries may occur; kernels that only the others need are not launched */
} prhs_batch;

#define PRHS_HAS_DECODE 1u   /**< sequences without flags */
#define PRHS_HAS_PREFILL 2u  /**< sequences flagged PRHS_SEQ_PREFILL */
#define PRHS_HAS_SEED 4u     /**< sequences flagged PRHS_SEQ_SEED */

/** The heads of a model. */
typedef struct prhs_shape {
    uint32_t heads;     /**< H, query heads */
    uint32_t kv_heads;  /**< H_kv; H is a multiple, at most 64 times */
    uint32_t dim;       /**< D, a multiple of 8, 32 ... 256 */
    float scale;        /**< of the scores; 0: 1/sqrt(D) */
} prhs_shape;

PRHS_EXTERN_C_END

#endif
