/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests on the flaky driver share: the driver itself, and one life of a session from opening the device to closing it.
 */
#ifndef PRHS_TEST_LIFE_H
#define PRHS_TEST_LIFE_H

#include <stdio.h>

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include <prhs/prhs.h>

enum { HEADS = 2, DIM = 32, TOKENS = 64, PAGE = 16, ROWS = 48 };

/* The switches of driver.c. */
typedef struct flaky {
    int *after, *sticky, *hits, *calls, *source, *live;
    cl_int *error;
    const char **only, **prefix;
    size_t *group, *largest;
} flaky;

extern flaky driver;
extern int failures, sentences, warnings; /* errors and warnings of the library since the last arm() */
extern char sentence[1024], warned[8192]; /* the last error; all warnings, a line each */
extern const char *cache_dir;
extern uint32_t caps_mask;
extern const prhs_log log_all;

#define CHECK(x, ...)                                                                                                            \
    do {                                                                                                                         \
        if (!(x)) {                                                                                                              \
            printf("FAIL line %d: %s: ", __LINE__, #x);                                                                          \
            printf(__VA_ARGS__);                                                                                                 \
            printf(" (last sentence: %s)\n", sentence);                                                                          \
            failures++;                                                                                                          \
        }                                                                                                                        \
    } while (0)

typedef struct life {
    prhs_device *dev;
    prhs_queue *queue;
    prhs_event *event;
    prhs_session *session;
    prhs_stats_request *request;
    prhs_buffer *buffer[12];
    int buffers;
    prhs_session_sizes sizes;
    prhs_step step;
    prhs_seq seq;
    int32_t pages[TOKENS / PAGE];
    float data[ROWS * HEADS * DIM]; /* rows to append; after use(): the last output */
} life;

#define TRY(call)                                                                                                                \
    do {                                                                                                                         \
        prhs_status status_ = (call);                                                                                            \
        if (status_ != PRHS_OK)                                                                                                  \
            return status_;                                                                                                      \
    } while (0)

prhs_status open_device(prhs_device **dev);
prhs_status begin(life *l);
prhs_status step(life *l, int32_t kv_len);
prhs_status use(life *l);
/* Destroys what there is, and checks that nothing is left behind, on the driver's side either. */
void end(life *l);

/* From now on: `function` (NULL: any) fails with `what` after `calls` calls that go well, once or always. */
void arm(const char *function, cl_int what, int calls, int all);
void disarm(void);
/* Loads the flaky driver in the real one's place. */
int load(const char *path);

#endif
