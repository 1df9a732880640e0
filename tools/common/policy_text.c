/* SPDX-License-Identifier: Apache-2.0 */
#include "policy_text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool whole_number(const char *text, uint32_t *out) {
    char *end;
    errno = 0;
    unsigned long x = strtoul(text, &end, 10);
    if (end == text || *end || errno || x > UINT32_MAX || text[0] == '-')
        return false;
    *out = (uint32_t)x;
    return true;
}

/* Names of values that are not numbers. */
static bool parse_word(const char *key, const char *value, prhs_policy *p) {
    static const struct {
        const char *key, *value;
        int number;
    } words[] = {
        { "gate", "none", PRHS_GATE_NONE },         { "gate", "cosine", PRHS_GATE_COSINE },
        { "gate", "mass", PRHS_GATE_MASS },         { "residual", "none", PRHS_RESIDUAL_NONE },
        { "residual", "mean", PRHS_RESIDUAL_MEAN }, { "residual", "retrieved", PRHS_RESIDUAL_RETRIEVED },
        { "join", "sum", PRHS_JOIN_SUM },           { "join", "max", PRHS_JOIN_MAX },
        { "join", "head", PRHS_JOIN_PER_HEAD },
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(key, words[i].key) == 0 && strcmp(value, words[i].value) == 0) {
            if (key[0] == 'g')
                p->gate = (prhs_gate)words[i].number;
            else if (key[0] == 'r')
                p->residual = (prhs_residual)words[i].number;
            else
                p->join = (prhs_join)words[i].number;
            return true;
        }
    return false;
}

static bool parse_number(const char *key, const char *value, prhs_policy *p) {
    const struct {
        const char *key;
        uint32_t *to;
    } integers[] = {
        { "k", &p->k },
        { "kmin", &p->k_min },
        { "sinks", &p->sinks },
        { "local", &p->local },
        { "dense", &p->dense_layers },
        { "n", &p->min_sparse_n },
        { "s", &p->block },
        { "refs", &p->references },
        { "m", &p->dilate_m },
        { "rb", &p->dilate_back },
        { "rf", &p->dilate_ahead },
        { "g", &p->granularity },
        { "psaw", &p->psaw },
        { "psaw_layer", &p->psaw_layer },
        { "etf", &p->etf },
        { "etf_layer", &p->etf_layer },
    };
    const struct {
        const char *key;
        float *to;
    } reals[] = {
        { "tau", &p->tau },          { "floor", &p->tau },   { "eps", &p->eps },         { "phi", &p->psaw_phi },
        { "target", &p->target },    { "alpha", &p->psaw_alpha }, { "psi", &p->etf_psi }, { "gamma", &p->etf_gamma },
    };
    for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++)
        if (strcmp(key, integers[i].key) == 0)
            return whole_number(value, integers[i].to);
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++)
        if (strcmp(key, reals[i].key) == 0) {
            char *end;
            *reals[i].to = strtof(value, &end);
            return end != value && !*end;
        }
    return false;
}

/* `layers` numbers between dots. NULL: it is not that. */
static uint32_t *parse_map(char *value, uint32_t layers) {
    uint32_t *map = malloc(sizeof *map * layers), n = 0;
    char *save = NULL;
    bool ok = map != NULL;
    for (char *item = strtok_r(value, ".", &save); ok && item; item = strtok_r(NULL, ".", &save))
        ok = n < layers && whole_number(item, &map[n++]);
    if (ok && n == layers)
        return map;
    free(map);
    return NULL;
}

/* One key=value; *map: as policy_parse's. */
static bool parse_item(char *item, uint32_t layers, prhs_policy *policy, uint32_t **map) {
    char *equals = strchr(item, '=');
    if (!equals)
        return false;
    *equals++ = 0;
    if (strcmp(item, "map") != 0)
        return parse_word(item, equals, policy) || parse_number(item, equals, policy);
    return map && !*map && (*map = parse_map(equals, layers)) != NULL;
}

bool policy_parse(const char *program, const char *text, uint32_t layers, prhs_policy *policy, uint32_t **list_layers) {
    char copy[2048], *save = NULL;
    const char *why;
    uint32_t *map = NULL;
    if (list_layers)
        *list_layers = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    char *name = strtok_r(copy, ",", &save);
    if (!name || prhs_policy_preset(name, layers, policy) != PRHS_OK) {
        fprintf(stderr, "%s: there is no policy '%s'; there are:", program, name ? name : "");
        for (size_t i = 0; prhs_policy_name(i, NULL); i++)
            fprintf(stderr, " %s", prhs_policy_name(i, NULL));
        fputc('\n', stderr);
        return false;
    }
    for (char *item; (item = strtok_r(NULL, ",", &save));)
        if (!parse_item(item, layers, policy, list_layers ? &map : NULL)) {
            fprintf(stderr, "%s: '%s' in --policy %s is not understood (see --help)\n", program, item, text);
            free(map);
            return false;
        }
    if (prhs_policy_check(policy, layers, &why) != PRHS_OK) {
        fprintf(stderr, "%s: --policy %s: %s\n", program, text, why);
        free(map);
        return false;
    }
    if (list_layers)
        *list_layers = map;
    return true;
}
