/* SPDX-License-Identifier: Apache-2.0 */
/* prhs replay: options, and what runs. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "replay.h"

static const char help[] =
    "usage: prhs replay [options] TRACE\n"
    "Runs policies over recorded queries, keys and values (prhs-llama --record; docs/trace.md): exact dropped mass, output error "
    "against dense\n"
    "attention in double precision, the estimator's error, bytes read, and time a layer step.\n" TOOL_DEVICE_HELP
    "  --policy NAME[,key=value...]  may be repeated (dense, cis, cis-mass); keys as in prhs-llama: k kmin target s refs gate tau "
    "floor eps m\n"
    "                    rb rf g sinks local dense n join residual psaw psaw_layer phi alpha; or a comparator, of which accuracy\n"
    "                    is told: quest (keys: k page dense), h2o (keys: k recent dense; asks for --record-prompts)\n"
    "  --only PART       accuracy or time (both; with --sweep accuracy)\n"
    "  --heads           also a line for every layer, with every head's dropped mass and error\n"
    "  --no-seed         the prompts' last queries do not seed: the first step retrieves everywhere\n"
    "  --page N          tokens a page (16)\n"
    "  --repeat N        timed runs over the trace, of which each step's median counts (5)\n"
    "  --no-graph        CUDA: calls one by one\n"
    "  --coverage N      also: audits drawn with N seeds, each with the confidence bound that follows, beside the exact mean\n"
    "  --audits N        of each seed, on average (2000)\n"
    "  --confidence X    of the bounds (0.95)\n"
    "  --audit-rate X    timed runs audit this share of the steps whose mass is not known (0)\n"
    "  --json FILE       all figures as a document ('-': standard output)\n"
    "  --sweep           every combination of --k, --s, --refs, --eps, --tau and --target on top of each --policy (cis-mass); prints those "
    "that no\n"
    "                    other one beats in both bytes and error\n"
    "  --k, --s, --refs, --eps, --tau, --target LIST   e.g. 128,256,476; a list that is not given is not walked\n"
    "  --target-error X  the least bytes whose mean output error is at most X\n"
    "  --target-delta X  the same for the mean dropped mass; with both, both hold. Exit status 1: nothing meets them\n";

static bool parse_target(const char *option, const char *text, double *value) {
    char *end;
    *value = strtod(text, &end);
    if (end != text && !*end && *value >= 0 && !isinf(*value))
        return true;
    fprintf(stderr, "prhs: %s takes a number of at least 0, not '%s'\n", option, text);
    return false;
}

/* Between 0 and 1; `ends`: or one of them. */
static bool parse_share(const char *option, const char *text, bool ends, double *value) {
    char *end;
    *value = strtod(text, &end);
    if (end != text && !*end && (ends ? *value >= 0 && *value <= 1 : *value > 0 && *value < 1))
        return true;
    fprintf(stderr, "prhs: %s takes a number %s 0 %s 1, not '%s'\n", option, ends ? "from" : "between", ends ? "to" : "and",
            text);
    return false;
}

static bool parse_only(const char *text, replay_options *o) {
    o->parts = strcmp(text, "accuracy") == 0 ? REPLAY_ACCURACY : strcmp(text, "time") == 0 ? REPLAY_TIME : 0;
    if (!o->parts)
        fprintf(stderr, "prhs: --only takes accuracy or time, not '%s'\n", text);
    return o->parts != 0;
}

static bool add_policy(const char *text, replay_options *o) {
    prhs_policy policy;
    comparator rival;
    if (o->policy_count == REPLAY_POLICIES) {
        fprintf(stderr, "prhs: replay takes at most %d policies\n", REPLAY_POLICIES);
        return false;
    }
    o->policies[o->policy_count++] = text;
    return replay_parse(text, TRACE_MAX_LAYERS, &policy, &rival); /* checked again with the model's layers */
}

/* One option; -1: go on, else the exit status. */
static int take(int c, const char *value, replay_options *o) {
    uint64_t n = 0;
    bool good = true;
    int mine = tool_device_option(c, value, &o->device);
    if (mine)
        return mine > 0 ? -1 : TOOL_USAGE;
    switch (c) {
    case 'P': good = add_policy(value, o); break;
    case 'o': good = parse_only(value, o); break;
    case 'H': o->heads = true; break;
    case 'n': o->no_seed = true; break;
    case 'p':
        good = tool_number("--page", value, 1, 256, &n);
        o->page_size = (uint32_t)n;
        break;
    case 'r':
        good = tool_number("--repeat", value, 1, 1000, &n);
        o->repeat = (uint32_t)n;
        break;
    case 'g': o->direct = true; break;
    case 'j': o->json = value; break;
    case 'S': o->sweep = true; break;
    case 'K': good = replay_list_parse("--k", "k", value, &o->lists[REPLAY_K]); break;
    case 'B': good = replay_list_parse("--s", "s", value, &o->lists[REPLAY_S]); break;
    case 'F': good = replay_list_parse("--refs", "refs", value, &o->lists[REPLAY_REFS]); break;
    case 'E': good = replay_list_parse("--eps", "eps", value, &o->lists[REPLAY_EPS]); break;
    case 'T': good = replay_list_parse("--tau", "tau", value, &o->lists[REPLAY_TAU]); break;
    case 'D': good = replay_list_parse("--target", "target", value, &o->lists[REPLAY_TARGET]); break;
    case 'x': good = parse_target("--target-error", value, &o->target_error); break;
    case 'y': good = parse_target("--target-delta", value, &o->target_delta); break;
    case 'V':
        good = tool_number("--coverage", value, 1, 1000000, &n);
        o->coverage = (uint32_t)n;
        break;
    case 'A':
        good = tool_number("--audits", value, 1, 1000000000, &n);
        o->audits = (uint32_t)n;
        break;
    case 'W': good = parse_share("--confidence", value, false, &o->confidence); break;
    case 'R': good = parse_share("--audit-rate", value, true, &o->audit_rate); break;
    case 'h': fputs(help, stdout); return TOOL_OK;
    default: return tool_usage("replay");
    }
    return good ? -1 : TOOL_USAGE;
}

static bool sweep_words(const replay_options *o) {
    bool lists = false;
    for (int i = 0; i < REPLAY_LISTS; i++)
        lists = lists || o->lists[i].count;
    return lists || !isnan(o->target_error) || !isnan(o->target_delta);
}

static const struct option options[] = {
    TOOL_DEVICE_OPTIONS,
    { "policy", 1, 0, 'P' },
    { "only", 1, 0, 'o' },
    { "heads", 0, 0, 'H' },
    { "no-seed", 0, 0, 'n' },
    { "page", 1, 0, 'p' },
    { "no-graph", 0, 0, 'g' },
    { "repeat", 1, 0, 'r' },
    { "json", 1, 0, 'j' },
    { "sweep", 0, 0, 'S' },
    { "k", 1, 0, 'K' },
    { "s", 1, 0, 'B' },
    { "refs", 1, 0, 'F' },
    { "eps", 1, 0, 'E' },
    { "tau", 1, 0, 'T' },
    { "target", 1, 0, 'D' },
    { "target-error", 1, 0, 'x' },
    { "target-delta", 1, 0, 'y' },
    { "coverage", 1, 0, 'V' },
    { "audits", 1, 0, 'A' },
    { "confidence", 1, 0, 'W' },
    { "audit-rate", 1, 0, 'R' },
    { "help", 0, 0, 'h' },
    { 0, 0, 0, 0 },
};

static int parse(int argc, char **argv, replay_options *o) {
    static const char *const defaults[] = { "dense", "cis", "cis-mass" };
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        int status = take(c, optarg, o);
        if (status >= 0)
            return status;
    }
    if (optind + 1 != argc) {
        fprintf(stderr, "prhs: replay takes one trace (prhs-llama --record writes them)\n");
        return tool_usage("replay");
    }
    if (!o->sweep && sweep_words(o)) {
        fprintf(stderr, "prhs: lists and targets are for --sweep\n");
        return tool_usage("replay");
    }
    if (o->sweep && o->parts == REPLAY_TIME) {
        fprintf(stderr, "prhs: --sweep weighs accuracy: --only time leaves nothing\n");
        return tool_usage("replay");
    }
    if (o->coverage && (o->sweep || o->parts == REPLAY_TIME)) {
        fprintf(stderr, "prhs: --coverage is for the accuracy of single policies: neither --sweep nor --only time\n");
        return tool_usage("replay");
    }
    o->file = argv[optind];
    if (o->sweep)
        o->parts = REPLAY_ACCURACY;
    else if (!o->parts)
        o->parts = REPLAY_ACCURACY | REPLAY_TIME;
    if (!o->policy_count && o->sweep)
        o->policies[o->policy_count++] = defaults[2];
    for (size_t i = 0; !o->policy_count && i < 3; i++)
        o->policies[i] = defaults[i];
    o->policy_count = o->policy_count ? o->policy_count : 3;
    return -1;
}

static int run_policies(replay *r) {
    const replay_options *o = r->o;
    replay_result *results = replay_alloc(o->policy_count, sizeof *results);
    bool ok = results != NULL;
    if (ok) {
        replay_head_line(r);
        replay_table_head(r);
    }
    for (uint32_t i = 0; ok && i < o->policy_count; i++) {
        ok = replay_policy(r, o->policies[i], o->parts, &results[i]);
        if (ok)
            replay_table_line(r, &results[i]);
    }
    for (uint32_t i = 0; ok && o->coverage && i < o->policy_count; i++)
        replay_coverage_line(r, &results[i]);
    ok = ok && (!o->json || replay_json(r, results, o->policy_count, NULL, NULL));
    for (uint32_t i = 0; results && i < o->policy_count; i++)
        replay_result_free(r, &results[i]);
    free(results);
    return ok ? TOOL_OK : TOOL_FAILED;
}

int tool_replay(int argc, char **argv) {
    replay_options o = { .device = PRHS_DEVICE_PARAMS_INIT,
                         .page_size = 16,
                         .repeat = 5,
                         .target_error = NAN,
                         .target_delta = NAN,
                         .audits = 2000,
                         .confidence = 0.95 };
    replay r = { .o = &o, .info.size = sizeof r.info };
    int status = parse(argc, argv, &o);
    if (status >= 0)
        return status;
    status = tool_open(&o.device, &r.dev);
    if (status != TOOL_OK)
        return status;
    status = TOOL_FAILED;
    if (prhs_device_get_info(r.dev, &r.info) == PRHS_OK && prhs_queue_create(r.dev, &r.queue) == PRHS_OK && replay_load(&r))
        status = o.sweep ? replay_sweep(&r) : run_policies(&r);
    replay_free(&r);
    return prhs_device_close(r.dev) == PRHS_OK ? status : TOOL_FAILED;
}
