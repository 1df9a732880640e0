/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file session.h
 * Tier 3: sparse decoding over steps, layers and sequences. A session holds the policy's state for `max_slots` sequences; the
 * engine owns all device memory, names it in every call, and calls prhs_session_step() once a layer.
 */
#ifndef PRHS_SESSION_H
#define PRHS_SESSION_H

#include <prhs/cache.h>
#include <prhs/policy.h>

PRHS_EXTERN_C_BEGIN

/** Thread-safety: one thread at a time. */
typedef struct prhs_session prhs_session;

/** What a session is made for. Start from PRHS_SESSION_PARAMS_INIT. */
typedef struct prhs_session_params {
    size_t size;                /**< sizeof(prhs_session_params) */
    prhs_policy policy;
    prhs_shape shape;
    uint32_t layers;            /**< L */
    uint32_t max_slots;         /**< sequences with state */
    uint32_t max_seqs;          /**< sequences a step, at most */
    uint32_t max_rows;          /**< query rows a step in all, at most */
    uint32_t decode_rows;       /**< query rows of one decoding sequence, at most; > 1 for speculative verification */
    uint32_t max_kv_len;        /**< tokens a sequence, at most */
    prhs_dtype kv_dtype;        /**< of every layer's cache */
    prhs_dtype q_dtype;         /**< of queries and of K/V rows to append: float32 or kv_dtype */
    prhs_dtype out_dtype;       /**< float32 or kv_dtype */
    uint32_t audit;             /**< 1: every sparse step also takes the exact dropped mass; changes nothing else. For measuring. */
    uint32_t validate;          /**< 1: lengths, slots and page ids are checked on the device; see prhs_session_poll() */
    double audit_rate;          /**< in [0, 1], rounded up to a multiple of 2^-32: the probability with which a step whose dropped mass
                                     is not known exactly is audited: for each slot, layer and selection unit by itself, after the
                                     step, which it does not change. With audit 1 it is 1 */
    uint64_t audit_seed;        /**< which ones: see prhs_audit_drawn(); sessions at work together want seeds of their own */
    const float *targets;       /**< [layers]: stands for policy.target, layer by layer (0: that layer's lists have k tokens); copied. NULL:
                                     policy.target everywhere */
    const uint32_t *list_layers; /**< [layers]: the layer whose lists a layer attends with: itself, or an earlier one that is sparse and has
                                     lists of its own (HShare's sharing over layers); entries of dense layers name themselves. Copied. A
                                     layer that names another scores and selects nothing, and what it drops is unknown unless audited;
                                     in every step it comes after the layer it names, and attends densely where that has no list in
                                     force. Needs gate and residual NONE, no target, no PSAW. NULL: every layer has its own */
} prhs_session_params;
#define PRHS_SESSION_PARAMS_INIT \
    { sizeof(prhs_session_params), { 0 }, { 0 }, 0, 0, 0, 0, 1, 0, PRHS_F16, PRHS_F32, PRHS_F32, 0, 0, 0.0, 0, NULL, NULL }

/** Exact bytes of device memory. */
typedef struct prhs_session_sizes {
    size_t size;         /**< sizeof(prhs_session_sizes), set by the caller */
    uint64_t state;      /**< must survive from step to step */
    uint64_t workspace;  /**< undefined between calls: sessions on one queue may share it */
    uint64_t slot;       /**< bytes of prhs_session_export() for one slot */
} prhs_session_sizes;

/**
 * Computes the sizes; pure, needs no memory. Thread-safe.
 * PRHS_ERR_ARGUMENT: NULL, sizes->size unknown, or a parameter is bad (the sentence names it).
 * PRHS_ERR_UNSUPPORTED: the device has no such path.
 */
PRHS_API prhs_status prhs_session_get_sizes(prhs_device *device, const prhs_session_params *params, prhs_session_sizes *sizes);

/**
 * Creates a session; compiles or loads every kernel it will use; enqueues the clearing of `state` on `queue`. The buffers belong
 * to the caller and must hold at least the sizes queried (offsets: multiples of 256). The queue is not kept.
 * PRHS_ERR_ARGUMENT, PRHS_ERR_UNSUPPORTED: as prhs_session_get_sizes(); unsupported, too, where the driver compiles every kernel of an op
 * wrongly (docs/embedding.md). PRHS_ERR_MEMORY: a buffer is too small, or memory ran out. PRHS_ERR_COMPILE, PRHS_ERR_DRIVER: as named.
 */
PRHS_API prhs_status prhs_session_create(prhs_device *device, const prhs_session_params *params, prhs_queue *queue, prhs_mem state,
                                         prhs_mem workspace, prhs_session **session);

/** Destroys a session; NULL is allowed. No queue may still run its work. The buffers stay the caller's. */
PRHS_API void prhs_session_destroy(prhs_session *session);

/** One layer of one step. Start from PRHS_STEP_INIT. */
typedef struct prhs_step {
    size_t size;        /**< sizeof(prhs_step) */
    uint32_t layer;
    prhs_batch batch;
    prhs_kv kv;         /**< this layer's cache */
    prhs_rows q;        /**< [max_rows][H][D], positions already encoded (RoPE) */
    prhs_rows k, v;     /**< [max_rows][H_kv][D] to append; mem.buffer NULL for both: the engine wrote them into the cache */
    prhs_rows out;      /**< [max_rows][H][D]; rows of idle, seeding and frozen (ETF) entries are not written */
    prhs_mem lse;       /**< float32[max_rows][H], natural log-sum-exp of the attended scores; buffer NULL: not wanted */
} prhs_step;
#define PRHS_STEP_INIT \
    { sizeof(prhs_step), 0, { { NULL, 0 }, { NULL, 0 }, 0, 0, 0, 0, 0 }, \
      { PRHS_F16, 0, 0, { NULL, 0 }, { NULL, 0 }, 0, 0, 0, 0, 0, 0 }, \
      { { NULL, 0 }, PRHS_F32, 0, 0 }, { { NULL, 0 }, PRHS_F32, 0, 0 }, { { NULL, 0 }, PRHS_F32, 0, 0 }, \
      { { NULL, 0 }, PRHS_F32, 0, 0 }, { NULL, 0 } }

/**
 * Enqueues append, selection and attention of one layer for a batch of decode rows, verification runs, prompt chunks and seeds.
 * Never allocates, waits or compiles; every decision that depends on data is taken on the device, in the same step. Layers of a
 * step may come in any order (but see list_layers), steps of a layer in the order of positions. The state depends on a sequence's first row only, so
 * that rejected speculative rows leave no trace: the next step simply names the committed length (see prhs_session_commit()).
 * PRHS_ERR_ARGUMENT: NULL, layer >= layers, a capacity above the session's, a dtype, page size or stride the session was not made
 * for, a range that leaves its buffer. PRHS_ERR_DRIVER: the driver refused a launch.
 */
PRHS_API prhs_status prhs_session_step(prhs_session *session, prhs_queue *queue, const prhs_step *step);

/**
 * Takes rows that are cached already (prefix hits, swap-in, another session's prefill) into a slot, for one layer: forgets the
 * slot's references and rebuilds its value sums over [0, kv_len). `batch` names slots and lengths (row_count is ignored). Seed
 * afterwards with a step flagged PRHS_SEQ_SEED. PRHS_ERR_ARGUMENT, PRHS_ERR_DRIVER: as prhs_session_step().
 */
PRHS_API prhs_status prhs_session_attach(prhs_session *session, prhs_queue *queue, uint32_t layer, const prhs_batch *batch,
                                         const prhs_kv *kv);

/**
 * Shortens slots to seq.kv_len rows, for one layer, before the removed rows' pages are released or written: subtracts them from
 * the value sums, and forgets references that lie at or past the new length: a unit that has no other one retrieves at its next step.
 * Errors as above.
 */
PRHS_API prhs_status prhs_session_truncate(prhs_session *session, prhs_queue *queue, uint32_t layer, const prhs_batch *batch,
                                           const prhs_kv *kv);

/**
 * Commits the first rows of a verification run, for one layer: seq.kv_len is the committed length, at least one row past the
 * step's first. The same work as a truncation; it changes nothing where all rows were accepted. Errors as above.
 */
PRHS_API prhs_status prhs_session_commit(prhs_session *session, prhs_queue *queue, uint32_t layer, const prhs_batch *batch,
                                         const prhs_kv *kv);

/** Clears a slot, statistics included: a new sequence. PRHS_ERR_ARGUMENT: NULL or slot >= max_slots. PRHS_ERR_DRIVER. */
PRHS_API prhs_status prhs_session_reset(prhs_session *session, prhs_queue *queue, uint32_t slot);

/** Copies slot `src` to `dst` (all layers); dst's statistics start at zero. The engine shares or copies pages. Errors as above. */
PRHS_API prhs_status prhs_session_fork(prhs_session *session, prhs_queue *queue, uint32_t dst, uint32_t src);

/** Moves slot `src` to `dst` with its statistics; src is cleared. Errors as above. */
PRHS_API prhs_status prhs_session_move(prhs_session *session, prhs_queue *queue, uint32_t dst, uint32_t src);

/** Writes a slot's state (sizes.slot bytes) to `dst`, to be kept while its sequence is preempted. Errors as above. */
PRHS_API prhs_status prhs_session_export(prhs_session *session, prhs_queue *queue, uint32_t slot, prhs_mem dst);

/** Reads a slot's state from `src`, written by a session with equal parameters. Errors as above. */
PRHS_API prhs_status prhs_session_import(prhs_session *session, prhs_queue *queue, uint32_t slot, prhs_mem src);

/** How a dropped mass was come by. A mass without its grade means nothing. */
typedef enum prhs_grade {
    PRHS_GRADE_UNKNOWN = 0,   /**< nothing is known (streaming without audits) */
    PRHS_GRADE_EXACT = 1,     /**< every key was scored with this very query */
    PRHS_GRADE_ESTIMATE = 2,  /**< predicted from the reference step by the second cumulant of the dropped keys, their scores' variance
                                     included; verdicts and the residual's weight do without that: docs/method.md */
    PRHS_GRADE_STALE = 3,     /**< an estimate too: the exact mass at the reference, unchanged */
    PRHS_GRADE_SAMPLED = 4,   /**< an estimate too, without bias: the mean of exact masses of steps drawn at random */
    PRHS_GRADE_BOUND = 5      /**< limits that hold with a stated confidence, whatever the masses are */
} prhs_grade;

/** A mean dropped mass with its grade. It is never a bound: a dropped key that turns relevant alone is not seen. */
typedef struct prhs_mass {
    prhs_grade grade;
    double mean;     /**< over heads and steps; NaN where count is 0 */
    uint64_t count;  /**< head-steps in the mean */
} prhs_mass;

/**
 * Sums over layers, units and (slot PRHS_ALL_SLOTS) slots, since the slots were reset. Counts are unit-steps of first rows. The
 * policy's first `dense_layers` layers keep no books: they are in no count.
 */
typedef struct prhs_stats {
    size_t size;             /**< sizeof(prhs_stats) */
    uint64_t steps;          /**< all unit-steps */
    uint64_t dense;          /**< attended everything */
    uint64_t window;         /**< sinks and PSAW's window, all of it */
    uint64_t stream;         /**< sinks and local tokens, no list */
    uint64_t share;          /**< with an earlier list */
    uint64_t retrieve;       /**< with a new list */
    uint64_t copy;           /**< with another layer's list */
    uint64_t seed;           /**< retrievals by seeding (in no other count) */
    uint64_t cosine_failed;  /**< retrievals because of the cosine */
    uint64_t mass_failed;    /**< retrievals because of the mass gate */
    uint64_t rows_dense;     /**< further rows that attended densely because their own gate failed */
    uint64_t missed;         /**< of `dense`: units that retrieved, and would not have met their target with k tokens */
    uint64_t within;         /**< of audited.count: exact masses of at most the layer's target (see prhs_policy); 0 without one */
    double rho;              /**< retrieve / (share + copy + retrieve); NaN where there was none */
    double kept;             /**< mean tokens a sparse unit-step, without the window's growth; NaN where there was none */
    double attended;         /**< mean tokens a unit-step, all included */
    prhs_mass retrieved;     /**< dropped mass on retrieval steps; exact (an estimate under PSAW: unscored keys are left out) */
    prhs_mass shared;        /**< dropped mass on shared steps */
    prhs_mass audited;       /**< exact mass of the audited steps: what it says of the others is in prhs_audit_report */
    uint64_t nan_masses;     /**< masses that were NaN; in none of the means */
} prhs_stats;
#define PRHS_ALL_SLOTS 0xffffffffu
#define PRHS_ALL_LAYERS 0xffffffffu

/** A request for statistics: made by the caller, filled asynchronously. Thread-safety: one thread at a time. */
typedef struct prhs_stats_request prhs_stats_request;

/**
 * Creates a request for a session (host memory and an event; not on the decode path); the caller owns it and destroys it before the
 * session. PRHS_ERR_ARGUMENT: NULL. PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_stats_request_create(prhs_session *session, prhs_stats_request **request);
/** Destroys a request that is not in flight; NULL is allowed. */
PRHS_API void prhs_stats_request_destroy(prhs_stats_request *request);
/**
 * Enqueues a copy of the counters as they will be at this point of the queue; never waits. PRHS_ERR_STATE: still in flight.
 * PRHS_ERR_ARGUMENT: NULL, or a queue of another device. PRHS_ERR_DRIVER: the driver refused.
 */
PRHS_API prhs_status prhs_stats_request_enqueue(prhs_stats_request *request, prhs_queue *queue);
/**
 * Adds up what arrived, for one slot and layer or for all of them. Never waits: PRHS_NOT_READY until the copy is there.
 * PRHS_ERR_ARGUMENT: NULL, slot or layer out of range, stats->size unknown. PRHS_ERR_STATE: nothing was enqueued.
 * PRHS_ERR_DRIVER: the device failed on the way.
 */
PRHS_API prhs_status prhs_stats_request_get(prhs_stats_request *request, uint32_t slot, uint32_t layer, prhs_stats *stats);

/** Dropped masses of one query head, summed as prhs_stats are. */
typedef struct prhs_head_stats {
    size_t size;          /**< sizeof(prhs_head_stats) */
    prhs_mass retrieved;  /**< on retrieval steps */
    prhs_mass shared;     /**< on shared steps */
    prhs_mass audited;    /**< exact mass of the audited steps */
    uint64_t within;      /**< of these, at most the layer's target */
    uint64_t nan_masses;  /**< masses that were NaN; in none of the means */
} prhs_head_stats;

/** The same for one query head; errors as prhs_stats_request_get(), head out of range among them. */
PRHS_API prhs_status prhs_stats_request_get_head(prhs_stats_request *request, uint32_t slot, uint32_t layer, uint32_t head,
                                                 prhs_head_stats *stats);

/** What a query head remembers, for tests, tools and the curious. */
typedef struct prhs_head_view {
    float l_dropped;  /**< natural log-sum-exp of the scores dropped at the reference; -inf: nothing was dropped */
    float delta_ref;  /**< exact dropped mass at the reference */
    float delta;      /**< dropped mass of the last step: exact on a retrieval, estimated on a shared step; NaN: unknown */
    float audit;      /**< exact dropped mass of the last audited step; NaN or 0: none */
} prhs_head_view;

/** What a unit remembers. */
typedef struct prhs_unit_view {
    prhs_set set;                 /**< of its reference (set.end: N then); set.mode: how its last step was served */
    int32_t ref_pos;              /**< position of the reference query, < 0: none */
    const int32_t *list;          /**< set.count ascending run positions */
    const prhs_head_view *heads;  /**< the unit's query heads */
    uint32_t head_count;
} prhs_unit_view;

/**
 * Looks into an exported slot (prhs_session_export(), read to the host). `blob` has sizes.slot bytes, 8-byte aligned, and must
 * outlive the view. PRHS_ERR_ARGUMENT: NULL, layer or unit out of range, or a dense layer (it has no state). Pure.
 */
PRHS_API prhs_status prhs_session_view(const prhs_session *session, const void *blob, uint32_t layer, uint32_t unit, prhs_unit_view *view);

/** Selection units a sequence: H_kv, or H with PRHS_JOIN_PER_HEAD. 0 for NULL. */
PRHS_API uint32_t prhs_session_units(const prhs_session *session);

/**
 * Asks for faults that the device found (bad slots, lengths, page ids; ETF without a prompt length) without a wait: enqueues a
 * look at this point of `queue` and reports what the previous look saw. PRHS_OK: nothing bad so far. PRHS_NOT_READY: the first
 * look is still in flight. PRHS_ERR_DATA: the sentence says what was bad; the fault stays until the session is destroyed.
 * PRHS_ERR_ARGUMENT: NULL, or a queue of another device. PRHS_ERR_DRIVER: the device failed, or the driver refused.
 */
PRHS_API prhs_status prhs_session_poll(prhs_session *session, prhs_queue *queue);

PRHS_EXTERN_C_END

#endif
