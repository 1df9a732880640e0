/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libprhs makes of a compiler that gets kernels wrong: the flaky driver puts a few lines before every source, which break
 * some of them. The self-test must find each, the flavour below takes its place, results stay right, and the next start knows it.
 * Then a cache that nothing can be saved in, and eight processes that start at once with an empty one. usage: flaky-selftest
 * DRIVER CACHE-DIR [start]. Exit status: 0 good, 1 a check failed, 77 no OpenCL here.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "life.h"

static float sound[HEADS * DIM]; /* the output of a life on a driver that works */

static int for_files(const char *suffix, void (*what)(const char *path)) {
    char path[1024];
    int n = 0;
    DIR *d = opendir(cache_dir);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (!strstr(e->d_name, suffix) || e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", cache_dir, e->d_name);
        n++;
        if (what)
            what(path);
    }
    if (d)
        closedir(d);
    return n;
}

static void erase(const char *path) { unlink(path); }
static void flip(const char *path) {
    FILE *f = fopen(path, "rb+");
    fseek(f, -1, SEEK_END);
    const int c = fgetc(f);
    fseek(f, -1, SEEK_END);
    fputc(c ^ 1, f);
    fclose(f);
}

/* A whole life under a broken compiler; its first status that is not OK. */
static prhs_status live(const char *prefix, life *l) {
    arm(NULL, CL_SUCCESS, -1, 0);
    *driver.prefix = prefix;
    *driver.source = 0;
    *l = (life){ 0 };
    prhs_status status = begin(l);
    return status == PRHS_OK ? use(l) : status;
}

static void check_output(const life *l, const char *when) {
    for (int i = 0; i < HEADS * DIM; i++)
        CHECK(fabsf(l->data[i] - sound[i]) < 1e-5f, "%s: output %d is %g instead of %g", when, i, (double)l->data[i],
              (double)sound[i]);
}

static const prhs_ops_params tier = {
    sizeof(prhs_ops_params), { HEADS, HEADS, DIM, 0.0f }, 1, ROWS, 1, TOKENS, 1, 8, 0, PRHS_F32, PRHS_F32, PRHS_F32
};

/* How an op is served, as prhs info shows it. */
static prhs_op_path path_of(prhs_device *dev, const char *op) {
    prhs_op_path paths[32];
    size_t n = 32;
    if (prhs_ops_get_paths(dev, &tier, paths, &n) == PRHS_OK)
        for (size_t i = 0; i < n; i++)
            if (strcmp(paths[i].op, op) == 0)
                return paths[i];
    return (prhs_op_path){ op, NULL, "?" };
}

#define WIDE_ATTEND "#if defined PRHS_ONLY_attend && PRHS_WIDE\n#define exp exp2\n#endif\n"
#define ANY_ATTEND "#if defined PRHS_ONLY_attend\n#define exp exp2\n#endif\n"
#define ALL_WIDE "#if PRHS_WIDE\n#define get_global_id(d) (get_global_id(d) + 1)\n#endif\n"
#define FOUND "the wide attend kernel is wrong on this device and driver"
#define REPLACED "attend: the wide kernel failed its self-test on this device and driver, the generic one takes its place"

static void test_replaced(void) {
    static const char *const again[] = { "found", "remembered", "remembered wrongly" };
    life l;
    for (int i = 0; i < 3; i++) {
        if (i == 2)
            CHECK(for_files(".clbad", flip) == 1, "one verdict");
        const prhs_status status = live(WIDE_ATTEND, &l);
        CHECK(status == PRHS_OK && sentences == 0, "%s: %s", again[i], prhs_status_name(status));
        CHECK(!strstr(warned, FOUND) == (i == 1) && !!strstr(warned, REPLACED), "%s: %s", again[i], warned);
        CHECK(!*driver.source == (i == 1), "%s: compiled", again[i]);
        check_output(&l, again[i]);
        const prhs_op_path path = path_of(l.dev, "attend"), other = path_of(l.dev, "merge");
        CHECK(path.path && !strcmp(path.path, "generic") && strstr(path.why, "the wide kernel failed its self-test"), "%s: %s",
              again[i], path.why);
        CHECK(other.path && !strcmp(other.path, "wide"), "%s: merge is %s", again[i], other.why);
        prhs_counters counters = { .size = sizeof counters };
        CHECK(prhs_device_get_counters(l.dev, &counters) == PRHS_OK && counters.generic > 0 &&
                  counters.generic < counters.launches / 2,
              "%s: %u generic launches", again[i], (unsigned)counters.generic);
        end(&l);
    }
    CHECK(for_files(".clbad", erase) == 1 && live(NULL, &l) == PRHS_OK && warnings == 0, "a driver that works: %s", warned);
    CHECK(!memcmp(l.data, sound, sizeof sound), "a driver that works computes something else");
    end(&l);
    /* What has passed is not tested again; that takes another driver, which is another key. */
    CHECK(live(WIDE_ATTEND, &l) == PRHS_OK && warnings == 0 && !*driver.source, "the cached program: %s", warned);
    end(&l);
    for_files(".cl", erase);
}

static void test_nothing_left(void) {
    life l;
    prhs_status status = live(ANY_ATTEND, &l);
    CHECK(status == PRHS_ERR_UNSUPPORTED && sentences == 1 && strstr(sentence, "the generic attend kernel is wrong"), "%s",
          prhs_status_name(status));
    const prhs_op_path path = path_of(l.dev, "attend");
    CHECK(!path.path && strstr(path.why, "the generic kernel failed its self-test"), "%s", path.why);
    end(&l);
    status = live(ANY_ATTEND, &l);
    CHECK(status == PRHS_ERR_UNSUPPORTED && sentences == 1 && strstr(sentence, "failed its self-test"), "%s",
          prhs_status_name(status));
    end(&l);
    setenv("PRHS_SELFTEST", "0", 1);
    status = live(ANY_ATTEND, &l);
    unsetenv("PRHS_SELFTEST");
    CHECK(status == PRHS_OK && warnings == 0, "without a self-test: %s, %s", prhs_status_name(status), warned);
    end(&l);
    for_files(".cl", erase);
}

/* A kernel of each op that leaves its first item out. */
static void test_every_op(void) {
    static const char *const ops[] = { "append", "range_sum", "truncate", "plan",    "score",   "aim",   "select", "moments",
                                       "attend", "finish",    "audit",    "prefill", "combine", "merge", "gate" };
    life l;
    prhs_ops *tier_ops = NULL;
    prhs_status status = live(ALL_WIDE, &l);
    if (status == PRHS_OK)
        status = prhs_ops_create(l.dev, &tier, &tier_ops);
    CHECK(status == PRHS_OK && sentences == 0, "%s", prhs_status_name(status));
    check_output(&l, "all kernels wrong");
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        char words[64];
        snprintf(words, sizeof words, "the wide %s kernel is wrong", ops[i]);
        CHECK(strstr(warned, words), "%s passed", ops[i]);
    }
    prhs_ops_destroy(tier_ops);
    end(&l);
    for_files(".cl", erase);
}

/* Kernels whose registers are for few work-items only: the generic flavour takes smaller groups, and computes the same bits. */
static void test_small_groups(void) {
    static const size_t most[] = { 256, 32, 24, 1 }, want[] = { 64, 32, 16, 1 };
    float full[HEADS * DIM];
    life l;
    caps_mask = 6;
    for (int i = 0; i < 4; i++) {
        *driver.group = most[i];
        *driver.largest = 0;
        const prhs_status status = live(NULL, &l);
        CHECK(status == PRHS_OK && warnings == 0, "groups of at most %zu: %s", most[i], prhs_status_name(status));
        CHECK(*driver.largest == want[i], "groups of %zu instead of %zu", *driver.largest, want[i]);
        if (i == 0)
            memcpy(full, l.data, sizeof full);
        CHECK(!memcmp(full, l.data, sizeof full), "groups of at most %zu compute something else", most[i]);
        end(&l);
    }
    *driver.group = 0;
    caps_mask = PRHS_CAPS_ALL;
    for_files(".cl", erase);
}

static void test_unsaved(void) {
    const char *dir = cache_dir;
    life l;
    cache_dir = "/proc/no/such/folder";
    const prhs_status status = live(NULL, &l);
    CHECK(status == PRHS_OK && warnings == 1 && strstr(warned, "cannot be saved in /proc/no/such/folder"), "%s: %s",
          prhs_status_name(status), warned);
    end(&l);
    cache_dir = dir;
}

static double sum_of(const float *x) {
    double sum = 0.0;
    for (int i = 0; i < HEADS * DIM; i++)
        sum += (double)x[i] * (i + 1);
    return sum;
}

static int start(void) {
    life l;
    const prhs_status status = live(NULL, &l);
    end(&l);
    printf("start %d %d %d %.17g\n", (int)status, warnings, failures, sum_of(l.data));
    return status != PRHS_OK || failures;
}

static void test_eight(const char *program, const char *name) {
    char command[2048];
    FILE *pipes[8];
    snprintf(command, sizeof command, "'%s' '%s' '%s' start", program, name, cache_dir);
    for (int i = 0; i < 8; i++)
        pipes[i] = popen(command, "r");
    for (int i = 0; i < 8; i++) {
        int status = -1, warns = -1, bad = -1;
        double sum = 0.0;
        CHECK(pipes[i] && fscanf(pipes[i], "start %d %d %d %lf", &status, &warns, &bad, &sum) == 4, "process %d says nothing", i);
        CHECK(status == PRHS_OK && warns == 0 && bad == 0 && sum == sum_of(sound),
              "process %d: %s, %d warnings, sum %.17g instead of %.17g", i, prhs_status_name((prhs_status)status), warns, sum,
              sum_of(sound));
        CHECK(pipes[i] && pclose(pipes[i]) == 0, "process %d", i);
    }
    life l;
    CHECK(for_files("tmp-", NULL) == 0 && live(NULL, &l) == PRHS_OK && warnings == 0 && !*driver.source, "afterwards: %s",
          warned);
    end(&l);
    for_files(".cl", erase);
}

int main(int argc, char **argv) {
    if (argc < 3 || !load(argv[1])) {
        printf("no libOpenCL.so.1, or no flaky driver\n");
        return 77;
    }
    cache_dir = argv[2];
    if (argc > 3)
        return start();
    for_files("", erase);
    life l;
    const prhs_status status = live(NULL, &l);
    memcpy(sound, l.data, sizeof sound);
    const prhs_op_path path = l.dev ? path_of(l.dev, "attend") : (prhs_op_path){ 0 };
    end(&l);
    if (status == PRHS_ERR_NO_DEVICE)
        return 77;
    CHECK(status == PRHS_OK && path.path && !strcmp(path.path, "wide"), "a driver that works: %s", prhs_status_name(status));
    for_files(".cl", erase);
    if (!failures)
        test_replaced();
    if (!failures)
        test_nothing_left();
    if (!failures)
        test_every_op();
    if (!failures)
        test_small_groups();
    if (!failures)
        test_unsaved();
    if (!failures)
        test_eight(argv[0], argv[1]);
    printf("%d checks failed\n", failures);
    return failures ? 1 : 0;
}
