/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libprhs makes of an OpenCL driver that fails: every status of the error table that only a driver can provoke, with its
 * sentence; then one life of a session again and again, with another call failing each time: no crash, no object left behind, and
 * the next life is sound. usage: flaky-opencl DRIVER CACHE-DIR. Exit status: 0 good, 1 a check failed, 77 no OpenCL here.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "life.h"

static const struct {
    const char *function;
    cl_int error;
    prhs_status want;
} making[] = {
    { "clCreateContext", CL_OUT_OF_RESOURCES, PRHS_ERR_MEMORY },
    { "clCreateCommandQueue", CL_INVALID_VALUE, PRHS_ERR_DRIVER },
    { "clCreateBuffer", CL_MEM_OBJECT_ALLOCATION_FAILURE, PRHS_ERR_MEMORY },
    { "clBuildProgram", CL_BUILD_PROGRAM_FAILURE, PRHS_ERR_COMPILE },
    { "clBuildProgram", CL_INVALID_OPERATION, PRHS_ERR_DRIVER },
    { "clCreateKernel", CL_INVALID_KERNEL_NAME, PRHS_ERR_DRIVER },
    { "clSetKernelArg", CL_INVALID_ARG_SIZE, PRHS_ERR_DRIVER },
    { "clEnqueueNDRangeKernel", CL_INVALID_OPERATION, PRHS_ERR_DRIVER },
    { "clEnqueueNDRangeKernel", CL_MEM_OBJECT_ALLOCATION_FAILURE, PRHS_ERR_MEMORY }, /* drivers that allocate at the first use */
    { "clEnqueueNDRangeKernel", CL_DEVICE_NOT_AVAILABLE, PRHS_ERR_DRIVER },
    { "clEnqueueFillBuffer", CL_INVALID_VALUE, PRHS_ERR_DRIVER },
    { "clEnqueueWriteBuffer", CL_INVALID_VALUE, PRHS_ERR_DRIVER },
    { "clEnqueueCopyBuffer", CL_INVALID_VALUE, PRHS_ERR_DRIVER },
};

static void test_making(void) {
    for (size_t i = 0; i < sizeof making / sizeof making[0]; i++) {
        life l = { 0 };
        arm(making[i].function, making[i].error, 0, 1);
        prhs_status status = begin(&l);
        disarm();
        const char *words = making[i].want == PRHS_ERR_COMPILE ? "did not build" : making[i].function;
        CHECK(status == making[i].want, "%s: %s instead of %s", making[i].function, prhs_status_name(status),
              prhs_status_name(making[i].want));
        CHECK(sentences == 1 && strstr(sentence, words), "%s: %d sentences", making[i].function, sentences);
        end(&l);
    }
}

/* Loaders and drivers without a device: what opening says, and that the cpu backend is still there. */
static void test_no_device(void) {
    static const struct {
        const char *function;
        cl_int error;
    } ways[] = { { "clGetPlatformIDs", -1001 }, { "clGetDeviceIDs", CL_DEVICE_NOT_FOUND } };
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        prhs_device *dev = NULL;
        prhs_device_info infos[8] = { { .size = sizeof *infos } };
        size_t count = 8;
        arm(ways[i].function, ways[i].error, 0, 1);
        prhs_status status = open_device(&dev);
        CHECK(status == PRHS_ERR_NO_DEVICE && !dev && strstr(sentence, "there is no OpenCL device"), "%s: %s", ways[i].function,
              prhs_status_name(status));
        CHECK(prhs_enumerate(infos, &count, &log_all) == PRHS_OK && count >= 1 && sentences == 1, "%s: enumerate",
              ways[i].function);
        for (size_t d = 0; d < count && d < 8; d++)
            CHECK(infos[d].backend != PRHS_BACKEND_OPENCL, "%s: device %zu", ways[i].function, d);
        disarm();
    }
}

typedef prhs_status call(life *l);

static prhs_status call_step(life *l) { return prhs_session_step(l->session, l->queue, &l->step); }
static prhs_status call_reset(life *l) { return prhs_session_reset(l->session, l->queue, 1); }
static prhs_status call_fork(life *l) { return prhs_session_fork(l->session, l->queue, 1, 0); }
static prhs_status call_write(life *l) { return prhs_queue_write(l->queue, l->step.q.mem, l->data, 64); }
static prhs_status call_read(life *l) { return prhs_queue_read(l->queue, l->data, l->step.q.mem, 64); }
static prhs_status call_finish(life *l) { return prhs_queue_finish(l->queue); }
static prhs_status call_record(life *l) { return prhs_event_record(l->queue, l->event); }
static prhs_status call_query(life *l) { return prhs_event_query(l->event); }
static prhs_status call_poll(life *l) { return prhs_session_poll(l->session, l->queue); }
static prhs_status call_enqueue(life *l) { return prhs_stats_request_enqueue(l->request, l->queue); }
static prhs_status call_get(life *l) {
    prhs_stats stats = { .size = sizeof stats };
    return prhs_stats_request_get(l->request, 0, 0, &stats);
}

static const struct {
    const char *name, *function;
    call *call;
} using[] = {
    { "step", "clEnqueueNDRangeKernel", call_step },
    { "step, arguments", "clSetKernelArg", call_step },
    { "reset", "clEnqueueFillBuffer", call_reset },
    { "fork", "clEnqueueCopyBuffer", call_fork },
    { "write", "clEnqueueWriteBuffer", call_write },
    { "read", "clEnqueueReadBuffer", call_read },
    { "finish", "clFinish", call_finish },
    { "record", "clEnqueueMarkerWithWaitList", call_record },
    { "record, flush", "clFlush", call_record },
    { "query", "clGetEventInfo", call_query },
    { "poll, the last look", "clGetEventInfo", call_poll },
    { "poll, a new look", "clEnqueueReadBuffer", call_poll },
    { "statistics", "clGetEventInfo", call_get },
    { "statistics, a new copy", "clEnqueueReadBuffer", call_enqueue },
};

/* On a session that works: the call fails as documented, and goes well the next time. */
static void test_using(void) {
    life l = { 0 };
    prhs_status status = begin(&l);
    CHECK(status == PRHS_OK, "begin: %s", prhs_status_name(status));
    for (size_t i = 0; status == PRHS_OK && i < sizeof using / sizeof using[0]; i++) {
        status = step(&l, ROWS);
        if (status == PRHS_OK)
            status = prhs_event_record(l.queue, l.event);
        if (status == PRHS_OK && prhs_stats_request_enqueue(l.request, l.queue) != PRHS_OK)
            status = PRHS_ERR_STATE;
        prhs_session_poll(l.session, l.queue);
        CHECK(status == PRHS_OK && prhs_queue_finish(l.queue) == PRHS_OK, "before %s", using[i].name);
        arm(using[i].function, CL_INVALID_OPERATION, 0, 0);
        prhs_status got = using[i].call(&l);
        disarm();
        CHECK(*driver.hits == 1 && got == PRHS_ERR_DRIVER, "%s: %s, %d failed calls", using[i].name, prhs_status_name(got),
              *driver.hits);
        CHECK(sentences == 1 && (strstr(sentence, using[i].function) || strstr(sentence, "device")), "%s: %d sentences", using[i].name,
              sentences);
        got = using[i].call(&l);
        CHECK(got == PRHS_OK || got == PRHS_NOT_READY, "%s, the second time: %s", using[i].name, prhs_status_name(got));
        CHECK(prhs_queue_finish(l.queue) == PRHS_OK, "after %s", using[i].name);
    }
    end(&l);
}

/* A life whose call number n (from 0) fails, or all from there on; whether there was such a call. `refused`: lives that did not survive it. */
static int live_with(int n, int lost, int *refused) {
    life l = { 0 };
    arm(NULL, lost ? CL_DEVICE_NOT_AVAILABLE : CL_OUT_OF_RESOURCES, n, lost);
    *driver.calls = *driver.source = 0;
    prhs_status status = begin(&l);
    if (status == PRHS_OK)
        status = use(&l);
    int hit = *driver.hits;
    disarm();
    CHECK(status == PRHS_OK || hit, "call %d: %s without a failure", n, prhs_status_name(status));
    CHECK(status == PRHS_OK || sentences > 0, "call %d: %s without a sentence", n, prhs_status_name(status));
    *refused += status != PRHS_OK;
    end(&l);
    return hit;
}

/* The smallest file of the cache; `erase`: there is none left afterwards. */
static void smallest(char path[1024], int erase) {
    DIR *d = opendir(cache_dir);
    off_t least = 0;
    path[0] = '\0';
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        struct stat st;
        if (!strstr(e->d_name, ".cl") || fstatat(dirfd(d), e->d_name, &st, 0) != 0)
            continue;
        if (erase)
            unlinkat(dirfd(d), e->d_name, 0);
        if (!path[0] || st.st_size < least) {
            least = st.st_size;
            snprintf(path, 1024, "%s/%s", cache_dir, e->d_name);
        }
    }
    if (d)
        closedir(d);
}

/* The same with one program that has to be compiled and tested: every call that this adds. */
static void test_every_cold_call(void) {
    char path[1024];
    int refused = 0;
    smallest(path, 0);
    live_with(1000000, 0, &refused);
    const int warm = *driver.calls;
    CHECK(unlink(path) == 0, "%s cannot be removed", path);
    live_with(1000000, 0, &refused);
    const int first = *driver.source - 1, more = *driver.calls - warm;
    CHECK(first > 0 && refused == 0, "nothing was compiled");
    for (int n = first; n < first + more + 5 && !failures; n++) {
        unlink(path);
        CHECK(live_with(n, 0, &refused), "there is no call %d", n);
    }
    printf("%d calls more to compile a program and test it, %d of them fatal\n", more, refused);
    CHECK(more > 40 && refused > 20, "the program was not tested");
}

/* The Nth call of a life fails, for every N. */
static void test_every_call(void) {
    int n = 0, refused = 0;
    while (live_with(n, 0, &refused))
        n++;
    for (int lost = 0; lost < n; lost += 5) {
        int fatal = 0;
        live_with(lost, 1, &fatal);
        CHECK(fatal, "a device that is lost at call %d", lost);
    }
    printf("%d driver calls a life, %d of them fatal to it\n", n, refused);
    CHECK(n > 100 && refused > 80, "the test's life is too short");
}

int main(int argc, char **argv) {
    if (argc != 3 || !load(argv[1])) {
        printf("no libOpenCL.so.1, or no flaky driver\n");
        return 77;
    }
    char path[1024];
    cache_dir = argv[2];
    smallest(path, 1); /* programs that no life needs */
    life l = { 0 };
    prhs_status status = begin(&l); /* also warms the program cache */
    if (status == PRHS_OK)
        status = use(&l);
    end(&l);
    if (status == PRHS_ERR_NO_DEVICE)
        return 77;
    arm("clFinish", CL_INVALID_OPERATION, 1000000, 0);
    l = (life){ 0 };
    CHECK(status == PRHS_OK && begin(&l) == PRHS_OK && *driver.after < 1000000, "the flaky driver is not in use");
    disarm();
    end(&l);
    if (!failures)
        test_making();
    if (!failures)
        test_using();
    if (!failures)
        test_no_device();
    if (!failures)
        test_every_cold_call();
    if (!failures)
        test_every_call();
    printf("%d checks failed\n", failures);
    return failures ? 1 : 0;
}
