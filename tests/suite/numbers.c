/* SPDX-License-Identifier: Apache-2.0 */
/* Random data and number formats, written independently of the library. */
#include <math.h>
#include <string.h>

#include "harness.h"

uint64_t t_hash(uint64_t x, const char *text) {
    for (; *text; text++)
        x = (x ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    return x ^ (x >> 29);
}

uint64_t t_rand(t_ctx *t) {
    uint64_t z = (t->rng += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t t_below(t_ctx *t, uint32_t n) { return n ? (uint32_t)((t_rand(t) >> 32) * n >> 32) : 0; }

double t_uniform(t_ctx *t) { return (double)(t_rand(t) >> 11) * 0x1p-53; }

float t_normal(t_ctx *t) {
    double r = sqrt(-2.0 * log(1.0 - t_uniform(t)));
    return (float)(r * cos(6.283185307179586 * t_uniform(t)));
}

void t_shuffle(t_ctx *t, int32_t *a, size_t n) {
    for (size_t i = n; i > 1; i--) {
        size_t j = t_below(t, (uint32_t)i);
        int32_t x = a[i - 1];
        a[i - 1] = a[j];
        a[j] = x;
    }
}

uint16_t t_to_f16(float x) {
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    double a = fabs((double)x);
    if (isnan(x))
        return sign | 0x7e00;
    if (a >= 65520.0)
        return sign | 0x7c00;
    int e = a < 0x1p-14 ? -14 : ilogb(a);
    int q = (int)rint(ldexp(a, 10 - e)); /* to nearest, ties to even; 2048 carries into the exponent */
    int bits = e == -14 ? q : ((e + 15) << 10) + q - 1024;
    return (uint16_t)(sign | bits);
}

float t_from_f16(uint16_t h) {
    int e = h >> 10 & 31, m = h & 1023;
    double a = e == 31 ? (m ? (double)NAN : (double)INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return (float)(h & 0x8000 ? -a : a);
}

uint16_t t_to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (isnan(x))
        return (uint16_t)(u >> 16 | 0x40);
    uint32_t low = u & 0xffff, high = u >> 16;
    return (uint16_t)(high + (low > 0x8000 || (low == 0x8000 && (high & 1))));
}

float t_from_bf16(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

size_t t_size(prhs_dtype type) { return type == PRHS_F32 ? 4 : 2; }

void t_store(prhs_dtype type, void *array, size_t i, float x) {
    uint16_t h = type == PRHS_F32 ? 0 : type == PRHS_F16 ? t_to_f16(x) : t_to_bf16(x);
    if (type == PRHS_F32)
        memcpy((char *)array + i * sizeof x, &x, sizeof x);
    else
        memcpy((char *)array + i * sizeof h, &h, sizeof h);
}

float t_load(prhs_dtype type, const void *array, size_t i) {
    float x;
    uint16_t h;
    if (type == PRHS_F32) {
        memcpy(&x, (const char *)array + i * sizeof x, sizeof x);
        return x;
    }
    memcpy(&h, (const char *)array + i * sizeof h, sizeof h);
    return type == PRHS_F16 ? t_from_f16(h) : t_from_bf16(h);
}

float t_round(prhs_dtype type, float x) {
    uint32_t cell;
    t_store(type, &cell, 0, x);
    return t_load(type, &cell, 0);
}

void *t_pack(t_ctx *t, prhs_dtype type, const float *x, size_t n) {
    void *p = t_alloc(t, n * t_size(type));
    for (size_t i = 0; i < n; i++)
        t_store(type, p, i, x[i]);
    return p;
}

float *t_unpack(t_ctx *t, prhs_dtype type, const void *x, size_t n) {
    float *p = t_alloc(t, n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = t_load(type, x, i);
    return p;
}

const char *t_dtype_name(prhs_dtype type) { return type == PRHS_F32 ? "f32" : type == PRHS_F16 ? "f16" : "bf16"; }
