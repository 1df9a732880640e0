/* SPDX-License-Identifier: Apache-2.0 */
/* A decoder of LZMA, as Python's lzma.FORMAT_ALONE writes it: the kernels' machine code shrinks to a ninth, their PTX to a fiftieth. */
#ifndef PRHS_CUDA_LZMA_H
#define PRHS_CUDA_LZMA_H

#include <stdbool.h>
#include <stddef.h>

/* Fills out[size] from in[in_size]; false where the input is no such stream of at least `size` bytes, or there is no host memory. */
bool prhs_nv_lzma(const unsigned char *in, size_t in_size, unsigned char *out, size_t size);

#endif
