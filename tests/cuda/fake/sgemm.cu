/* SPDX-License-Identifier: Apache-2.0 */
/* The product of tests/cuda's libcublas: plain C in the only thread of a block, a kernel so that it takes its turn on a stream and in a graph. */
#include <device.cuh>

#include "../../tests/cuda/fake/sgemm.h"

KERNEL(fake_sgemm, fake_sgemm_args, 1, 1)
{
    for (int row = 0; row < p.n; row++)
        for (int i = 0; i < p.m; i++) {
            const float *w = p.w + (long long)i * p.w_row, *x = p.x + (long long)row * p.x_row;
            float *c = p.c + (long long)row * p.c_row + i, sum = 0.0f;
            for (int j = 0; j < p.k; j++)
                sum += w[j] * x[j];
            *c = p.beta == 0.0f ? p.alpha * sum : p.alpha * sum + p.beta * *c; /* with 0, c may be anything */
        }
}
