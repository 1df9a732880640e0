/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file log.h
 * Tier 0: where the library's sentences go. The library itself never prints.
 */
#ifndef PRHS_LOG_H
#define PRHS_LOG_H

#include <prhs/common.h>

PRHS_EXTERN_C_BEGIN

typedef enum prhs_log_level {
    PRHS_LOG_ERROR = 0,  /**< a call failed; one sentence, the reason of its status */
    PRHS_LOG_WARN = 1,   /**< it works, but not as it could (a damaged program cache, a slower path) */
    PRHS_LOG_INFO = 2,   /**< once-in-a-while facts (a device was opened, a kernel was compiled) */
    PRHS_LOG_DEBUG = 3   /**< for debugging the library itself */
} prhs_log_level;

/**
 * A log object: the caller fills it, the library copies it at prhs_device_open(). NULL for a log means silence.
 * Thread-safety: `message` may be called from any thread that calls the library with this log, and must not call back.
 */
typedef struct prhs_log {
    prhs_log_level level;  /**< messages above this level are not made */
    void *user;            /**< handed back to `message` */
    /** One sentence without a line end; valid during the call only. */
    void (*message)(void *user, prhs_log_level level, const char *text);
} prhs_log;

PRHS_EXTERN_C_END

#endif
