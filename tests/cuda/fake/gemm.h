/* SPDX-License-Identifier: Apache-2.0 */
/* The launch struct of fake_gemm: c [n][m] = x [n][k] * w [m][k]^T + beta * c, rows so many elements apart. half: w and x are float16. */
#ifndef PRHS_FAKE_GEMM_H
#define PRHS_FAKE_GEMM_H

typedef struct fake_gemm_args {
    const void *w, *x;
    float *c;
    int m, n, k, w_row, x_row, c_row, half;
    float alpha, beta;
} fake_gemm_args;

#endif
