/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "trace_format.h"

uint64_t trace_hash(const void *data, size_t size) { return XXH64(data, size, 0); }

size_t trace_row(const trace_shape *shape, trace_kind kind) {
    return (size_t)(kind == TRACE_Q ? shape->heads : shape->kv_heads) * shape->dim;
}

uint32_t trace_begin(const trace_seq *seq, trace_kind kind) { return kind == TRACE_Q ? seq->first_query : 0; }

const char *trace_shape_error(const trace_shape *s) {
    if (s->layers == 0 || s->layers > TRACE_MAX_LAYERS)
        return "the number of layers is out of range";
    if (s->layer_count == 0 || s->first_layer >= s->layers || s->layer_count > s->layers - s->first_layer)
        return "the recorded layers are not layers of the model";
    if (s->dim < 8 || s->dim > 256 || s->dim % 8)
        return "the head dimension must be a multiple of 8 from 8 to 256";
    if (s->kv_heads == 0 || s->heads < s->kv_heads || s->heads > 65536 || s->heads % s->kv_heads)
        return "the numbers of heads do not fit together";
    if (s->seqs == 0 || s->seqs > TRACE_MAX_SEQS)
        return "the number of sequences is out of range";
    if (!(s->scale > 0.0f) || isinf(s->scale))
        return "the scale must be finite and above 0";
    return NULL;
}

static float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

float trace_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, x = (uint32_t)(h & 0x7fff) << 13;
    uint32_t special = x >= 0x0f800000 ? 0x7f800000 : 0;
    return from_bits(bits_of(from_bits(x) * 0x1p112f) | special | sign);
}

uint16_t trace_to_f16(float f) {
    uint32_t x = bits_of(f), sign = x >> 16 & 0x8000;
    x &= 0x7fffffff;
    if (x > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (x >= 0x477ff000) /* half-way above the largest, and past it */
        return (uint16_t)(sign | 0x7c00);
    if (x < 0x38800000) /* subnormal: the addition rounds to multiples of 2^-24 */
        return (uint16_t)(sign | (bits_of(from_bits(x) + 0.5f) - 0x3f000000));
    x += 0xfff + (x >> 13 & 1);
    return (uint16_t)(sign | ((x - 0x38000000) >> 13));
}
