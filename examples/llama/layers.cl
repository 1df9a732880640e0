/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a layer does besides products and attention, and what makes tokens of logits, in OpenCL C 1.2. A row is one group's where it is summed,
 * whatever the number of rows, so that a row's bits do not depend on its neighbours. Sums are pairs of float32, as precise as double precision
 * is for a float32 result, and on every device the same: many have no doubles, or slow ones. Groups are a power of two, at most GROUP.
 */
#pragma OPENCL FP_CONTRACT OFF

/* A row's best logit: the largest, of equal ones the first. */
typedef struct candidate {
    float value;
    int index;
} candidate;

candidate better(candidate a, candidate b) { return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a; }

/* The sum's value is x + y, y what does not fit into x. */
float2 plus(float2 sum, float term, float rest) {
    const float all = sum.x + term, part = all - sum.x;
    return (float2)(all, sum.y + ((sum.x - (all - part)) + (term - part)) + rest);
}

/* The group's sum, in every work-item. */
float2 group_sum(float2 mine, __local float2 *part) {
    const int i = (int)get_local_id(0);
    part[i] = mine;
    for (int n = (int)get_local_size(0) / 2; n; n /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (i < n)
            part[i] = plus(part[i], part[i + n].x, part[i + n].y);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return part[0];
}

candidate group_best(__global const float *logits, int vocab, __local candidate *part) {
    const int i = (int)get_local_id(0);
    candidate best = { -INFINITY, vocab };
    for (int j = i; j < vocab; j += (int)get_local_size(0)) {
        const candidate c = { logits[j], j };
        best = better(best, c);
    }
    part[i] = best;
    for (int n = (int)get_local_size(0) / 2; n; n /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (i < n)
            part[i] = better(part[i], part[i + n]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    best = part[0];
    if (best.index >= vocab) /* nothing but NaN */
        best.index = 0;
    return best;
}

/* x [rows][dim] = table[ids[row]] */
__kernel void llama_embed(__global const int *ids, __global const float *table, __global float *x, int dim) {
    const size_t i = get_global_id(0), row = get_global_id(1);
    if (i < (size_t)dim)
        x[row * (size_t)dim + i] = table[(size_t)ids[row] * (size_t)dim + i];
}

/* out = x / rms(x) * weight; at, weight_at: where they begin */
__kernel void llama_norm(__global const float *x, int at, __global const float *weight, int weight_at, __global float *out, int dim, float eps) {
    __local float2 part[GROUP];
    const size_t row = get_global_id(1) * (size_t)dim;
    float2 sum = (float2)(0.0f, 0.0f);
    for (int i = (int)get_local_id(0); i < dim; i += (int)get_local_size(0)) {
        const float value = x[(size_t)at + row + (size_t)i], square = value * value;
        sum = plus(sum, square, fma(value, value, -square));
    }
    sum = group_sum(sum, part);
    const float scale = 1.0f / sqrt((sum.x + sum.y) / (float)dim + eps);
    for (int i = (int)get_local_id(0); i < dim; i += (int)get_local_size(0))
        out[row + (size_t)i] = x[(size_t)at + row + (size_t)i] * scale * weight[weight_at + i];
}

/* Rotates the first `heads` heads of rows `stride` apart. turns: (cosine, sine) [position][dim / 2]; row r is at positions[r]. */
__kernel void llama_rope(__global float *rows_of, __global const float *turns, __global const int *positions, int heads, int dim, int stride) {
    const int i = (int)get_global_id(0), half_dim = dim / 2;
    const size_t row = get_global_id(1);
    if (i < heads * half_dim) {
        const size_t at = row * (size_t)stride + 2 * (size_t)i, turn = 2 * ((size_t)positions[row] * (size_t)half_dim + (size_t)(i % half_dim));
        const float a = rows_of[at], b = rows_of[at + 1], c = turns[turn], s = turns[turn + 1];
        rows_of[at] = a * c - b * s;
        rows_of[at + 1] = a * s + b * c;
    }
}

/* out [rows][ffn] = silu(gate) * up, which are the halves of a row of both [rows][2 * ffn] */
__kernel void llama_swiglu(__global const float *both, __global float *out, int ffn) {
    const size_t i = get_global_id(0), row = get_global_id(1);
    if (i < (size_t)ffn) {
        const float gate = both[2 * row * (size_t)ffn + i];
        out[row * (size_t)ffn + i] = gate / (1.0f + exp(-gate)) * both[(2 * row + 1) * (size_t)ffn + i];
    }
}

/*
 * The next tokens of sequences first and on, a group each: the likeliest of logits [row][vocab], or, where `given`, what stands in next already.
 * seqs, next, positions, made, tokens: of all sequences; tokens [step][all]. SEQ_INTS, KV_LEN: prhs_seq.
 */
__kernel void llama_choose(__global const float *logits, int given, __global int *seqs, __global int *next, __global int *positions,
                           __global int *made, __global int *tokens, int vocab, int first, int all) {
    __local candidate part[GROUP];
    const int row = (int)get_global_id(1), s = first + row;
    const candidate best = group_best(logits + (size_t)row * (size_t)vocab, given ? 0 : vocab, part);
    if (get_local_id(0) == 0) {
        const int id = given ? next[s] : best.index;
        next[s] = id;
        tokens[(size_t)made[s]++ * (size_t)all + (size_t)s] = id;
        positions[s] = seqs[s * SEQ_INTS + KV_LEN]++;
    }
}

/*
 * Of rows `at` and on, logits [row][vocab]: score[row] = the best logit, the sum of exp(logit - best logit) in two parts, the target's logit;
 * best[row] the likeliest token.
 */
__kernel void llama_score(__global const float *logits, __global const int *target, int at, __global float4 *score, __global int *best, int vocab) {
    __local candidate part[GROUP];
    __local float2 sums[GROUP];
    const size_t row = get_global_id(1);
    logits += row * (size_t)vocab;
    const candidate top = group_best(logits, vocab, part);
    float2 sum = (float2)(0.0f, 0.0f);
    for (int i = (int)get_local_id(0); i < vocab; i += (int)get_local_size(0))
        sum = plus(sum, exp(logits[i] - top.value), 0.0f);
    sum = group_sum(sum, sums);
    if (get_local_id(0) == 0) {
        score[(size_t)at + row] = (float4)(top.value, sum.x, sum.y, logits[target[(size_t)at + row]]);
        best[(size_t)at + row] = top.index;
    }
}
