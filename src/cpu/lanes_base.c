/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loops for what every processor of the build's target has, and the choice among the tables. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <prhs/device.h>

#include "../kargs.h"
#include "lanes.h"

#define W 4
#define LANES prhs_cpu_lanes_base
#define LANES_NAME "base"
#include "lanes_body.h"

uint32_t prhs_cpu_lanes_caps(void) {
    uint32_t caps = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        caps |= PRHS_CAP_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) /* all of these have F16C, which clang cannot ask for */
        caps |= PRHS_CAP_AVX2;
#endif
    return caps;
}

const prhs_cpu_lanes *prhs_cpu_lanes_pick(uint32_t caps) {
#if defined(__x86_64__)
    if (caps & PRHS_CAP_AVX512)
        return &prhs_cpu_lanes_avx512;
    if (caps & PRHS_CAP_AVX2)
        return &prhs_cpu_lanes_avx2;
#endif
    (void)caps;
    return &prhs_cpu_lanes_base;
}
