// SPDX-License-Identifier: Apache-2.0
/*
 * The judge: what method.md says, in double precision, with nothing shared with the library but the C standard library. Slow and
 * plain on purpose. Ops work on contiguous arrays K[N][D], V[N][D] of one KV head; the caller gathers them from paged layouts and
 * has already rounded them to the storage type. Memory that cannot be had ends the program (these are tests).
 */
#ifndef ORACLE_H
#define ORACLE_H

#include <stddef.h>
#include <stdint.h>

/* calloc(n ? n : 1, size) that never returns NULL. */
void *oracle_alloc(size_t n, size_t size);

/* ---- attend.c: scores, attention over sets, merging, causal rows ---- */

/* scale * q.k_j for j in [0, n). */
void oracle_scores(const double *q, const double *K, int n, int D, double scale, double *s);
/* Log-sum-exp of n scores: -inf for none (or all -inf), NaN if one is NaN or +inf. */
double oracle_lse(const double *s, int n);
/* Attention over the tokens pos[0..n): o[D] and its natural log-sum-exp. Z = 0: o = 0, lse = -inf. NaN or +inf score: NaN. */
void oracle_attend(const double *q, const double *K, const double *V, int D, double scale, const int *pos, int n, double *o,
                   double *lse);
/* Merges parts o[n][D] with lses[n] that cover disjoint sets; empty parts (-inf) are ignored, a NaN lse makes all NaN. */
void oracle_merge(const double *parts, const double *lses, int n, int D, double *o, double *lse);
/*
 * Causal rows: row i (of n) of one query head sits at position first + i and attends to [0, sinks) and [P, p], P = psaw * p >> 32
 * (psaw is oracle_factor()'s, 0: off). Rows at positions below `frozen` get no output: their o, lse and bar stay untouched. bar
 * is F7's, or NULL.
 */
void oracle_causal(const double *q, const double *K, const double *V, int D, double scale, int first, int n, int sinks,
                   uint64_t psaw, int frozen, double *o, double *lse, double *bar);
/* F7's unit: max(1, max over pos of scale * sum_d |q_d k_jd| / 8); the bar is 1e-6 of it. Non-finite sums are left out. */
double oracle_bar(const double *q, const double *K, int D, double scale, const int *pos, int n);
/* |a - b| / max(|b|, tiny) in the Euclidean norm; 0 where both hold NaN in the same channels and agree elsewhere; inf if not. */
double oracle_distance(const double *a, const double *b, int D);

/* ---- sets ---- */

/* Modes; the values are this file's own. */
enum { ORACLE_IDLE, ORACLE_DENSE, ORACLE_WINDOW, ORACLE_SHARE, ORACLE_RETRIEVE, ORACLE_STREAM, ORACLE_COPY };

/*
 * [0, sink_end) + [edge_begin, edge_end) + runs of `run` tokens + [win_begin, row's own position]. [mid_begin, mid_end) is the
 * middle: w = mid_end, P (not below the sinks) = mid_begin; P itself is `psaw`. N is the decision row's.
 */
typedef struct oracle_set {
    int mode, N, psaw, w;
    int sink_end, edge_begin, edge_end, run, win_begin;
    int mid_begin, mid_end;
} oracle_set;

/* Attended positions up to and with `pos`, ascending, each once; out (or NULL) holds pos + 1. Returns their count. */
int oracle_set_positions(const oracle_set *set, const int *list, int n_list, int pos, int *out);

/* ---- select.c: joint weights, the total order, dilation, runs ---- */

enum { ORACLE_JOIN_SUM, ORACLE_JOIN_MAX, ORACLE_JOIN_PER_HEAD };

typedef struct oracle_rule {
    int k, m, back, ahead; /* m best tokens (runs) bring their neighbours -back .. +ahead, inside k */
    int run;               /* granularity g, >= 1 */
    int join;              /* SUM or MAX (a unit of one head: either) */
} oracle_rule;

/* Candidate i covers [first + i * run, first + (i + 1) * run). */
typedef struct oracle_selection {
    oracle_rule rule;
    int first, run, count;
    double *weight;                      /* [count]: joint weight, of runs the sum; NaN: special */
    int n_list, *list;                   /* ascending positions of the chosen tokens (first tokens of runs) */
    int edge_begin, edge_end, win_begin; /* partial runs: always attended; the high one joins the window */
    double *worst;                       /* [count + 1]: by how many of the best are kept, the largest mass that a head drops, of what was
                                          * scored; a special token that is dropped counts as all of it */
} oracle_selection;

/* lse[heads] over scored tokens whose score in that head is neither NaN nor +inf; w[N]: joint weights, 0 where not scored. */
void oracle_joint_weights(const double *s, int heads, int N, int sink_end, int mid_begin, int join, double *lse, double *w);
/* The total order of n weights: NaN first, higher, +0 == -0, lower index. order[0] is the best. */
void oracle_order(const double *w, int n, int *order);
/* Whole runs of g within [mid_begin, mid_end): their count, where the first begins and the last ends (none: mid_begin, twice). */
int oracle_runs(int mid_begin, int mid_end, int g, int *first, int *end);
/* Marks the chosen of n ordered candidates, `want` of them, with dilation; returns their count, -1 for bad arguments. */
int oracle_pick(const int *order, int n, int want, int m, int back, int ahead, unsigned char *chosen);
/* A unit's retrieval: q[heads][D], scored [0, sink_end) + [mid_begin, N), candidates in [mid_begin, mid_end). NULL: bad rule. */
oracle_selection *oracle_select(const double *q, int heads, const double *K, int N, int D, double scale, int sink_end,
                                int mid_begin, int mid_end, const oracle_rule *rule);
void oracle_selection_free(oracle_selection *s);
/* 1 if the list is ascending and names candidates only. */
int oracle_list_valid(const oracle_selection *s, const int *list, int n);
/*
 * F9: 1 if `list` is the selection's list but for swaps of candidates whose weights differ by less than 1e-5 relative or are both
 * below 1e-37. With dilation the m best may be swapped likewise, and then their neighbours follow. *swaps (or NULL): how many.
 */
int oracle_list_equivalent(const oracle_selection *s, const int *list, int n, int *swaps);

/* ---- gate.c: dropped mass, moments, estimate, value sum ---- */

/* 1 / (1 + exp(L_C - L_D)); 0 if L_D is -inf. */
double oracle_mass(double L_D, double L_C);
/* Exact dropped mass of a row at `pos` against causal attention over [0, pos]; *L_D (or NULL): of what is dropped. */
double oracle_dropped(const double *q, const double *K, int D, double scale, const oracle_set *set, const int *list, int n_list,
                      int pos, double *L_D);

typedef struct oracle_moments {
    double L_D;           /* log-sum-exp of the dropped tokens of the middle, by direct summation */
    double top, Z_middle; /* the middle's maximum; sum exp(s - top) over the middle */
    double Z_f;
    double V, V_bar;          /* variance of the dropped tokens' scores; what float32 may be off in it */
    double *mu, *var;         /* [D], the caller's */
    double *mu_bar, *var_bar; /* [D] or both NULL: what float32 may be off that takes the kept tokens from the middle's sums */
} oracle_moments;

#define ORACLE_FLOOR (1.0 / 1048576) /* of Z_f, in units of Z_middle */

/* Moments of the middle's tokens that the set does not attend (at the decision row's N). Nothing dropped: mu = var = V = 0. */
void oracle_moments_make(const double *q, const double *K, int D, double scale, const oracle_set *set, const int *list,
                         int n_list, double floor, oracle_moments *m);
/*
 * The dropped tokens' mean value with the weights of q, divided by m's Z_f: vhat[D]; 0 where nothing is dropped. bar[D] (or NULL): what
 * float32 may be off that takes the kept tokens from the middle's sum.
 */
void oracle_dropped_value(const double *q, const double *K, const double *V, int D, double scale, const oracle_set *set,
                          const int *list, int n_list, const oracle_moments *m, double *vhat, double *bar);
/*
 * The dropped mass predicted for q; *x (or NULL) is the predicted rise of L_D: along qref by the scores' variance, across it
 * channel by channel. channels: channel by channel everywhere, which is what verdicts rest on.
 */
double oracle_estimate(const double *q, const double *qref, int D, double scale, const oracle_moments *m, int channels,
                       double L_C, double *x);
/* What float32 may be off in an estimate `hat`; `bar`: F7's of the scores behind L_C. Needs the moments' bars. */
double oracle_estimate_bar(const double *q, const double *qref, int D, double scale, const oracle_moments *m, int channels,
                           double hat, double bar);
/* 0 where a vector is zero. */
double oracle_cosine(const double *a, const double *b, int D);
/* (1 - d) * o + d * v, in place; d == 0: v is not read. */
void oracle_mix(double *o, const double *v, double d, int D);

/* Adds (sign 1) or takes away (-1) rows V[n][D]: sum[D] of rint(clamp(v, +-2^16) * 2^24); non-finite rows are counted instead. */
void oracle_value_sum(const double *V, int n, int D, int sign, int64_t *sum, int64_t *nonfinite);
/* NaN while nonfinite > 0, or for no rows. */
void oracle_value_mean(const int64_t *sum, int64_t rows, int64_t nonfinite, int D, double *mean);

/* ---- bounds.c: fixed-point starts, bounds on the error ---- */

/* a_l of PSAW (base phi, exponent alpha) or ETF (psi, gamma): min(round((1 - base^(e (l - l_s) / (L - l_s))) 2^32), 2^32 - 1). */
uint64_t oracle_factor(int L, int layer, int l_s, double base, double exponent);
/* a * t >> 32. */
int oracle_start(uint64_t a, int t);
/* ||o - o~|| <= 2 delta max ||v_j|| over V[N][D]; residual none. */
double oracle_output_bound(double delta, const double *V, int N, int D);
/* 2 (h_b(delta) + delta ln(N - 1)) nats; 2 ln N where delta > 1 - 1/N. */
double oracle_information_bound(double delta, int N);
/* The paper's: retained mass falls by at most (2 K_max / sqrt D) sqrt(2 - 2 tau) for unit queries. */
double oracle_sharing_bound(double K_max, int D, double tau);

/* ---- audit.c: which steps are audited, and what they say of all ---- */

/* Philox4x32-10: four words for a counter of four and a key of two. */
void oracle_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* 1 if the step of a unit at `position` is audited: first word of (position, layer, unit, slot) under the seed, below rate * 2^32. */
int oracle_drawn(double rate, uint64_t seed, int slot, int layer, int unit, int position);
/*
 * Limits of the mean of N numbers in [0, 1] from n of them drawn without replacement, by their mean and mean square: see method.md; each of
 * the three events may fail with (1 - confidence) / 3. Chernoff's bounds are minimised numerically.
 */
void oracle_mean_bound(double N, double n, double mean, double square, double confidence, double *low, double *high);

/* ---- session.c, step.c: a whole session ---- */

enum { ORACLE_GATE_NONE, ORACLE_GATE_COSINE, ORACLE_GATE_MASS };
enum { ORACLE_RESIDUAL_NONE, ORACLE_RESIDUAL_MEAN, ORACLE_RESIDUAL_RETRIEVED };
/* Why a unit did not share. */
enum { ORACLE_CAUSE_NONE, ORACLE_CAUSE_NO_REFERENCE, ORACLE_CAUSE_BLOCK, ORACLE_CAUSE_COSINE, ORACLE_CAUSE_MASS };

typedef struct oracle_params {
    int L, H, H_kv, D, slots;
    double scale; /* 0: 1 / sqrt(D), in double; pass the library's float where bits matter */
    int c_sink, c_local, k;
    int never_retrieve; /* streaming: k counts as 0 */
    int dense_layers, min_sparse_n;
    int block, gate;
    int references; /* that a unit remembers; 0 counts as 1 */
    double tau, eps;
    int m, back, ahead, granularity, join;
    int residual;
    double floor; /* of Z_f; 0: ORACLE_FLOOR */
    double target;         /* > 0: lists have the fewest tokens, k_min to k, with which each head drops at most this; half, block > 1 */
    const double *targets; /* [L]: instead of `target`, or NULL */
    int k_min;
    const int *list_layers; /* [L]: whose lists a layer attends with, or NULL: its own */
    int psaw, psaw_layer;
    double phi, alpha;
    int etf, etf_layer;
    double psi, gamma;
} oracle_params;

typedef struct oracle_session oracle_session;

/* NULL for parameters that contradict each other. */
oracle_session *oracle_session_new(const oracle_params *params);
void oracle_session_free(oracle_session *s);
/* Selection units: H_kv, or H with a list per head. Unit u serves heads [u * unit_heads, (u + 1) * unit_heads). */
int oracle_units(const oracle_session *s);
int oracle_unit_heads(const oracle_session *s);
/* Cached rows. */
int oracle_length(const oracle_session *s, int layer, int slot);
/* P_l(t) (0 in dense layers) and E_l(n - 1). */
int oracle_psaw(const oracle_params *p, int layer, int t);
int oracle_frozen(const oracle_params *p, int layer, int prompt_len);

/* What the library did with a unit in this step. */
typedef struct oracle_follow {
    int mode;        /* SHARE or RETRIEVE is adopted where the oracle has either; IDLE: nothing to follow */
    const int *list; /* of a retrieval (NULL: the oracle's own); adopted if its entries are distinct candidates */
    int n_list;
    int ref_pos;     /* of the reference in hand after the step: tells which of several that are as close as float32 can tell it was */
    const signed char *rows; /* [R] or NULL: 1 row r attended densely, 0 it did not, -1 not known; entry 0 is not read */
} oracle_follow;

/* A head in a row. NaN where a figure does not exist. */
typedef struct oracle_head {
    double lse;        /* L_C: of what was attended (the caller's lse) */
    double delta;      /* dropped mass of record: exact over the scored tokens on a retrieval (row 0), else the estimate:
                        * delta_hat under the mass gate, without it stale, delta_ref */
    double delta_full; /* the truth: dropped mass against full causal attention */
    double delta_hat;  /* estimate from the reference in force after the verdict */
    double cos;        /* with the reference in force after the verdict */
    double delta_ref;  /* of the reference in force after the verdict */
    double L_D;        /* of the reference in force after the verdict */
    double gate_cos, gate_hat, gate_ref; /* what the row's gate saw (row 0: reference before the verdict), by the channels alone */
    double weight;                       /* in the output, of the mean or of the dropped tokens' value: exact, or by the channels alone */
    double weight_bar;                   /* what float32 may be off in it */
    double bar;                          /* F7's: 1e-6 * oracle_bar() of what was attended */
    double hat_bar;                      /* what float32 may be off in delta_hat */
    double spread;                       /* |value - o| / |output|: how an error in `weight` shows; 0 where the weight is 0 */
    double value_bar;                    /* what float32 may be off in the dropped tokens' value, as it shows: of |output| */
} oracle_head;

typedef struct oracle_unit {
    int mode, own_mode; /* as adopted; the oracle's own */
    int cause;          /* of the own verdict */
    double margin;      /* least distance of row 0's gate from failing; > 0 shares; -inf: nothing to share, or NaN; an estimate that float32
                           may have on either side counts as 0 */
    int list_ok, swaps; /* RETRIEVE with a followed list: F9's verdict on it */
    int holds;          /* the own gate's verdict */
    int tied;           /* several references are as close as float32 can tell: the verdict is open */
    int aimed, missed;  /* there is a target; a retrieval misses it, and attends densely */
    int near_miss;      /* float32 may see `missed` otherwise */
    oracle_set set;     /* as attended by row 0 */
    const int *list;    /* of `set`; lives until the next call on the session */
    int n_list, ref_pos;
    oracle_selection *own; /* the own selection if mode is RETRIEVE, else NULL; freed by the next call with this result */
} oracle_unit;

typedef struct oracle_result {
    int max_rows, units, H, D;
    oracle_unit *unit;        /* [units] */
    oracle_head *head;        /* [max_rows][H] */
    double *out;              /* [max_rows][H][D] */
    unsigned char *dense;     /* [max_rows][units]: this further row attended densely as its own gate failed (as adopted) */
    unsigned char *own_dense; /* [max_rows][units]: the own verdict */
    double *margin;           /* [max_rows][units]: of the rows' own gates, as oracle_unit.margin */
} oracle_result;

oracle_result *oracle_result_new(const oracle_session *s, int max_rows);
void oracle_result_free(oracle_result *r);

/* Appends rows K, V [rows][H_kv][D], rounded to the storage type. */
void oracle_append(oracle_session *s, int layer, int slot, int rows, const double *K, const double *V);
/* Decode rows q[R][H][D] for the last R cached rows (append first). follow: [units] or NULL. Returns 0; -1: bad arguments. */
int oracle_step(oracle_session *s, int layer, int slot, int R, const double *q, const oracle_follow *follow, oracle_result *r);
/* The last cached row retrieves, q[H][D]; units that would not be sparse stay IDLE. Only r->unit and, of row 0, delta, delta_ref,
 * L_D, lse and bar are set. */
int oracle_seed(oracle_session *s, int layer, int slot, const double *q, const oracle_follow *follow, oracle_result *r);
/* Prompt rows q[n][H][D] for the last n cached rows; out [n][H][D], lse [n][H] and bar [n][H] (or NULL), frozen rows untouched.
 * prompt_len: the final length, needed for ETF only. -1: bad arguments, ETF without a length. */
int oracle_prefill(oracle_session *s, int layer, int slot, int n, const double *q, int prompt_len, double *out, double *lse,
                   double *bar);

/* Life of a slot; layer -1 means all of them. */
void oracle_reset(oracle_session *s, int slot);
void oracle_fork(oracle_session *s, int dst, int src);
void oracle_move(oracle_session *s, int dst, int src);
void oracle_truncate(oracle_session *s, int layer, int slot, int length);
/* The first c rows of the layer's last step stay; -1: there was no step, or c is outside 1 .. R. */
int oracle_commit(oracle_session *s, int layer, int slot, int c);
/* Rows K, V [rows][H_kv][D] replace the layer's cache (K NULL: it stays); references are forgotten. Layer -1: K, V are
 * [L][rows][H_kv][D]. */
void oracle_attach(oracle_session *s, int layer, int slot, int rows, const double *K, const double *V);

#endif
