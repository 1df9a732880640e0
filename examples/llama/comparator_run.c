/* SPDX-License-Identifier: Apache-2.0 */
#include "comparator_run.h"

#include <cblas.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "options.h"

enum { MOST_THREADS = 16, CHUNK = 64 }; /* CHUNK: steps that are enqueued before the host waits */

struct comparator_run {
    comparator c;
    engine *e;
    const comparator_prompts *prompts;
    run_shape shape;
    bool audits;
    prhs_ops *ops;
    prhs_ops_layout layout;
    prhs_buffer *state, *work;
    uint32_t cap;
    float *q, *k, *given;    /* a layer: [steps][docs][heads][dim], [docs][kv_heads][tokens][dim], [docs][kv_heads][tokens] */
    void *cached;            /* a layer's K as it lies */
    int32_t *list;           /* [steps][docs][units][cap] */
    prhs_set *set;           /* [steps][docs][units] */
    double *dropped;         /* [layers][heads], means */
    double *attended;        /* [layers]: tokens a step and list */
};

/* --- work on the host, by several threads --- */

typedef bool job_function(void *user, uint32_t job);

typedef struct crew {
    job_function *run;
    void *user;
    uint32_t jobs, next;
    bool good;
    pthread_mutex_t lock;
} crew;

static void *work(void *argument) {
    crew *c = argument;
    for (;;) {
        pthread_mutex_lock(&c->lock);
        const uint32_t job = c->next++;
        pthread_mutex_unlock(&c->lock);
        if (job >= c->jobs)
            return NULL;
        if (!c->run(c->user, job)) {
            pthread_mutex_lock(&c->lock);
            c->good = false;
            pthread_mutex_unlock(&c->lock);
        }
    }
}

/* BLAS works by one thread in each of ours. Where no thread can be had this one does it all. */
static bool in_parallel(job_function *run, void *user, uint32_t jobs) {
    crew c = { run, user, jobs, 0, true, PTHREAD_MUTEX_INITIALIZER };
    pthread_t threads[MOST_THREADS];
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const int blas = openblas_get_num_threads();
    uint32_t n = 0;
    openblas_set_num_threads(1);
    while (n + 1 < MOST_THREADS && n + 1 < jobs && (long)n + 1 < cores && pthread_create(&threads[n], NULL, work, &c) == 0)
        n++;
    work(&c);
    while (n > 0)
        pthread_join(threads[--n], NULL);
    openblas_set_num_threads(blas);
    pthread_mutex_destroy(&c.lock);
    return c.good;
}

static void blas_product(uint32_t rows, uint32_t n, uint32_t dim, float scale, const float *q, size_t q_step, const float *k, size_t k_step, float *out,
                         size_t out_step) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)n, (int)dim, scale, q, (int)q_step, k, (int)k_step, 0.0f, out, (int)out_step);
}

/* --- prompts --- */

bool comparator_prompts_make(comparator_prompts *p, const engine *e) {
    p->given = calloc((size_t)e->m->layers * e->seqs * e->m->kv_heads * e->tokens, sizeof *p->given);
    return p->given != NULL;
}

static float *given_at(const comparator_prompts *p, const engine *e, uint32_t layer, uint32_t seq) {
    return p->given + ((size_t)layer * e->seqs + seq) * e->m->kv_heads * e->tokens;
}

typedef struct prompt_job {
    const engine *e;
    const float *q, *k;
    float *given; /* [heads][rows] */
    uint32_t rows;
} prompt_job;

static bool give_head(void *user, uint32_t h) {
    const prompt_job *p = user;
    const model *m = p->e->m;
    const uint32_t hk = h / (m->heads / m->kv_heads), dim = m->head_dim;
    return comparator_give(p->q + (size_t)h * dim, (size_t)m->heads * dim, p->k + (size_t)hk * dim, (size_t)m->kv_heads * dim, p->rows, dim,
                           1.0f / sqrtf((float)dim), p->given + (size_t)h * p->rows, blas_product);
}

bool comparator_prompts_take(comparator_prompts *p, engine *e, uint32_t layer, uint32_t seq, uint32_t rows) {
    if (!p->given)
        return true;
    const model *m = e->m;
    const size_t q = (size_t)m->heads * m->head_dim, kv = (size_t)m->kv_heads * m->head_dim;
    float *block = malloc(sizeof *block * rows * (q + kv)), *given = calloc((size_t)m->heads * rows, sizeof *given);
    prompt_job job = { e, block, block + rows * q, given, rows };
    bool ok = block && given && engine_read_rows(e, &e->q, rows, q, block) && engine_read_rows(e, &e->k, rows, kv, block + rows * q) &&
              in_parallel(give_head, &job, m->heads);
    for (uint32_t h = 0; ok && h < m->heads; h++) { /* in the order of heads: the same sums with any number of threads */
        float *to = given_at(p, e, layer, seq) + (size_t)(h / (m->heads / m->kv_heads)) * e->tokens;
        for (uint32_t j = 0; j < rows; j++)
            to[j] += given[(size_t)h * rows + j];
    }
    free(block);
    free(given);
    return ok;
}

/* --- a run --- */

static bool open_ops(comparator_run *r) {
    const engine *e = r->e;
    prhs_ops_params p = PRHS_OPS_PARAMS_INIT;
    p.shape = (prhs_shape){ e->m->heads, e->m->kv_heads, e->m->head_dim, 0.0f };
    p.max_seqs = p.max_rows = p.max_slots = e->seqs;
    p.max_kv_len = e->tokens;
    p.list_cap = r->cap;
    p.per_head = comparator_per_head(&r->c);
    p.kv_dtype = e->kv_dtype;
    r->layout.size = sizeof r->layout;
    return prhs_ops_get_layout(e->dev, &p, &r->layout) == PRHS_OK && prhs_ops_create(e->dev, &p, &r->ops) == PRHS_OK &&
           prhs_buffer_create(e->dev, r->layout.state_bytes, &r->state) == PRHS_OK &&
           prhs_buffer_create(e->dev, r->layout.workspace_bytes, &r->work) == PRHS_OK;
}

comparator_run *comparator_run_open(engine *e, const comparator *c, const comparator_prompts *prompts, const run_shape *shape, bool audits) {
    const model *m = e->m;
    comparator_run *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    const size_t docs = shape->docs, steps = shape->decode, tokens = (size_t)e->pages_per_seq * ENGINE_PAGE,
                 kv = (size_t)m->kv_heads * m->head_dim;
    *r = (comparator_run){ .c = *c, .e = e, .prompts = prompts, .shape = *shape, .audits = audits };
    const uint32_t most = c->page ? (e->tokens / c->page + 1) * c->page : e->tokens;
    r->c.k = c->k < most ? c->k : most;
    r->cap = comparator_list_cap(&r->c);
    if (!open_ops(r)) {
        comparator_run_close(r);
        return NULL;
    }
    r->q = malloc(sizeof *r->q * steps * docs * m->heads * m->head_dim);
    r->k = malloc(sizeof *r->k * docs * tokens * kv);
    r->given = malloc(sizeof *r->given * docs * m->kv_heads * e->tokens);
    r->cached = malloc(docs * tokens * kv * prhs_dtype_size(e->kv_dtype));
    r->list = calloc(steps * docs * r->layout.units * r->cap, sizeof *r->list);
    r->set = calloc(steps * docs * r->layout.units, sizeof *r->set);
    r->dropped = calloc((size_t)m->layers * m->heads, sizeof *r->dropped);
    r->attended = calloc(m->layers, sizeof *r->attended);
    if (r->q && r->k && r->given && r->cached && r->list && r->set && r->dropped && r->attended)
        return r;
    comparator_run_close(r);
    return NULL;
}

void comparator_run_close(comparator_run *r) {
    if (!r)
        return;
    prhs_queue_finish(r->e->queue);
    prhs_ops_destroy(r->ops);
    prhs_buffer_destroy(r->state);
    prhs_buffer_destroy(r->work);
    void *blocks[] = { r->q, r->k, r->given, r->cached, r->list, r->set, r->dropped, r->attended, r };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
}

/* K and V of all steps into the cache. */
static bool append(comparator_run *r, uint32_t layer, uint32_t plan) {
    engine *e = r->e;
    bool ok = true;
    for (uint32_t s = 0; ok && s < r->shape.decode; s++) {
        const prhs_batch batch = engine_batch(e, plan + s, 0, e->seqs, e->seqs, PRHS_HAS_DECODE);
        prhs_rows k = e->k, v = e->v;
        k.mem = engine_row(&k, (size_t)s * e->seqs);
        v.mem = engine_row(&v, (size_t)s * e->seqs);
        ok = prhs_op_append(r->ops, e->queue, &batch, &e->kv[layer], &k, &v, (prhs_mem){ NULL, 0 }) == PRHS_OK;
    }
    return ok;
}

static float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = h >> 10 & 31, m = h & 1023;
    union {
        uint32_t u;
        float f;
    } x = { sign | (e == 31 ? 255u << 23 : (e + 112) << 23) | m << 13 };
    return e == 0 ? (sign ? -1.0f : 1.0f) * (float)m * 0x1p-24f : x.f;
}

static float element(const void *from, size_t i, prhs_dtype dtype) {
    union {
        uint32_t u;
        float f;
    } x;
    if (dtype == PRHS_F32)
        return ((const float *)from)[i];
    if (dtype == PRHS_F16)
        return from_half(((const uint16_t *)from)[i]);
    x.u = (uint32_t)((const uint16_t *)from)[i] << 16;
    return x.f;
}

/* The layer's rows to the host: queries, and keys as they are cached, head by head. */
static bool read_layer(comparator_run *r, uint32_t layer) {
    engine *e = r->e;
    const model *m = e->m;
    const size_t tokens = (size_t)e->pages_per_seq * ENGINE_PAGE, kv = (size_t)m->kv_heads * m->head_dim;
    const size_t rows = (size_t)r->shape.decode * e->seqs;
    if (!engine_read_rows(e, &e->q, rows, (size_t)m->heads * m->head_dim, r->q) ||
        prhs_queue_read(e->queue, r->cached, e->kv[layer].k, e->seqs * tokens * kv * prhs_dtype_size(e->kv_dtype)) != PRHS_OK ||
        prhs_queue_finish(e->queue) != PRHS_OK)
        return false;
    for (size_t d = 0; d < e->seqs; d++)
        for (size_t j = 0; j < e->tokens; j++)
            for (size_t i = 0; i < kv; i++) {
                const size_t hk = i / m->head_dim, c = i % m->head_dim;
                r->k[((d * m->kv_heads + hk) * e->tokens + j) * m->head_dim + c] = element(r->cached, (d * tokens + j) * kv + i, e->kv_dtype);
            }
    if (r->prompts->given)
        memcpy(r->given, given_at(r->prompts, e, layer, 0), sizeof *r->given * e->seqs * m->kv_heads * e->tokens);
    return true;
}

typedef struct layer_job {
    comparator_run *r;
    uint32_t layer;
    pthread_mutex_t lock; /* of the run's sums */
} layer_job;

/* Lists of KV head job % kv_heads of document job / kv_heads. */
static bool choose_head(void *user, uint32_t job) {
    layer_job *l = user;
    comparator_run *r = l->r;
    const model *m = r->e->m;
    const uint32_t group = m->heads / m->kv_heads, dim = m->head_dim, units = r->layout.units, doc = job / m->kv_heads, hk = job % m->kv_heads;
    const size_t first = (size_t)doc * units + (comparator_per_head(&r->c) ? hk * group : hk), lists = (size_t)r->shape.docs * units;
    double dropped[64] = { 0 };
    comparator_task t = {
        .context = r->shape.context, .steps = r->shape.decode, .group = group, .dim = dim, .scale = 1.0f / sqrtf((float)dim),
        .k = r->k + (size_t)job * r->e->tokens * dim, .q = r->q + ((size_t)doc * m->heads + hk * group) * dim,
        .q_step = (size_t)r->shape.docs * m->heads * dim, .given = r->given + (size_t)job * r->e->tokens, .dense = l->layer < r->c.dense,
        .list = r->list + first * r->cap, .set = r->set + first, .list_step = lists * r->cap, .set_step = lists,
        .dropped = r->audits ? dropped : NULL,
    };
    if (!comparator_lists(&r->c, &t, blas_product))
        return false;
    const double rows = (double)r->shape.docs * r->shape.decode;
    pthread_mutex_lock(&l->lock);
    r->attended[l->layer] += t.attended / (rows * units);
    for (uint32_t g = 0; g < group; g++)
        r->dropped[(size_t)l->layer * m->heads + hk * group + g] += dropped[g] / rows;
    pthread_mutex_unlock(&l->lock);
    return true;
}

/* A step of all documents with the lists that are theirs. */
static bool attend(comparator_run *r, uint32_t layer, uint32_t plan, uint32_t s) {
    engine *e = r->e;
    const size_t lists = (size_t)e->seqs * r->layout.units, list = (size_t)r->layout.units * r->cap;
    const prhs_mem state = { r->state, 0 }, ws = { r->work, 0 };
    bool ok = prhs_queue_write(e->queue, (prhs_mem){ r->work, r->layout.sets }, r->set + s * lists, lists * sizeof *r->set) == PRHS_OK;
    for (size_t d = 0; ok && d < e->seqs; d++)
        ok = prhs_queue_write(e->queue, (prhs_mem){ r->state, d * r->layout.slot_bytes + r->layout.lists }, r->list + s * lists * r->cap + d * list,
                              list * sizeof *r->list) == PRHS_OK;
    const prhs_batch batch = engine_batch(e, plan + s, 0, e->seqs, e->seqs, PRHS_HAS_DECODE);
    prhs_rows q = e->q, out = e->out;
    q.mem = engine_row(&q, (size_t)s * e->seqs);
    out.mem = engine_row(&out, (size_t)s * e->seqs);
    return ok && prhs_op_attend(r->ops, e->queue, &batch, &e->kv[layer], &q, state, ws, &out, (prhs_mem){ NULL, 0 }) == PRHS_OK;
}

bool comparator_run_layer(comparator_run *r, uint32_t layer, uint32_t plan, double *attention) {
    layer_job job = { r, layer, PTHREAD_MUTEX_INITIALIZER };
    bool ok = append(r, layer, plan) && read_layer(r, layer) && in_parallel(choose_head, &job, r->shape.docs * r->e->m->kv_heads);
    pthread_mutex_destroy(&job.lock);
    const double start = now();
    for (uint32_t s = 0; ok && s < r->shape.decode && !interrupted; s++)
        ok = attend(r, layer, plan, s) && (s % CHUNK < CHUNK - 1 || prhs_queue_finish(r->e->queue) == PRHS_OK);
    ok = ok && !interrupted && prhs_queue_finish(r->e->queue) == PRHS_OK;
    *attention += now() - start;
    return ok;
}

/* --- what came of it --- */

static void take_layer(const comparator_run *r, uint32_t layer, layer_stats *to) {
    const model *m = r->e->m;
    const uint64_t steps = (uint64_t)r->shape.docs * r->shape.decode;
    const bool sparse = layer >= r->c.dense;
    const double n = r->shape.context + (r->shape.decode + 1) / 2.0;
    prhs_stats *all = &to->all;
    *all = (prhs_stats){ .size = sizeof *all, .rho = NAN, .kept = NAN, .attended = NAN };
    all->audited = all->retrieved = all->shared = (prhs_mass){ PRHS_GRADE_UNKNOWN, NAN, 0 };
    for (uint32_t h = 0; h < m->heads; h++) {
        prhs_head_stats *head = &to->heads[h];
        *head = (prhs_head_stats){ .size = sizeof *head, .retrieved = all->retrieved, .shared = all->shared, .audited = all->audited };
        if (sparse && r->audits)
            head->audited = (prhs_mass){ PRHS_GRADE_EXACT, r->dropped[(size_t)layer * m->heads + h], steps };
    }
    if (!sparse)
        return;
    double sum = 0.0;
    for (uint32_t h = 0; h < m->heads; h++)
        sum += r->dropped[(size_t)layer * m->heads + h] / m->heads;
    all->steps = steps * r->layout.units;
    all->kept = all->attended = r->attended[layer];
    all->rho = comparator_reads(&r->c, n) / n;
    if (r->audits)
        all->audited = (prhs_mass){ PRHS_GRADE_EXACT, sum, steps * m->heads };
}

/* Bytes of K and V, and of what stands for K in a choice, a step of a sequence. */
static double bytes_of(const comparator_run *r, double *dense) {
    const model *m = r->e->m;
    const double n = r->shape.context + (r->shape.decode + 1) / 2.0, row = (double)m->head_dim * (double)prhs_dtype_size(r->e->kv_dtype);
    double rows = 0.0;
    for (uint32_t l = 0; l < m->layers; l++)
        rows += l < r->c.dense ? 2 * n * m->kv_heads : 2 * r->attended[l] * r->layout.units + comparator_reads(&r->c, n) * m->kv_heads;
    *dense = 2 * n * m->kv_heads * m->layers * row;
    return rows * row;
}

bool comparator_run_take(comparator_run *r, result *res) {
    const model *m = r->e->m;
    layer_stats *layers = layer_stats_make(m->layers, m->heads);
    double kept = 0.0, mass = 0.0;
    uint32_t sparse = 0;
    if (!layers)
        return false;
    for (uint32_t l = 0; l < m->layers; l++) {
        take_layer(r, l, &layers[l]);
        sparse += l >= r->c.dense;
        kept += l >= r->c.dense ? layers[l].all.kept : 0.0;
        mass += l >= r->c.dense && r->audits ? layers[l].all.audited.mean : 0.0;
    }
    res->stats = layers[m->layers - 1].all;
    res->stats.kept = res->stats.attended = sparse ? kept / sparse : NAN;
    if (res->stats.audited.count)
        res->stats.audited = (prhs_mass){ PRHS_GRADE_EXACT, mass / sparse, res->stats.audited.count * sparse };
    res->layers = layers;
    res->layer_count = m->layers;
    res->heads = m->heads;
    res->bytes = bytes_of(r, &res->dense_bytes);
    return true;
}
