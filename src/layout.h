/* SPDX-License-Identifier: Apache-2.0 */
/* Where the arrays of the state and of the workspace lie. Pure arithmetic, shared by sessions and ops. */
#ifndef PRHS_LAYOUT_H
#define PRHS_LAYOUT_H

#include "backend.h"

/* Offsets of slots and workspaces are multiples of this, so that any device may slice them. */
#define PRHS_ALIGN 256

/* What the arrays must hold. */
typedef struct prhs_extent {
    prhs_k_shape shape;
    prhs_i32 layers;       /* with state: 1 for ops, the sparse layers for a session */
    prhs_i32 max_slots, max_seqs, rows, max_kv_len, list_cap;
    bool lists, moments, values, sums, stats, scores, aims; /* values: moments of them, too; aims: there are targets */
    bool verdicts;         /* the mass gate's */
    prhs_i32 references;   /* that a unit chooses among; 0: it keeps one */
    prhs_chunking chunking;
} prhs_extent;

typedef struct prhs_layout {
    prhs_k_state state;    /* offsets of layer 0, slot 0, from the start of the caller's state memory */
    prhs_k_pool pool;      /* the same */
    prhs_k_work work;      /* offsets from the start of the caller's workspace */
    prhs_i64 unit_layer, layer, unit_stat_layer; /* bytes from one layer to the next: unit states; the other arrays; statistics */
    prhs_i64 units_bytes;  /* unit states of all layers: the first bytes of a slot */
    prhs_i64 slots_off, stats_off;
    prhs_i64 state_bytes, work_bytes;
} prhs_layout;

/* false: the state of all slots would not fit into 2^60 bytes. */
bool prhs_layout_make(const prhs_extent *extent, prhs_layout *layout);

/* The state of one layer, offsets moved by the base of the caller's memory. */
prhs_k_state prhs_layout_state(const prhs_layout *layout, prhs_i32 layer, uint64_t base);
prhs_k_pool prhs_layout_pool(const prhs_layout *layout, prhs_i32 layer, uint64_t base);
/* The workspace, offsets moved likewise. */
prhs_k_work prhs_layout_work(const prhs_layout *layout, uint64_t base);

#endif
