/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <math.h>

prhs_status prhs_check_shape(const prhs_log *log, const char *call, const prhs_shape *shape, bool per_head, prhs_k_shape *out) {
    if (shape->dim < 32 || shape->dim > 256 || shape->dim % 8)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: dim %u is not a multiple of 8 from 32 to 256", call, shape->dim);
    if (shape->kv_heads == 0 || shape->heads == 0 || shape->heads % shape->kv_heads || shape->heads / shape->kv_heads > 64 ||
        shape->heads > 4096)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: %u query heads are not 1 to 64 times %u KV heads (and at most 4096)", call,
                         shape->heads, shape->kv_heads);
    if (!(shape->scale >= 0.0f) || !isfinite(shape->scale))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: scale is negative or not finite", call);
    *out = (prhs_k_shape){
        .heads = (prhs_i32)shape->heads,
        .kv_heads = (prhs_i32)shape->kv_heads,
        .group = (prhs_i32)(shape->heads / shape->kv_heads),
        .dim = (prhs_i32)shape->dim,
        .units = (prhs_i32)(per_head ? shape->heads : shape->kv_heads),
        .unit_heads = per_head ? 1 : (prhs_i32)(shape->heads / shape->kv_heads),
        .scale = shape->scale > 0.0f ? shape->scale : (float)(1.0 / sqrt((double)shape->dim)),
    };
    return PRHS_OK;
}

prhs_status prhs_check_capacity(const prhs_log *log, const char *call, const char *name, uint32_t value, uint32_t max) {
    if (value == 0 || value > max)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: %s is %u, must be 1 to %u", call, name, value, max);
    return PRHS_OK;
}

prhs_status prhs_check_dtypes(const prhs_log *log, const char *call, prhs_dtype kv, prhs_dtype q, prhs_dtype out) {
    if (!prhs_dtype_size(kv))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: kv_dtype %d is no prhs_dtype", call, (int)kv);
    if (q != PRHS_F32 && q != kv)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: q_dtype must be float32 or the cache's dtype", call);
    if (out != PRHS_F32 && out != kv)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: out_dtype must be float32 or the cache's dtype", call);
    return PRHS_OK;
}

prhs_status prhs_check_queue(const prhs_limits *l, const prhs_queue *queue) {
    if (queue->dev != l->dev)
        return prhs_fail(&l->dev->log, PRHS_ERR_ARGUMENT, "%s: the queue belongs to another device", l->call);
    return PRHS_OK;
}

prhs_status prhs_check_mem(const prhs_limits *l, const char *name, prhs_mem mem, uint64_t size, uint64_t align, bool optional) {
    const prhs_log *log = &l->dev->log;
    if (!mem.buffer)
        return optional ? PRHS_OK : prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: %s has no buffer", l->call, name);
    if (mem.buffer->dev != l->dev)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: the buffer of %s belongs to another device", l->call, name);
    if (mem.offset % align)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: the offset of %s is not a multiple of %u", l->call, name, (unsigned)align);
    if (mem.offset > mem.buffer->size || size > mem.buffer->size - mem.offset)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: %s needs %llu bytes at offset %llu, its buffer has %llu", l->call, name,
                         (unsigned long long)size, (unsigned long long)mem.offset, (unsigned long long)mem.buffer->size);
    return PRHS_OK;
}

prhs_status prhs_check_batch(const prhs_limits *l, const prhs_batch *batch, bool page_table, prhs_k_batch *out) {
    const prhs_log *log = &l->dev->log;
    prhs_status status;
    if ((status = prhs_check_capacity(log, l->call, "batch.max_seqs", batch->max_seqs, (uint32_t)l->max_seqs)) != PRHS_OK ||
        (status = prhs_check_capacity(log, l->call, "batch.max_rows", batch->max_rows, (uint32_t)l->max_rows)) != PRHS_OK ||
        (status = prhs_check_capacity(log, l->call, "batch.decode_rows", batch->decode_rows, (uint32_t)l->decode_rows)) != PRHS_OK)
        return status;
    if (batch->kinds & ~(PRHS_HAS_DECODE | PRHS_HAS_PREFILL | PRHS_HAS_SEED))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: batch.kinds has unknown bits", l->call);
    if ((status = prhs_check_mem(l, "batch.seqs", batch->seqs, batch->max_seqs * sizeof(prhs_seq), 4, false)) != PRHS_OK)
        return status;
    if (page_table) {
        status = prhs_check_capacity(log, l->call, "batch.page_stride", batch->page_stride, INT32_MAX);
        if (status == PRHS_OK)
            status = prhs_check_mem(l, "batch.pages", batch->pages, (uint64_t)batch->max_seqs * batch->page_stride * 4, 4, false);
        if (status != PRHS_OK)
            return status;
    }
    *out = (prhs_k_batch){
        .seqs_off = (prhs_i64)batch->seqs.offset,
        .pages_off = (prhs_i64)batch->pages.offset,
        .max_seqs = (prhs_i32)batch->max_seqs,
        .page_stride = (prhs_i32)batch->page_stride,
        .rows = (prhs_i32)batch->decode_rows,
        .max_rows = (prhs_i32)batch->max_rows,
        .max_kv_len = l->max_kv_len,
        .max_slots = l->max_slots,
        .active_off = PRHS_NONE,
    };
    return PRHS_OK;
}

static bool bad_stride(int64_t stride) { return stride < 0 || stride > INT64_C(1) << 40 || stride % 8; }

/* Bytes up to the last element that the strides reach. */
static uint64_t reach(const prhs_kv *kv, int64_t page, int64_t token, int64_t head, const prhs_k_shape *shape) {
    uint64_t end = prhs_reach((uint64_t)head, (uint64_t)shape->kv_heads - 1, (uint64_t)shape->dim);
    end = prhs_reach((uint64_t)token, kv->page_size - 1, end);
    end = prhs_reach((uint64_t)page, kv->pages - 1, end);
    return prhs_reach(end, prhs_dtype_size(kv->dtype), 0);
}

prhs_status prhs_check_kv(const prhs_limits *l, const prhs_kv *kv, prhs_k_kv *out) {
    const prhs_log *log = &l->dev->log;
    prhs_status status;
    if (kv->dtype != l->kv_dtype)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: kv.dtype is not the one this object was made for", l->call);
    if ((status = prhs_check_capacity(log, l->call, "kv.page_size", kv->page_size, 256)) != PRHS_OK ||
        (status = prhs_check_capacity(log, l->call, "kv.pages", kv->pages, INT32_MAX)) != PRHS_OK)
        return status;
    if (bad_stride(kv->k_page) || bad_stride(kv->k_token) || bad_stride(kv->k_head) || bad_stride(kv->v_page) ||
        bad_stride(kv->v_token) || bad_stride(kv->v_head))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: a stride of kv is negative, above 2^40 or no multiple of 8", l->call);
    uint64_t k = reach(kv, kv->k_page, kv->k_token, kv->k_head, &l->shape);
    uint64_t v = reach(kv, kv->v_page, kv->v_token, kv->v_head, &l->shape);
    if ((status = prhs_check_mem(l, "kv.k", kv->k, k, 16, false)) != PRHS_OK ||
        (status = prhs_check_mem(l, "kv.v", kv->v, v, 16, false)) != PRHS_OK)
        return status;
    prhs_i32 shift = 0;
    while (kv->page_size > 1u << shift)
        shift++;
    *out = (prhs_k_kv){
        .k_off = (prhs_i64)kv->k.offset,
        .v_off = (prhs_i64)kv->v.offset,
        .k_page = kv->k_page,
        .k_token = kv->k_token,
        .k_head = kv->k_head,
        .v_page = kv->v_page,
        .v_token = kv->v_token,
        .v_head = kv->v_head,
        .page_size = (prhs_i32)kv->page_size,
        .pages = (prhs_i32)kv->pages,
        .dtype = (prhs_i32)kv->dtype,
        .page_shift = shift,
        .page_inverse = (prhs_u32)((UINT64_C(1) << (31 + shift)) / kv->page_size + 1),
    };
    return PRHS_OK;
}

void prhs_limit_pages(prhs_k_batch *batch, const prhs_k_kv *kv) {
    prhs_i64 held = (prhs_i64)batch->page_stride * kv->page_size;
    if (held < batch->max_kv_len)
        batch->max_kv_len = (prhs_i32)held;
}

prhs_status prhs_check_rows(const prhs_limits *l, const char *name, const prhs_rows *rows, uint32_t count, uint32_t heads,
                            prhs_dtype dtype, prhs_k_rows *out) {
    const prhs_log *log = &l->dev->log;
    int64_t head = rows->head ? rows->head : l->shape.dim, row = rows->row ? rows->row : (int64_t)heads * l->shape.dim;
    if (rows->dtype != dtype)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: %s.dtype is not the one this object was made for", l->call, name);
    if (bad_stride(head) || bad_stride(row))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "%s: a stride of %s is negative, above 2^40 or no multiple of 8", l->call, name);
    uint64_t need = prhs_reach((uint64_t)head, heads - 1, (uint64_t)l->shape.dim);
    need = prhs_reach((uint64_t)row, count - 1, need);
    prhs_status status = prhs_check_mem(l, name, rows->mem, prhs_reach(need, prhs_dtype_size(dtype), 0), 16, false);
    *out = (prhs_k_rows){ .off = (prhs_i64)rows->mem.offset, .row = row, .head = head, .dtype = (prhs_i32)dtype };
    return status;
}

static void strides(prhs_kv *kv, int64_t page, int64_t token, int64_t head) {
    kv->k_page = kv->v_page = page;
    kv->k_token = kv->v_token = token;
    kv->k_head = kv->v_head = head;
}

void prhs_kv_strides_nhd(prhs_kv *kv, uint32_t kv_heads, uint32_t dim) {
    if (kv)
        strides(kv, (int64_t)kv->page_size * kv_heads * dim, (int64_t)kv_heads * dim, dim);
}

void prhs_kv_strides_hnd(prhs_kv *kv, uint32_t kv_heads, uint32_t dim) {
    if (kv)
        strides(kv, (int64_t)kv->page_size * kv_heads * dim, dim, (int64_t)kv->page_size * dim);
}
