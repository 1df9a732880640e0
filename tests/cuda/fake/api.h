/* SPDX-License-Identifier: Apache-2.0 */
/* How the driver's functions are written: CALL() takes the lock and counts, DONE(result) gives it back. */
#ifndef PRHS_FAKE_CUDA_API_H
#define PRHS_FAKE_CUDA_API_H

#include "fake.h"

#define PRHS_PUBLIC __attribute__((visibility("default")))

/* A function whose parameters differ from the loader's table does not compile. */
#define X(name, symbol, params) PRHS_PUBLIC result symbol params;
PRHS_DRV_FUNCTIONS(X)
PRHS_DRV_OPTIONAL(X)
#undef X

#define DONE(error)                        \
    do {                                   \
        const result done_error = (error); \
        fake_unlock();                     \
        return done_error;                 \
    } while (0)
#define CALL()                                           \
    do {                                                 \
        fake_lock();                                     \
        const result call_error = fake_call(__func__);   \
        if (call_error)                                  \
            DONE(call_error);                            \
    } while (0)

/* For calls that need a context, and a stream. */
#define CURRENT()                                               \
    do {                                                        \
        if (!fake_current()) {                                  \
            fake_complain("%s without a context", __func__);    \
            DONE(PRHS_DRV_INVALID_CONTEXT);                     \
        }                                                       \
    } while (0)
#define STREAM_OF(stream)                                       \
    do {                                                        \
        CURRENT();                                              \
        if (stream && !fake_known(stream, STREAM)) {            \
            fake_complain("%s: no such stream", __func__);      \
            DONE(PRHS_DRV_INVALID_HANDLE);                      \
        }                                                       \
    } while (0)

#endif
