/* SPDX-License-Identifier: Apache-2.0 */
/* Validation of what the caller passes, once, and its translation into kernel arguments. */
#ifndef PRHS_CHECK_H
#define PRHS_CHECK_H

#include <prhs/cache.h>

#include "backend.h"

/* What a session or an ops object was made for; every call is held against it. */
typedef struct prhs_limits {
    prhs_device *dev;
    const char *call;  /* public name of the call being checked, for sentences */
    prhs_k_shape shape;
    prhs_i32 max_slots, max_seqs, max_rows, decode_rows, max_kv_len;
    prhs_dtype kv_dtype, q_dtype, out_dtype;
} prhs_limits;

prhs_status prhs_check_shape(const prhs_log *log, const char *call, const prhs_shape *shape, bool per_head, prhs_k_shape *out);
prhs_status prhs_check_capacity(const prhs_log *log, const char *call, const char *name, uint32_t value, uint32_t max);
prhs_status prhs_check_dtypes(const prhs_log *log, const char *call, prhs_dtype kv, prhs_dtype q, prhs_dtype out);
prhs_status prhs_check_queue(const prhs_limits *limits, const prhs_queue *queue);

/* a * b + c, and UINT64_MAX where 64 bits do not hold it: ranges that absurd strides ask for must not wrap into small ones. */
static inline uint64_t prhs_reach(uint64_t a, uint64_t b, uint64_t c) {
    return a && b > (UINT64_MAX - c) / a ? UINT64_MAX : a * b + c;
}

/* mem must hold `size` bytes at a multiple of `align`. `optional`: a NULL buffer passes. */
prhs_status prhs_check_mem(const prhs_limits *limits, const char *name, prhs_mem mem, uint64_t size, uint64_t align, bool optional);

/* `page_table` false: the call reads no page table. */
prhs_status prhs_check_batch(const prhs_limits *limits, const prhs_batch *batch, bool page_table, prhs_k_batch *out);
prhs_status prhs_check_kv(const prhs_limits *limits, const prhs_kv *kv, prhs_k_kv *out);
/* A batch whose sequences may not be longer than their page tables: what lies past a table's end is no page id. */
void prhs_limit_pages(prhs_k_batch *batch, const prhs_k_kv *kv);
/* Rows of `heads` heads; `rows` of them. */
prhs_status prhs_check_rows(const prhs_limits *limits, const char *name, const prhs_rows *rows, uint32_t count, uint32_t heads,
                            prhs_dtype dtype, prhs_k_rows *out);

#endif
