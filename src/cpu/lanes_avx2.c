/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loops for x86-64 with AVX2 and FMA. The pragmas, not compiler options, name the target: one list of options serves
 * the whole folder. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../kargs.h"
#include "lanes.h"

#if defined(__x86_64__)

#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define WIDEN(p) (vi) _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define HALVES(p) (vf) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define W 8
#define LANES prhs_cpu_lanes_avx2
#define LANES_NAME "avx2"
#include "lanes_body.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
