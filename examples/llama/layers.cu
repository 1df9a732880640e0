/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a layer does besides products and attention, and what makes tokens of logits. A block a row, whatever the number of rows, so that a
 * row's bits do not depend on its neighbours; sums in double precision, as the host's.
 */
#include <device.cuh>

#include "layers.h"

#define WARPS(threads) ((threads) / 32)

/* A row's best logit: the largest, of equal ones the first. */
struct candidate {
    float value;
    int index;
};

DEV candidate better(candidate a, candidate b)
{
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

/* The block's sum, in every thread; THREADS: the block's size. */
template <int THREADS> DEV double block_sum(double x)
{
    __shared__ double part[WARPS(THREADS)];
    for (int with = 16; with; with /= 2)
        x += __shfl_xor_sync(FULL, x, with);
    __syncthreads(); /* a sum before this one has been read */
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0.0;
    for (int i = 0; i < WARPS(THREADS); i++)
        sum += part[i];
    return sum;
}

/* A thread's share of a row of logits: `step` is called with four of them at a time, which are read together. */
template <class F> DEV void each_logit(const float *logits, int vocab, F step)
{
    for (int base = threadIdx.x; base < vocab; base += 4 * LOGIT_THREADS) {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            x[i] = base + i * LOGIT_THREADS < vocab ? logits[base + i * LOGIT_THREADS] : __int_as_float(0xff800000);
#pragma unroll
        for (int i = 0; i < 4; i++)
            step(x[i], base + i * LOGIT_THREADS);
    }
}

DEV candidate block_best(const float *logits, int vocab)
{
    __shared__ candidate part[WARPS(LOGIT_THREADS)];
    candidate best = { __int_as_float(0xff800000), vocab };
    each_logit(logits, vocab, [&](float x, int i) {
        const candidate c = { x, i };
        best = better(best, c);
    });
    for (int with = 16; with; with /= 2) {
        const candidate c = { __shfl_xor_sync(FULL, best.value, with), __shfl_xor_sync(FULL, best.index, with) };
        best = better(best, c);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = best;
    __syncthreads();
    for (int i = 0; i < WARPS(LOGIT_THREADS); i++)
        best = better(best, part[i]);
    if (best.index >= vocab) /* nothing but NaN */
        best.index = 0;
    return best;
}

DEV void put(void *out, long long i, float x, int half)
{
    if (half)
        ((unsigned short *)out)[i] = float_half(x);
    else
        ((float *)out)[i] = x;
}

KERNEL(llama_embed, embed_args, LAYER_THREADS, 2)
{
    for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const long long from = (long long)p.ids[row] * p.dim;
        for (int i = threadIdx.x; i < p.dim; i += LAYER_THREADS)
            p.x[(long long)row * p.dim + i] =
                p.half ? half_float(((const unsigned short *)p.table)[from + i]) : ((const float *)p.table)[from + i];
    }
}

KERNEL(llama_norm, norm_args, LAYER_THREADS, 2)
{
    for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const float *x = p.x + (long long)row * p.dim;
        double sum = 0.0;
        for (int i = threadIdx.x; i < p.dim; i += LAYER_THREADS)
            sum += (double)x[i] * (double)x[i];
        const float scale = (float)(1.0 / sqrt(block_sum<LAYER_THREADS>(sum) / (double)p.dim + (double)p.eps));
        for (int i = threadIdx.x; i < p.dim; i += LAYER_THREADS)
            put(p.out, (long long)row * p.dim + i, x[i] * scale * p.weight[i], p.half);
    }
}

KERNEL(llama_rope, rope_args, LAYER_THREADS, 2)
{
    const int half = p.dim / 2;
    for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
        float2 *pairs = (float2 *)(p.rows_of + (long long)row * p.stride);
        const float2 *turns = (const float2 *)p.turns + (long long)p.positions[row] * half;
        for (int i = threadIdx.x; i < p.heads * half; i += LAYER_THREADS) {
            const float2 x = pairs[i], turn = turns[i % half];
            pairs[i] = make_float2(x.x * turn.x - x.y * turn.y, x.x * turn.y + x.y * turn.x);
        }
    }
}

KERNEL(llama_swiglu, swiglu_args, LAYER_THREADS, 2)
{
    for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const float *gate = p.both + 2 * (long long)row * p.ffn;
        for (int i = threadIdx.x; i < p.ffn; i += LAYER_THREADS)
            put(p.out, (long long)row * p.ffn + i, gate[i] / (1.0f + expf(-gate[i])) * gate[p.ffn + i], p.half);
    }
}

KERNEL(llama_round, round_args, LAYER_THREADS, 2)
{
    for (long long i = (long long)blockIdx.x * LAYER_THREADS + threadIdx.x; i < p.count; i += (long long)gridDim.x * LAYER_THREADS)
        put(p.to, i, p.from[i], 1);
}

KERNEL(llama_choose, choose_args, LOGIT_THREADS, 1)
{
    for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const int s = p.first + row;
        const int id = p.logits ? block_best(p.logits + (long long)row * p.vocab, p.vocab).index : p.next[s];
        if (threadIdx.x)
            continue;
        p.next[s] = id;
        p.tokens[(long long)p.made[s]++ * p.all + s] = id;
        p.positions[s] = p.seqs[s].kv_len++;
    }
}

KERNEL(llama_score, score_args, LOGIT_THREADS, 1)
{
    for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const float *logits = p.logits + (long long)row * p.vocab;
        const candidate best = block_best(logits, p.vocab);
        double sum = 0.0;
        each_logit(logits, p.vocab, [&](float x, int) { sum += exp((double)x - (double)best.value); });
        sum = block_sum<LOGIT_THREADS>(sum);
        if (threadIdx.x)
            continue;
        p.best[row] = best.index;
        p.nll[row] = log(sum) + (double)best.value - (double)logits[p.target[row]];
    }
}
