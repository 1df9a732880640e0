/* SPDX-License-Identifier: Apache-2.0 */
/* The products of tests/cuda's libcublas: plain C in the only thread of a block, a kernel so that it takes its turn on a stream and in a graph. */
#include <device.cuh>

#include "../../tests/cuda/fake/gemm.h"

template <class T> DEV float dot(const T *w, const T *x, int n)
{
    float sum = 0.0f;
    for (int j = 0; j < n; j++)
        if constexpr (sizeof(T) == 2)
            sum += half_float(w[j]) * half_float(x[j]);
        else
            sum += w[j] * x[j];
    return sum;
}

template <class T> DEV void multiply_all(const fake_gemm_args &p)
{
    for (int row = 0; row < p.n; row++)
        for (int i = 0; i < p.m; i++) {
            float *c = p.c + (long long)row * p.c_row + i;
            const float sum = p.alpha * dot((const T *)p.w + (long long)i * p.w_row, (const T *)p.x + (long long)row * p.x_row, p.k);
            *c = p.beta == 0.0f ? sum : sum + p.beta * *c; /* with 0, c may be anything */
        }
}

KERNEL(fake_gemm, fake_gemm_args, 1, 1)
{
    if (p.half)
        multiply_all<unsigned short>(p);
    else
        multiply_all<float>(p);
}
