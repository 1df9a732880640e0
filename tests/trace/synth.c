/* SPDX-License-Identifier: Apache-2.0 */
#include "synth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

uint64_t synth_draw(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* A standard normal that belongs to five numbers. */
static double normal(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e) {
    uint64_t state = a;
    const uint64_t more[] = { b, c, d, e };
    for (int i = 0; i < 4; i++)
        state = synth_draw(&state) ^ more[i] * UINT64_C(0xd1342543de82ef95);
    double u = ((double)(synth_draw(&state) >> 11) + 0.5) * 0x1p-53, v = (double)(synth_draw(&state) >> 11) * 0x1p-53;
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

float synth_value(const synth *s, uint32_t layer, uint32_t seq, trace_kind kind, uint32_t position, size_t i) {
    const uint64_t where = (uint64_t)layer << 32 | seq;
    double own = normal(s->seed, where, (uint64_t)kind, position, i);
    if (kind == TRACE_V)
        return (float)own;
    if (kind == TRACE_K) /* runs of seven tokens are alike */
        return (float)(0.7 * own + 0.9 * normal(s->seed, where, 9, position / 7, i));
    return (float)(2.0 * normal(s->seed, where, 10, 0, i) + (double)s->drift * own);
}

void synth_write(const synth *s, const char *path) {
    const size_t qn = trace_row(&s->shape, TRACE_Q), kn = trace_row(&s->shape, TRACE_K);
    char error[TRACE_ERROR];
    uint32_t most = 1;
    float *row[TRACE_KINDS] = { malloc(qn * sizeof(float)), malloc(kn * sizeof(float)), malloc(kn * sizeof(float)) };
    for (uint32_t i = 0; i < s->shape.seqs; i++)
        most = s->steps[i] > most ? s->steps[i] : most;
    trace_writer *w = trace_create(path, &s->shape, s->contexts, most, UINT64_C(1) << 30, error);
    bool ok = w && row[0] && row[1] && row[2];
    for (uint32_t layer = s->shape.first_layer; ok && layer < s->shape.first_layer + s->shape.layer_count; layer++)
        for (uint32_t seq = 0; seq < s->shape.seqs; seq++)
            for (uint32_t at = 0; ok && at < s->contexts[seq] + s->steps[seq]; at++) {
                for (int kind = 0; kind < TRACE_KINDS; kind++)
                    for (size_t i = 0; i < (kind == TRACE_Q ? qn : kn); i++)
                        row[kind][i] = synth_value(s, layer, seq, (trace_kind)kind, at, i);
                ok = trace_add(w, &(trace_rows){ layer, seq, 1, at, 1, row[TRACE_Q], row[TRACE_K], row[TRACE_V] });
            }
    if (!trace_finish(w, true, error) || !ok) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    for (int kind = 0; kind < TRACE_KINDS; kind++)
        free(row[kind]);
}

unsigned char *synth_bytes(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    unsigned char *data = NULL;
    long n = f && fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
    if (n >= 0 && (data = malloc((size_t)n + 1))) {
        rewind(f);
        *size = fread(data, 1, (size_t)n, f);
    }
    if (f)
        fclose(f);
    if (!data || *size != (size_t)n) {
        fprintf(stderr, "%s cannot be read\n", path);
        exit(1);
    }
    return data;
}
