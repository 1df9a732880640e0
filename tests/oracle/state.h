// SPDX-License-Identifier: Apache-2.0
/* What a reference session holds; shared by session.c and step.c only. */
#ifndef ORACLE_STATE_H
#define ORACLE_STATE_H

#include "oracle.h"

/* A unit's reference: made by a retrieval, read by the steps that share. */
typedef struct oracle_ref {
    int pos;  /* of the reference query; < 0: none */
    int used; /* position of the last step for which it was the closest, in the pool: that it served */
    oracle_set set;
    int *list, n_list;
    double *q;                                  /* [unit_heads][D] */
    double *mu, *var, *mu_bar, *var_bar;        /* [unit_heads][D] */
    double *value, *value_bar;                  /* [unit_heads][D]: of the dropped tokens */
    double *L_D, *delta, *top, *Z_middle, *Z_f, *V, *V_bar; /* [unit_heads] */
} oracle_ref;

/* One layer of one slot. */
typedef struct oracle_cache {
    int n, capacity;
    double **K, **V; /* [H_kv] of [capacity][D] */
    oracle_ref *ref; /* [units]: in hand */
    oracle_ref *pool; /* [units][references]: what is remembered, the one in hand among them from the next step on; none of one reference */
    int row0, rows;  /* of the last decode step; row0 < 0: none */
} oracle_cache;

struct oracle_session {
    oracle_params p;
    int units, unit_heads, group;
    oracle_cache *cache; /* [slots][L] */
};

static inline oracle_cache *oracle_cache_of(const oracle_session *s, int layer, int slot) {
    return s->cache + (size_t)slot * (size_t)s->p.L + (size_t)layer;
}

/* NULL for ranges that the session does not have. */
oracle_cache *oracle_cache_at(const oracle_session *s, int layer, int slot);
void oracle_ref_clear(oracle_ref *r);
/* All of it but `used`. */
void oracle_ref_copy(const oracle_session *s, oracle_ref *to, const oracle_ref *from);
/* References in a unit's pool. */
static inline int oracle_pool(const oracle_session *s) { return s->p.references > 1 ? s->p.references : 0; }
/* The reference's moments of head g of its unit. */
oracle_moments oracle_ref_moments(const oracle_ref *r, int g, int D);

#endif
