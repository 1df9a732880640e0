/* SPDX-License-Identifier: Apache-2.0 */
/* Bad device data: what poll reports, that the good sequences of the batch are not touched, and that nothing is overrun. */
#include <string.h>

#include "groups.h"
#include "world.h"

typedef enum fault {
    BAD_SLOT,
    BAD_LENGTH_LONG,
    BAD_LENGTH_SHORT,
    BAD_LENGTH_NEGATIVE,
    BAD_LENGTH_TABLE,
    BAD_ROWS,
    BAD_PAGE,
    BAD_PAGE_NEGATIVE,
    BAD_PROMPT,
    BAD_NONE,
    FAULTS
} fault;

static const struct f_row {
    const char *name;
    const char *words; /* of the sentence */
    int decode_only;   /* without `validate` it is still harmless */
} rows[FAULTS] = {
    [BAD_SLOT] = { "slot beyond max_slots", "slot", 1 },
    [BAD_LENGTH_LONG] = { "length beyond max_kv_len", "kv_len", 1 },
    [BAD_LENGTH_SHORT] = { "length below the rows", "kv_len", 1 },
    [BAD_LENGTH_NEGATIVE] = { "negative length", "kv_len", 1 },
    [BAD_LENGTH_TABLE] = { "length beyond the page table", "page table", 1 },
    [BAD_ROWS] = { "more rows than decode_rows", "rows", 1 },
    [BAD_PAGE] = { "page id beyond the cache", "page", 1 },
    [BAD_PAGE_NEGATIVE] = { "negative page id", "page", 1 },
    [BAD_PROMPT] = { "ETF without a prompt length", "prompt", 0 },
    [BAD_NONE] = { "nothing wrong", NULL, 1 },
};

static const char *row_name(int row) { return rows[row].name; }

/* Page tables that just hold the good sequence's pages; the other one claims a row more. */
static void shorten_tables(t_batch *b, uint32_t page_size) {
    uint32_t stride = ((uint32_t)b->seqs[0].kv_len + page_size - 1) / page_size;
    memmove(b->pages + stride, b->pages + b->b.page_stride, stride * sizeof *b->pages);
    b->b.page_stride = stride;
    b->seqs[1].kv_len = (int32_t)(stride * page_size + 1);
}

static void spoil(t_batch *b, fault f, uint32_t pages, uint32_t page_size) {
    prhs_seq *bad = &b->seqs[1];
    switch (f) {
    case BAD_SLOT: bad->slot = 8; break;
    case BAD_LENGTH_LONG: bad->kv_len = 100000; break;
    case BAD_LENGTH_SHORT: bad->kv_len = 0; break;
    case BAD_LENGTH_NEGATIVE: bad->kv_len = -5; break;
    case BAD_LENGTH_TABLE: shorten_tables(b, page_size); break;
    case BAD_ROWS: bad->row_count = 3; break;
    case BAD_PAGE: b->pages[b->b.page_stride + 1] = (int32_t)pages; break;
    case BAD_PAGE_NEGATIVE: b->pages[b->b.page_stride] = -1; break;
    case BAD_PROMPT: bad->flags = PRHS_SEQ_PREFILL; break;
    default: break;
    }
}

static prhs_status poll_now(t_ctx *t, t_world *w) {
    prhs_status status = prhs_session_poll(w->session, t->queue);
    T_OK(t, prhs_queue_finish(t->queue));
    if (status == PRHS_ERR_DATA)
        return status;
    t_hush(t);
    return prhs_session_poll(w->session, t->queue);
}

/* A step of two sequences, and again with the second one spoiled. */
static void spoiled(t_ctx *t, t_world *w, t_wseq *good, t_wseq *other, fault f) {
    t_entry entries[2] = { { good, 1, 0, 0, NULL, 0, 0 }, { other, 1, 0, 0, NULL, 0, 0 } };
    t_world_step(w, entries, 2);
    spoil(&w->batch, f, w->cache[0].kv.pages, w->s.layout.page);
    w->batch.b.kinds |= PRHS_HAS_PREFILL; /* one of them is a prompt's */
    t_batch_upload(t, &w->batch);
    for (uint32_t l = 0; l < w->s.layers; l++) {
        prhs_step step = PRHS_STEP_INIT;
        step.layer = l;
        step.batch = w->batch.b;
        step.kv = w->cache[l].kv;
        step.q = w->q.r;
        step.k = w->k.r;
        step.v = w->v.r;
        step.out = w->out.r;
        T_OK(t, prhs_session_step(w->session, t->queue, &step));
    }
}

static void check_fault(t_ctx *t, fault f, int validate) {
    t_world w;
    t_setup s = t_setup_default(t, f == BAD_PROMPT ? "cpe" : "cis-mass", &t_shapes[S_G1_D32]);
    s.validate = (uint32_t)validate;
    t_world_make(t, &w, &s);
    prhs_status status = prhs_session_poll(w.session, t->queue);
    T_CHECK(t, status == PRHS_OK || status == PRHS_NOT_READY, "the first poll: %s", prhs_status_name(status));
    t_wseq *good = t_world_seq(&w, 1, 0), *other = t_world_seq(&w, 2, 1);
    t_world_prompt(&w, good, 60, 64);
    t_world_prompt(&w, other, 50, 64);
    status = poll_now(t, &w);
    T_CHECK(t, status == PRHS_OK, "poll before the fault: %s (%s)", prhs_status_name(status), t->sentence);
    spoiled(t, &w, good, other, f);
    size_t row = s.shape->heads * s.shape->dim * sizeof(float);
    T_CHECK(t, !memcmp(t_rows_get(t, &w.out), w.outs[s.layers - 1], row), "the good sequence of the batch got other bits");
    status = poll_now(t, &w);
    int seen = rows[f].words && (validate || f == BAD_PROMPT);
    if (seen) {
        T_CHECK(t, status == PRHS_ERR_DATA, "poll after the fault: %s", prhs_status_name(status));
        T_CHECK(t, strstr(t->sentence, rows[f].words), "the sentence is \"%s\"", t->sentence);
        T_STATUS(t, PRHS_ERR_DATA, poll_now(t, &w));
    } else if (f == BAD_NONE) {
        T_CHECK(t, status == PRHS_OK, "poll without a fault: %s (%s)", prhs_status_name(status), t->sentence);
    }
    t_check_guards(t);
}

static void run(t_ctx *t, int row) {
    check_fault(t, (fault)row, 1);
    if (rows[row].decode_only)
        check_fault(t, (fault)row, 0);
}

const t_group t_group_faults = { "faults", FAULTS, FAULTS, row_name, run };
