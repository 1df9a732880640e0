/* SPDX-License-Identifier: Apache-2.0 */
/* Small kernels for the emulator's own test (check.cc): every function against a plain loop, and what it has to report. */
#include "check.h"

#include <device.cuh>

KERNEL(check_shuffles, check_params, 64, 1)
{
    __shared__ int other[64];
    const int t = threadIdx.x, lane = t & 31;
    int *out = p.ints + (blockIdx.x * blockDim.x + t) * 16;
    const int x = t * 7 + 3;
    out[0] = __shfl_sync(FULL, x, 5);
    out[1] = __shfl_xor_sync(FULL, x, 9);
    out[2] = __shfl_up_sync(FULL, x, 3);
    out[3] = __shfl_down_sync(FULL, x, 3);
    out[4] = __shfl_sync(FULL, x, 5, 8);
    out[5] = (int)(__shfl_xor_sync(FULL, (long long)x << 32, 1) >> 32);
    out[6] = (int)__ballot_sync(FULL, lane % 3 == 0);
    out[7] = __any_sync(FULL, lane == 31) + 2 * __any_sync(FULL, lane == 32) + 4 * __all_sync(FULL, lane < 32) + 8 * __all_sync(FULL, lane);
    out[8] = __reduce_max_sync(FULL, x - 100);
    out[9] = __reduce_min_sync(FULL, x - 100);
    out[10] = __reduce_add_sync(FULL, x);
    out[11] = lane < 16 ? __shfl_xor_sync(0xffffu, x, 2) : __reduce_add_sync(0xffff0000u, 1);
    other[63 - t] = t;
    __syncthreads();
    out[12] = other[t];
    out[13] = (int)__shfl_xor_sync(FULL, (float)x, 16);
    atomicAdd(p.total, 1);
    atomicMax(p.total + 1, t);
    atomicOr(p.total + 2, 1 << (t & 7));
    out[14] = __popc(0xf0f0u) + 100 * __ffs(8) + 10000 * __clz(1);
    out[15] = (int)(blockIdx.x * 1000 + gridDim.x * 100 + blockDim.x);
}

KERNEL(check_product, check_params, 32, 1)
{
    DYNAMIC_SHARED(raw);
    unsigned short *a = (unsigned short *)raw, *b = a + 16 * 16; /* a[16][16]; b[16][8] as [k][n], then [n][k] */
    unsigned short *bt = b + 16 * 8;
    const int lane = threadIdx.x;
    for (int i = lane; i < 32; i += 32)
        copy_async(a + 8 * i, p.halves + 8 * i);
    copy_async_or_zero(b + 8 * lane, p.halves + 256 + 8 * (lane & 15), lane < 16);
    copy_commit();
    copy_wait<0>();
    __syncwarp();
    for (int i = lane; i < 128; i += 32)
        bt[(i & 7) * 16 + (i >> 3)] = p.halves[256 + i];
    __syncwarp();
    unsigned fa[4], fb[4], ft[4];
    load_matrices(fa, a + (lane & 15) * 16 + (lane >> 4) * 8);
    load_matrices_transposed(fb, b + (lane & 15) * 8);
    load_matrices(ft, bt + (lane & 7) * 16 + (lane >> 3 & 1) * 8);
    float c[4] = { 1.0f, 1.0f, 1.0f, 1.0f }, d[4] = { 1.0f, 1.0f, 1.0f, 1.0f };
    if (p.bf16) {
        multiply<true>(c, fa, fb[0], fb[1]);
        multiply<true>(d, fa, ft[0], ft[1]);
    } else {
        multiply<false>(c, fa, fb[0], fb[1]);
        multiply<false>(d, fa, ft[0], ft[1]);
    }
    for (int i = 0; i < 4; i++) {
        const int at = (lane / 4 + 8 * (i >> 1)) * 8 + lane % 4 * 2 + (i & 1);
        p.floats[at] = c[i];
        p.floats[128 + at] = d[i];
    }
}

KERNEL(check_halves, check_params, 128, 1)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < 65536; i += gridDim.x * blockDim.x) {
        const float x = half_float((unsigned short)i);
        const bool nan = (i & 0x7fff) > 0x7c00;
        bool good = nan ? isnan(x) && float_half(x) == 0x7fff : float_half(x) == i;
        if ((i & 0x7fff) < 0x7c00) { /* half way to the next one, and a bit to each side */
            const float next = (i & 0x7fff) == 0x7bff ? 65536.0f : fabsf(half_float((unsigned short)(i + 1))), sign = i & 0x8000 ? -1.0f : 1.0f;
            const float half = 0.5f * (fabsf(x) + next);
            good = good && float_half(sign * half) == (i & 1 ? i + 1 : i);
            good = good && float_half(sign * nextafterf(half, 0.0f)) == i && float_half(sign * nextafterf(half, 1e9f)) == i + 1;
        }
        if (!good)
            atomicAdd(p.total, 1);
    }
}

KERNEL(check_dirty, check_params, 32, 1)
{
    __shared__ unsigned other[32];
    DYNAMIC_SHARED(raw);
    p.ints[blockIdx.x * 32 + threadIdx.x] = other[threadIdx.x] == 1 || raw[threadIdx.x] == 1;
    other[threadIdx.x] = 1;
    raw[threadIdx.x] = 1;
}

/* What must not pass. */
KERNEL(check_wrong_exit, check_params, 64, 1)
{
    if (threadIdx.x == 3)
        return;
    __syncthreads();
}
KERNEL(check_wrong_lane, check_params, 32, 1)
{
    if (threadIdx.x != 3)
        p.ints[threadIdx.x] = __shfl_xor_sync(FULL, 1, 1);
}
KERNEL(check_wrong_kind, check_params, 32, 1)
{
    if (threadIdx.x & 1)
        __syncwarp();
    else
        p.ints[threadIdx.x] = __any_sync(FULL, 1);
}
KERNEL(check_wrong_barrier, check_params, 64, 1)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
KERNEL(check_wrong_wait, check_params, 64, 1)
{
    if (threadIdx.x == 9)
        __syncthreads();
    else
        __syncwarp();
    __syncthreads();
}
KERNEL(check_wrong_align, check_params, 32, 1)
{
    p.ints[threadIdx.x] = (int)load_stream(p.ints + 1).x;
}

KERNEL(check_speed, check_params, 128, 1)
{
    float x = threadIdx.x;
    for (int i = 0; i < p.bf16; i++)
        x += __shfl_xor_sync(FULL, x, 1 << (i & 3));
    p.floats[threadIdx.x] = x;
}
