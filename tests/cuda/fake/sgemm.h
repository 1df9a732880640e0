/* SPDX-License-Identifier: Apache-2.0 */
/* The launch struct of fake_sgemm: c [n][m] = x [n][k] * w [m][k]^T + beta * c, rows so many elements apart. */
#ifndef PRHS_FAKE_SGEMM_H
#define PRHS_FAKE_SGEMM_H

typedef struct fake_sgemm_args {
    const float *w, *x;
    float *c;
    int m, n, k, w_row, x_row, c_row;
    float alpha, beta;
} fake_sgemm_args;

#endif
