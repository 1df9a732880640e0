/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Takes the next n floats of the block; in the first pass (block NULL) only counts. */
typedef struct arena {
    float *block;
    size_t used;
} arena;

static float *take(arena *a, size_t n) {
    float *p = a->block ? a->block + a->used : NULL;
    a->used += n;
    return p;
}

static bool fetch(const gguf *g, arena *a, const char *name, uint64_t in, uint64_t out, float **to, char *error, size_t cap) {
    const gguf_tensor *t = gguf_find(g, name);
    if (!t || t->dim[0] != in || gguf_elements(t) != in * out) {
        snprintf(error, cap, "tensor %s is %s", name, t ? "of another shape than the model's parameters say" : "missing");
        return false;
    }
    *to = take(a, (size_t)(in * out));
    if (*to && !gguf_floats(t, *to)) {
        snprintf(error, cap, "tensor %s has a type that is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1 are)", name);
        return false;
    }
    return true;
}

static bool fetch_layer(const gguf *g, arena *a, const model *m, uint32_t i, layer_weights *w, char *error, size_t cap) {
    const uint64_t dim = m->dim, q = (uint64_t)m->heads * m->head_dim, kv = (uint64_t)m->kv_heads * m->head_dim, ffn = m->ffn;
    const struct {
        const char *name;
        uint64_t in, out;
        float **to;
    } tensors[] = {
        { "attn_norm", dim, 1, &w->attn_norm }, { "ffn_norm", dim, 1, &w->ffn_norm }, { "attn_q", dim, q, &w->wq },
        { "attn_k", dim, kv, &w->wk },          { "attn_v", dim, kv, &w->wv },        { "attn_output", q, dim, &w->wo },
        { "ffn_gate", dim, ffn, &w->gate },     { "ffn_up", dim, ffn, &w->up },       { "ffn_down", ffn, dim, &w->down },
    };
    for (size_t j = 0; j < sizeof tensors / sizeof tensors[0]; j++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s.weight", i, tensors[j].name);
        if (!fetch(g, a, name, tensors[j].in, tensors[j].out, tensors[j].to, error, cap))
            return false;
    }
    return true;
}

static bool fetch_all(const gguf *g, arena *a, model *m, char *error, size_t cap) {
    if (!fetch(g, a, "token_embd.weight", m->dim, m->vocab, &m->embedding, error, cap) ||
        !fetch(g, a, "output_norm.weight", m->dim, 1, &m->norm, error, cap))
        return false;
    m->output = m->embedding;
    if (gguf_find(g, "output.weight") && !fetch(g, a, "output.weight", m->dim, m->vocab, &m->output, error, cap))
        return false;
    for (uint32_t i = 0; i < m->layers; i++)
        if (!fetch_layer(g, a, m, i, &m->layer[i], error, cap))
            return false;
    return true;
}

static const char *read_parameters(const gguf *g, model *m) {
    gguf_str arch;
    if (!gguf_text(g, "general.architecture", &arch) || arch.size != 5 || memcmp(arch.data, "llama", 5) != 0)
        return "its architecture is not llama";
    if (!gguf_u32(g, "llama.block_count", &m->layers) || !gguf_u32(g, "llama.embedding_length", &m->dim) ||
        !gguf_u32(g, "llama.attention.head_count", &m->heads) || !gguf_u32(g, "llama.feed_forward_length", &m->ffn) ||
        !gguf_f32(g, "llama.attention.layer_norm_rms_epsilon", &m->eps))
        return "a llama.* parameter is missing";
    m->kv_heads = m->heads;
    m->rope_base = 10000.0f;
    m->context = 2048;
    gguf_u32(g, "llama.attention.head_count_kv", &m->kv_heads);
    gguf_f32(g, "llama.rope.freq_base", &m->rope_base);
    gguf_u32(g, "llama.context_length", &m->context);
    const gguf_tensor *t = gguf_find(g, "token_embd.weight");
    if (m->layers == 0 || m->layers > 1000 || m->dim == 0 || m->dim > 1 << 16 || m->ffn == 0 || m->ffn > 1 << 18 || m->heads == 0 ||
        m->heads > 1024 || m->kv_heads == 0 || m->heads % m->kv_heads || m->dim % m->heads || !t || t->dims != 2 ||
        t->dim[1] > INT32_MAX)
        return "its parameters contradict each other";
    m->head_dim = m->dim / m->heads;
    m->vocab = (uint32_t)t->dim[1];
    return m->head_dim % 8 || m->head_dim < 32 || m->head_dim > 256 ? "its head size is no multiple of 8 from 32 to 256" : NULL;
}

bool model_load(const gguf *g, model *m, char *error, size_t cap) {
    memset(m, 0, sizeof *m);
    const char *fault = read_parameters(g, m);
    if (fault) {
        snprintf(error, cap, "the model cannot be used: %s", fault);
        return false;
    }
    m->layer = calloc(m->layers, sizeof *m->layer);
    arena a = { NULL, 0 };
    if (!m->layer || !fetch_all(g, &a, m, error, cap)) {
        model_free(m);
        return false;
    }
    m->floats = a.used;
    m->block = a.block = malloc(a.used * sizeof(float));
    a.used = 0;
    if (!m->block) {
        snprintf(error, cap, "no memory for the weights");
        model_free(m);
        return false;
    }
    if (!fetch_all(g, &a, m, error, cap)) {
        model_free(m);
        return false;
    }
    return true;
}

void model_free(model *m) {
    free(m->block);
    free(m->layer);
    memset(m, 0, sizeof *m);
}

static void rms_norm(const float *x, const float *weight, size_t rows, size_t dim, float eps, float *out) {
    for (size_t r = 0; r < rows; r++) {
        double sum = 0.0;
        for (size_t d = 0; d < dim; d++)
            sum += (double)x[r * dim + d] * x[r * dim + d];
        float scale = (float)(1.0 / sqrt(sum / (double)dim + (double)eps));
        for (size_t d = 0; d < dim; d++)
            out[r * dim + d] = x[r * dim + d] * scale * weight[d];
    }
}

/* y [rows][out] = x [rows][in] * w^T (+ y where beta is 1) */
static void linear(const float *x, const float *w, size_t rows, size_t in, size_t out, float beta, float *y) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)out, (int)in, 1.0f, x, (int)in, w, (int)in, beta, y, (int)out);
}

/* GGUF's llama layout rotates adjacent pairs of channels. */
static void rope(float *x, size_t rows, size_t heads, size_t dim, const int32_t *position, float base) {
    for (size_t p = 0; p < dim / 2; p++) {
        double freq = pow((double)base, -2.0 * (double)p / (double)dim);
        for (size_t r = 0; r < rows; r++) {
            double angle = freq * position[r];
            float c = (float)cos(angle), s = (float)sin(angle);
            for (size_t h = 0; h < heads; h++) {
                float *pair = x + (r * heads + h) * dim + 2 * p;
                float a = pair[0], b = pair[1];
                pair[0] = a * c - b * s;
                pair[1] = a * s + b * c;
            }
        }
    }
}

void model_embed(const model *m, const int32_t *ids, size_t rows, float *x) {
    for (size_t r = 0; r < rows; r++)
        memcpy(x + r * m->dim, m->embedding + (size_t)ids[r] * m->dim, m->dim * sizeof *x);
}

void model_qkv(const model *m, uint32_t layer, const float *x, size_t rows, const int32_t *position, float *q, float *k, float *v,
               float *tmp) {
    const layer_weights *w = &m->layer[layer];
    const size_t kv = (size_t)m->kv_heads * m->head_dim;
    rms_norm(x, w->attn_norm, rows, m->dim, m->eps, tmp);
    linear(tmp, w->wq, rows, m->dim, (size_t)m->heads * m->head_dim, 0.0f, q);
    linear(tmp, w->wk, rows, m->dim, kv, 0.0f, k);
    linear(tmp, w->wv, rows, m->dim, kv, 0.0f, v);
    rope(q, rows, m->heads, m->head_dim, position, m->rope_base);
    rope(k, rows, m->kv_heads, m->head_dim, position, m->rope_base);
}

void model_rest(const model *m, uint32_t layer, float *x, const float *attention, size_t rows, float *tmp) {
    const layer_weights *w = &m->layer[layer];
    float *gate = tmp + rows * m->dim, *up = gate + rows * m->ffn;
    linear(attention, w->wo, rows, (size_t)m->heads * m->head_dim, m->dim, 1.0f, x);
    rms_norm(x, w->ffn_norm, rows, m->dim, m->eps, tmp);
    linear(tmp, w->gate, rows, m->dim, m->ffn, 0.0f, gate);
    linear(tmp, w->up, rows, m->dim, m->ffn, 0.0f, up);
    for (size_t i = 0; i < rows * m->ffn; i++)
        gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    linear(gate, w->down, rows, m->ffn, m->dim, 1.0f, x);
}

void model_logits(const model *m, const float *x, size_t rows, float *logits, float *tmp) {
    rms_norm(x, m->norm, rows, m->dim, m->eps, tmp);
    linear(tmp, m->output, rows, m->dim, m->vocab, 0.0f, logits);
}
