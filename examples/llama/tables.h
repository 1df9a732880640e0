/* SPDX-License-Identifier: Apache-2.0 */
/* What every compute with rows in a device's memory has: the lengths of joined rows, and tables that are the host's own. */
#ifndef TABLES_H
#define TABLES_H

#include "compute.h"

/* Floats of a row's queries, and of its queries, keys and values. */
static inline size_t q_floats(const model *m) { return (size_t)m->heads * m->head_dim; }
static inline size_t row_floats(const model *m) { return q_floats(m) + 2 * (size_t)m->kv_heads * m->head_dim; }

/* The norms: before attention of layer which / 2, before its MLP where `which` is odd; the last one before the logits. */
static inline size_t norm_floats(const model *m) { return (2 * (size_t)m->layers + 1) * m->dim; }
/* (cosine, sine) [tokens][head_dim / 2] */
static inline size_t turn_floats(const engine *e) { return (size_t)e->tokens * e->m->head_dim; }

/* Writes both and waits. */
bool tables_write(engine *e, prhs_mem norms, prhs_mem turns);

#endif
