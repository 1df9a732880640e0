/* SPDX-License-Identifier: Apache-2.0 */
/* One element of a row, between its type and float; whole rows of the caller's arrays. Stores round to nearest even. */
#ifndef PRHS_CPU_CONVERT_H
#define PRHS_CPU_CONVERT_H

#include <stdint.h>
#include <string.h>

#include "../kargs.h"

static inline float prhs_cpu_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t prhs_cpu_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float prhs_cpu_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, x = (uint32_t)(h & 0x7fff) << 13;
    uint32_t special = x >= 0x0f800000 ? 0x7f800000 : 0;
    return prhs_cpu_float(prhs_cpu_bits(prhs_cpu_float(x) * 0x1p112f) | special | sign);
}

static inline uint16_t prhs_cpu_to_f16(float f) {
    uint32_t x = prhs_cpu_bits(f), sign = x >> 16 & 0x8000;
    x &= 0x7fffffff;
    if (x > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (x >= 0x477ff000) /* 65520: half-way above the largest, which is odd */
        return (uint16_t)(sign | 0x7c00);
    if (x < 0x38800000) /* subnormal: the addition rounds to multiples of 2^-24 */
        return (uint16_t)(sign | (prhs_cpu_bits(prhs_cpu_float(x) + 0.5f) - 0x3f000000));
    x += 0xfff + (x >> 13 & 1);
    return (uint16_t)(sign | ((x - 0x38000000) >> 13));
}

static inline uint16_t prhs_cpu_to_bf16(float f) {
    uint32_t x = prhs_cpu_bits(f);
    if ((x & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(x >> 16 | 0x40);
    return (uint16_t)((x + 0x7fff + (x >> 16 & 1)) >> 16);
}

static inline int prhs_cpu_size(int dtype) { return dtype == PRHS_K_F32 ? 4 : 2; }

static inline void prhs_cpu_load(int dtype, const char *row, int dim, float *out) {
    const uint16_t *half = (const uint16_t *)(const void *)row;
    if (dtype == PRHS_K_F32)
        memcpy(out, row, (size_t)dim * sizeof *out);
    else if (dtype == PRHS_K_F16)
        for (int d = 0; d < dim; d++)
            out[d] = prhs_cpu_from_f16(half[d]);
    else
        for (int d = 0; d < dim; d++)
            out[d] = prhs_cpu_float((uint32_t)half[d] << 16);
}

static inline void prhs_cpu_store(int dtype, char *row, int dim, const float *in) {
    uint16_t *half = (uint16_t *)(void *)row;
    if (dtype == PRHS_K_F32)
        memcpy(row, in, (size_t)dim * sizeof *in);
    else if (dtype == PRHS_K_F16)
        for (int d = 0; d < dim; d++)
            half[d] = prhs_cpu_to_f16(in[d]);
    else
        for (int d = 0; d < dim; d++)
            half[d] = prhs_cpu_to_bf16(in[d]);
}

#endif
