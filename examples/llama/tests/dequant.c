/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of every tensor type that gguf.c reads, against the formulas of the format, in double precision. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiny.h"

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, BF16 = 30 };

static double half_of(uint16_t h) {
    int exponent = h / 1024 % 32, mantissa = h % 1024;
    double x = exponent == 31 ? (mantissa ? NAN : INFINITY)
               : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                              : ldexp(mantissa, -24);
    return h >= 0x8000 ? -x : x;
}

static double bfloat_of(uint16_t h) {
    int exponent = h / 128 % 256, mantissa = h % 128;
    double x = exponent == 255 ? (mantissa ? NAN : INFINITY)
               : exponent      ? ldexp(128 + mantissa, exponent - 134)
                               : ldexp(mantissa, -133);
    return h >= 0x8000 ? -x : x;
}

static uint16_t u16_at(const unsigned char *p) { return (uint16_t)(p[0] + 256 * p[1]); }

/* Element i of a tensor's bytes. */
static double element(uint32_t type, const unsigned char *p, size_t i) {
    const size_t block = i / 32, in = i % 32;
    float f;
    switch (type) {
    case F32: memcpy(&f, p + 4 * i, 4); return (double)f;
    case F16: return half_of(u16_at(p + 2 * i));
    case BF16: return bfloat_of(u16_at(p + 2 * i));
    case Q8_0: p += 34 * block; return half_of(u16_at(p)) * (p[2 + in] < 128 ? p[2 + in] : p[2 + in] - 256);
    case Q4_0: p += 18 * block; return half_of(u16_at(p)) * ((in < 16 ? p[2 + in] % 16 : p[2 + in - 16] / 16) - 8);
    default:
        p += 20 * block;
        return half_of(u16_at(p)) * (in < 16 ? p[4 + in] % 16 : p[4 + in - 16] / 16) + half_of(u16_at(p + 2));
    }
}

/* The double results above are exact, so that one rounding to float32 gives the very bits. */
static void compare(const char *name, uint32_t type, uint64_t columns, uint64_t rows, const unsigned char *data, size_t size) {
    bytes b = { 0 };
    char error[512] = "";
    const uint64_t n = columns * rows;
    put_header(&b, 1, 0);
    put_tensor(&b, "x", 2, (const uint64_t[]){ columns, rows }, type, 0);
    put_align(&b, 32);
    put(&b, data, size);
    gguf *g = open_bytes(&b, error, sizeof error);
    const gguf_tensor *t = g ? gguf_find(g, "x") : NULL;
    float *x = malloc(n * sizeof *x);
    size_t wrong = 0;
    if (check(t && x && gguf_elements(t) == n && gguf_floats(t, x), "%s: cannot be read: %s", name, error))
        for (size_t i = 0; i < n; i++) {
            float want = (float)element(type, data, i);
            bool same = isnan(want) ? isnan(x[i]) : x[i] == want && !signbit(x[i]) == !signbit(want);
            if (!same && !wrong++)
                printf("%s: element %zu is %a, not %a\n", name, i, (double)x[i], (double)want);
        }
    check(wrong == 0, "%s: %zu of %zu elements are wrong", name, wrong, (size_t)n);
    free(x);
    gguf_close(g);
    bytes_free(&b);
}

/* All 65536 numbers of a format of two bytes. */
static void all_numbers(const char *name, uint32_t type) {
    bytes b = { 0 };
    for (uint32_t i = 0; i < 65536; i++)
        put(&b, &(uint16_t){ (uint16_t)i }, 2);
    compare(name, type, 256, 256, b.data, b.size);
    bytes_free(&b);
}

/* Blocks of random bytes; scale and minimum are finite, and every eighth is subnormal. */
static void random_blocks(const char *name, uint32_t type, size_t block, int halves, uint64_t *state) {
    bytes b = { 0 };
    for (int i = 0; i < 600; i++) {
        for (size_t j = 0; j < block; j++)
            put(&b, &(unsigned char){ (unsigned char)draw(state) }, 1);
        for (int h = 0; h < halves; h++) {
            uint64_t bits = draw(state) & 0xffff;
            bits = bits % 8 == 0 ? bits & 0x83ff : (bits & 0x7c00) == 0x7c00 ? bits & 0xbbff : bits;
            poke(&b, b.size - block + 2 * (size_t)h, bits, 2);
        }
    }
    compare(name, type, 96, 200, b.data, b.size);
    bytes_free(&b);
}

static void floats(uint64_t *state) {
    bytes b = { 0 };
    for (int i = 0; i < 1000; i++)
        put_u32(&b, (uint32_t)draw(state));
    compare("F32", F32, 10, 100, b.data, b.size);
    bytes_free(&b);
}

/* A type that is not read does no harm until somebody asks for the tensor's numbers. */
static void unknown(void) {
    bytes b = { 0 };
    char error[512] = "";
    float x[32];
    put_header(&b, 1, 0);
    put_tensor(&b, "x", 1, (const uint64_t[]){ 32 }, 12, 0);
    gguf *g = open_bytes(&b, error, sizeof error);
    const gguf_tensor *t = g ? gguf_find(g, "x") : NULL;
    check(t && !t->data && !gguf_floats(t, x), "a tensor of an unknown type: %s", error);
    gguf_close(g);
    bytes_free(&b);
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, state = seed;
    begin(300);
    all_numbers("F16", F16);
    all_numbers("BF16", BF16);
    floats(&state);
    random_blocks("Q8_0", Q8_0, 34, 1, &state);
    random_blocks("Q4_0", Q4_0, 18, 1, &state);
    random_blocks("Q4_1", Q4_1, 20, 2, &state);
    unknown();
    printf("seed %llu\n", (unsigned long long)seed);
    return finish();
}
