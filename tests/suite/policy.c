/* SPDX-License-Identifier: Apache-2.0 */
/* Presets as the method names them, and PSAW's and ETF's integers. The refusals of the check are in errors.def. */
#include <math.h>
#include <string.h>

#include "groups.h"
#include "harness.h"

/* method.md's presets, for a model of 30 layers. */
static const struct p_row {
    const char *name;
    prhs_policy want;
} presets[] = {
    { "dense", { .k = UINT32_MAX, .sinks = 4, .local = 32, .block = 1 } },
    { "streaming", { .k = 0, .sinks = 4, .local = 508, .block = 1 } },
    { "topk", { .k = 476, .sinks = 4, .local = 32, .block = 1 } },
    { "hshare", { .k = 476, .sinks = 4, .local = 32, .block = 2 } },
    { "cis",
      { .k = 476,
        .sinks = 4,
        .local = 32,
        .block = 16,
        .gate = PRHS_GATE_COSINE,
        .tau = 0.8f,
        .dilate_m = 16,
        .dilate_back = 1,
        .dilate_ahead = 1 } },
    { "cpe",
      { .k = 476,
        .sinks = 4,
        .local = 32,
        .block = 16,
        .gate = PRHS_GATE_COSINE,
        .tau = 0.8f,
        .dilate_m = 16,
        .dilate_back = 1,
        .dilate_ahead = 1,
        .psaw = 1,
        .psaw_layer = 15,
        .psaw_phi = 0.5f,
        .psaw_alpha = 1.0f,
        .etf = 1,
        .etf_layer = 15,
        .etf_psi = 0.7f,
        .etf_gamma = 1.0f } },
    { "cis-mass",
      { .k = 476,
        .sinks = 4,
        .local = 32,
        .block = 64,
        .gate = PRHS_GATE_MASS,
        .tau = 0.5f,
        .eps = 0.1f,
        .residual = PRHS_RESIDUAL_MEAN } },
    { "cis-recall",
      { .k = 476,
        .sinks = 4,
        .local = 32,
        .block = 512,
        .references = 16,
        .gate = PRHS_GATE_MASS,
        .tau = -1.0f,
        .eps = 0.1f,
        .residual = PRHS_RESIDUAL_MEAN } },
};
#define PRESETS (int)(sizeof presets / sizeof *presets)

static const char *row_name(int row) { return row < PRESETS ? presets[row].name : row == PRESETS ? "windows" : "window bounds"; }

static void check_preset(t_ctx *t, const struct p_row *row) {
    prhs_policy got, want = row->want;
    const char *why = "unset", *what = NULL;
    int listed = 0;
    want.size = sizeof want;
    want.granularity = 1;
    want.dense_layers = 1;
    want.k_min = 128;
    want.references = want.references ? want.references : 1;
    memset(&got, 0, sizeof got);
    T_OK(t, prhs_policy_preset(row->name, 30, &got));
#define SAME(field) T_CHECK(t, got.field == want.field, #field " is %g instead of %g", (double)got.field, (double)want.field)
    SAME(size);
    SAME(k);
    SAME(sinks);
    SAME(local);
    SAME(dense_layers);
    SAME(min_sparse_n);
    SAME(block);
    SAME(references);
    SAME(gate);
    SAME(tau);
    SAME(eps);
    SAME(target);
    SAME(k_min);
    SAME(dilate_m);
    SAME(dilate_back);
    SAME(dilate_ahead);
    SAME(granularity);
    SAME(join);
    SAME(residual);
    SAME(psaw);
    SAME(psaw_layer);
    SAME(psaw_phi);
    SAME(psaw_alpha);
    SAME(etf);
    SAME(etf_layer);
    SAME(etf_psi);
    SAME(etf_gamma);
#undef SAME
    T_OK(t, prhs_policy_check(&got, 30, &why));
    T_CHECK(t, why == NULL, "a good policy's sentence is \"%s\"", why);
    size_t i = 0;
    for (const char *name; (name = prhs_policy_name(i, &what)) != NULL; i++)
        listed += !strcmp(name, row->name) && what && *what;
    T_CHECK(t, listed == 1, "the preset is listed %d times", listed);
    T_CHECK(t, i == (size_t)PRESETS, "%zu presets are listed, the test knows %d", i, PRESETS);
}

/* The fixed-point rule, written again: a = min(round((1 - base^(exponent * depth)) * 2^32), 2^32 - 1), then a * t >> 32. */
static uint32_t window(double base, double exponent, uint32_t layers, uint32_t first, uint32_t layer, uint32_t t) {
    if (layer < first)
        return 0;
    long double f = 1.0L - powl((long double)base, (long double)exponent * (layer - first) / (layers - first));
    long double a = floorl(f * 4294967296.0L + 0.5L);
    uint64_t fixed = a >= 4294967295.0L ? UINT64_C(4294967295) : (uint64_t)a;
    return (uint32_t)(fixed * t >> 32);
}

static void check_windows(t_ctx *t) {
    for (int n = 0; n < 4000; n++) {
        uint32_t layers = 1 + t_below(t, 96), layer = t_below(t, layers), first = t_below(t, layers), dense = t_below(t, 4);
        uint32_t at = t_below(t, n % 3 ? 5000 : 20000000);
        prhs_policy p;
        T_OK(t, prhs_policy_preset("cpe", layers, &p));
        p.dense_layers = dense;
        p.psaw_layer = p.etf_layer = first;
        p.psaw_phi = 0.001f + 0.998f * (float)t_uniform(t);
        p.etf_psi = 0.001f + 0.998f * (float)t_uniform(t);
        p.psaw_alpha = n % 7 ? 3.0f * (float)t_uniform(t) : 0.0f;
        p.etf_gamma = 0.01f + 3.0f * (float)t_uniform(t);
        uint32_t ps = layer < dense ? 0 : window((double)p.psaw_phi, (double)p.psaw_alpha, layers, first, layer, at);
        uint32_t es = window((double)p.etf_psi, (double)p.etf_gamma, layers, first, layer, at);
        uint32_t pg = prhs_psaw_start(&p, layers, layer, at), eg = prhs_etf_frozen(&p, layers, layer, at + 1);
        T_CHECK(t, pg == ps, "PSAW: layer %u of %u from %u, t %u: %u instead of %u", layer, layers, first, at, pg, ps);
        T_CHECK(t, eg == es || layer < dense, "ETF: layer %u of %u from %u, t %u: %u instead of %u", layer, layers, first, at, eg,
                es);
        p.psaw = p.etf = 0;
        T_CHECK(t, prhs_psaw_start(&p, layers, layer, at) == 0 && prhs_etf_frozen(&p, layers, layer, at + 1) == 0,
                "off is not 0");
    }
}

static void check_bounds(t_ctx *t) {
    prhs_policy p;
    T_OK(t, prhs_policy_preset("cpe", 30, &p));
    T_CHECK(t, prhs_psaw_start(&p, 30, 15, 1000) == 0, "PSAW's first layer has no depth yet");
    T_CHECK(t, prhs_psaw_start(&p, 30, 14, 1000) == 0, "layers before PSAW's");
    T_CHECK(t, prhs_psaw_start(&p, 30, 0, 1000) == 0, "dense layers ignore PSAW");
    T_CHECK(t, prhs_psaw_start(&p, 30, 29, 0) == 0, "the first token sees itself");
    T_CHECK(t, prhs_etf_frozen(&p, 30, 29, 0) == 0 && prhs_etf_frozen(&p, 30, 29, 1) == 0, "an empty and a one-token prompt");
    p.psaw_phi = 1e-30f;
    p.psaw_alpha = 100.0f;
    T_CHECK(t, prhs_psaw_start(&p, 30, 29, 4000) == 3999, "the largest factor is below 1: %u", prhs_psaw_start(&p, 30, 29, 4000));
    T_CHECK(t, prhs_psaw_start(&p, 30, 29, 0x7fffffff) == 0x7ffffffe, "64-bit product");
}

static void run(t_ctx *t, int row) {
    if (row < PRESETS)
        check_preset(t, &presets[row]);
    else if (row == PRESETS)
        check_windows(t);
    else
        check_bounds(t);
}

const t_group t_group_policy = { "policy", PRESETS + 2, PRESETS + 2, row_name, run };
