/* SPDX-License-Identifier: Apache-2.0 */
#include "tables.h"

#include <math.h>
#include <stdlib.h>

/* The host's own cosines and sines, so that rotations are the same on both. */
static bool write_turns(engine *e, prhs_mem to) {
    const uint32_t half = e->m->head_dim / 2, tokens = e->tokens;
    float *turns = malloc(turn_floats(e) * sizeof *turns);
    if (!turns)
        return false;
    for (uint32_t p = 0; p < half; p++) {
        const double freq = pow((double)e->m->rope_base, -2.0 * (double)p / (double)e->m->head_dim);
        for (size_t i = 0; i < tokens; i++) {
            turns[2 * (i * half + p)] = (float)cos(freq * (double)i);
            turns[2 * (i * half + p) + 1] = (float)sin(freq * (double)i);
        }
    }
    const bool ok = prhs_queue_write(e->queue, to, turns, turn_floats(e) * sizeof *turns) == PRHS_OK && prhs_queue_finish(e->queue) == PRHS_OK;
    free(turns);
    return ok;
}

static bool write_norms(engine *e, prhs_mem to) {
    const model *m = e->m;
    const size_t bytes = m->dim * sizeof(float);
    bool ok = true;
    for (size_t i = 0; ok && i <= 2 * (size_t)m->layers; i++) {
        const float *norm = i == 2 * (size_t)m->layers ? m->norm : i % 2 ? m->layer[i / 2].ffn_norm : m->layer[i / 2].attn_norm;
        ok = prhs_queue_write(e->queue, (prhs_mem){ to.buffer, to.offset + i * bytes }, norm, bytes) == PRHS_OK;
    }
    return ok && prhs_queue_finish(e->queue) == PRHS_OK;
}

bool tables_write(engine *e, prhs_mem norms, prhs_mem turns) { return write_norms(e, norms) && write_turns(e, turns); }
