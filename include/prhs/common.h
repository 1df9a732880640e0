/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file common.h
 * Tier 0: status codes, data types, visibility. Every other header includes this one.
 */
#ifndef PRHS_COMMON_H
#define PRHS_COMMON_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define PRHS_EXTERN_C_BEGIN extern "C" {
#define PRHS_EXTERN_C_END }
#else
#define PRHS_EXTERN_C_BEGIN
#define PRHS_EXTERN_C_END
#endif

#if defined(__GNUC__)
#define PRHS_API __attribute__((visibility("default")))
#else
#define PRHS_API
#endif

PRHS_EXTERN_C_BEGIN

/** What a call returns. Every failure also sends one sentence through the log object of the call's device. */
typedef enum prhs_status {
    PRHS_OK = 0,                /**< done, or enqueued where the call is asynchronous */
    PRHS_ERR_ARGUMENT = -1,     /**< an argument is NULL, out of its range, or contradicts another one */
    PRHS_ERR_UNSUPPORTED = -2,  /**< legal, but this device or build cannot do it */
    PRHS_ERR_NO_DEVICE = -3,    /**< no such backend or device on this machine */
    PRHS_ERR_MEMORY = -4,       /**< host or device memory ran out, or a caller's buffer is too small */
    PRHS_ERR_DRIVER = -5,       /**< the driver refused a call; the sentence carries its name and code */
    PRHS_ERR_COMPILE = -6,      /**< a kernel did not build; the sentence carries the compiler's words */
    PRHS_ERR_STATE = -7,        /**< the call does not fit what came before it (see its documentation) */
    PRHS_ERR_DATA = -8,         /**< device data was found bad: a page id, slot or length out of range */
    PRHS_NOT_READY = 1          /**< not a failure: asynchronous data has not arrived yet, ask again */
} prhs_status;

/** The name of a status ("PRHS_ERR_MEMORY"), a static string; "PRHS_?" for a value that is none. Thread-safe. */
PRHS_API const char *prhs_status_name(prhs_status status);

/** Element types of K, V, queries and outputs. */
typedef enum prhs_dtype {
    PRHS_F32 = 0,  /**< IEEE binary32 */
    PRHS_F16 = 1,  /**< IEEE binary16 */
    PRHS_BF16 = 2  /**< bfloat16: the upper half of a binary32 */
} prhs_dtype;

/** Bytes of one element (4, 2 or 2); 0 for a value that is no dtype. Thread-safe. */
PRHS_API size_t prhs_dtype_size(prhs_dtype dtype);

/** The library's version, as in its package file: major·10000 + minor·100 + patch. Thread-safe. */
PRHS_API uint32_t prhs_version(void);

PRHS_EXTERN_C_END

#endif
