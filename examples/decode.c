/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest complete use of libprhs: one layer, one sequence, random K/V; a prompt, then decode steps with cis-mass. */
#include <stdio.h>
#include <stdlib.h>

#include <prhs/prhs.h>

#define OK(call) ((call) == PRHS_OK ? (void)0 : exit(1))

enum { HEADS = 8, KV_HEADS = 2, DIM = 64, PAGE = 16, PROMPT = 2048, STEPS = 64, TOKENS = PROMPT + STEPS };

static void on_message(void *user, prhs_log_level level, const char *text) {
    (void)user, (void)level;
    fprintf(stderr, "%s\n", text);
}

static prhs_buffer *buffers[16];
static int count;

static prhs_mem buffer(prhs_device *dev, size_t size) {
    OK(prhs_buffer_create(dev, size, &buffers[count]));
    return (prhs_mem){ buffers[count++], 0 };
}

static void write_random(prhs_queue *queue, prhs_mem mem, size_t floats) {
    float *x = malloc(floats * sizeof *x);
    for (size_t i = 0; x && i < floats; i++)
        x[i] = 4.0f * (float)rand() / (float)RAND_MAX - 2.0f;
    OK(prhs_queue_write(queue, mem, x, floats * sizeof *x));
    OK(prhs_queue_finish(queue));
    free(x);
}

int main(void) {
    prhs_log log = { PRHS_LOG_WARN, NULL, on_message };
    prhs_device_params open = PRHS_DEVICE_PARAMS_INIT;
    prhs_device *dev;
    prhs_queue *queue;
    OK(prhs_device_open(&open, &log, &dev));
    OK(prhs_queue_create(dev, &queue));

    prhs_session_params params = PRHS_SESSION_PARAMS_INIT;
    OK(prhs_policy_preset("cis-mass", 1, &params.policy));
    params.policy.dense_layers = 0;
    params.shape = (prhs_shape){ HEADS, KV_HEADS, DIM, 0.0f };
    params.layers = params.max_slots = params.max_seqs = 1;
    params.max_rows = PROMPT;
    params.max_kv_len = TOKENS;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    prhs_session *session;
    OK(prhs_session_get_sizes(dev, &params, &sizes));
    OK(prhs_session_create(dev, &params, queue, buffer(dev, sizes.state), buffer(dev, sizes.workspace), &session));

    const size_t row = HEADS * DIM * sizeof(float), pages = TOKENS / PAGE;
    prhs_step step = PRHS_STEP_INIT;
    step.kv = (prhs_kv){ .dtype = PRHS_F16, .page_size = PAGE, .pages = pages };
    step.kv.k = buffer(dev, (size_t)TOKENS * KV_HEADS * DIM * 2);
    step.kv.v = buffer(dev, (size_t)TOKENS * KV_HEADS * DIM * 2);
    prhs_kv_strides_nhd(&step.kv, KV_HEADS, DIM);
    step.q.mem = buffer(dev, PROMPT * row);
    step.k.mem = buffer(dev, PROMPT * row);
    step.v.mem = buffer(dev, PROMPT * row);
    step.out.mem = buffer(dev, PROMPT * row);
    write_random(queue, step.q.mem, PROMPT * HEADS * DIM);
    write_random(queue, step.k.mem, PROMPT * KV_HEADS * DIM);
    write_random(queue, step.v.mem, PROMPT * KV_HEADS * DIM);

    int32_t table[TOKENS / PAGE];
    for (int32_t i = 0; i < (int32_t)pages; i++)
        table[i] = i;
    step.batch = (prhs_batch){ buffer(dev, sizeof(prhs_seq)), buffer(dev, sizeof table), 1, (uint32_t)pages, PROMPT, 1, 0 };
    OK(prhs_queue_write(queue, step.batch.pages, table, sizeof table));
    for (int t = 0; t <= STEPS; t++) { /* t = 0: the prompt, whose last row seeds; then a token a step */
        prhs_seq seq = { .slot = 0, .row_begin = 0, .row_count = t ? 1 : PROMPT, .kv_len = PROMPT + t,
                         .flags = t ? 0 : PRHS_SEQ_PREFILL | PRHS_SEQ_SEED };
        step.batch.kinds = t ? PRHS_HAS_DECODE : PRHS_HAS_PREFILL | PRHS_HAS_SEED;
        OK(prhs_queue_write(queue, step.batch.seqs, &seq, sizeof seq));
        OK(prhs_session_step(session, queue, &step));
        OK(prhs_queue_finish(queue)); /* only because `seq` is on the stack */
    }

    prhs_stats stats = { .size = sizeof stats };
    prhs_stats_request *request;
    OK(prhs_stats_request_create(session, &request));
    OK(prhs_stats_request_enqueue(request, queue));
    OK(prhs_queue_finish(queue));
    OK(prhs_stats_request_get(request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &stats));
    printf("kept %.0f of %d tokens, rho %.3f, dropped mass: %.3f exact on retrievals, %.3f estimated on shared steps\n", stats.kept,
           TOKENS, stats.rho, stats.retrieved.mean, stats.shared.mean);

    prhs_stats_request_destroy(request);
    prhs_session_destroy(session);
    while (count > 0)
        prhs_buffer_destroy(buffers[--count]);
    prhs_queue_destroy(queue);
    OK(prhs_device_close(dev));
    return 0;
}
