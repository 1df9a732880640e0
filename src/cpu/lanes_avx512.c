/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loops for x86-64 with AVX-512 (F, BW, DQ, VL). The pragmas, not compiler options, name the target: one list of
 * options serves the whole folder. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../kargs.h"
#include "lanes.h"

#if defined(__x86_64__)

#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif

#define WIDEN(p) (vi) _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define HALVES(p) (vf) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define W 16
#define LANES prhs_cpu_lanes_avx512
#define LANES_NAME "avx512"
#include "lanes_body.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
