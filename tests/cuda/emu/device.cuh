/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takes the place of cuda/device.cuh where kernels are compiled as C++ for the emulator: the same macros and functions, and what CUDA
 * itself declares as far as the kernels use it.
 */
#ifndef PRHS_DEVICE_CUH
#define PRHS_DEVICE_CUH

#include <math.h>
#include <string.h>

#include <type_traits>

#include "fiber.h"

#define __device__
#define __forceinline__ inline /* no more than that: the compiler is done in half the time */
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
#define __shared__ static thread_local

#define DEV static __device__ __forceinline__
#define DEV_CALL static __device__ __noinline__
#define FULL 0xffffffffu

#define KERNEL(name, type, threads, blocks) EMU_KERNEL(name, type, threads, blocks, 1)
#define TEAM_KERNEL(name, type, threads, blocks) EMU_KERNEL(name, type, threads, blocks, PRHS_TEAM)
#define EMU_KERNEL(name, type, threads, blocks, team)                                                                             \
    static void emu_body_##name(const type &p);                                                                            \
    static void emu_call_##name(const void *p) { emu_body_##name(*(const type *)p); }                                      \
    static emu_kernel emu_entry_##name = { #name, emu_call_##name, sizeof(type), threads, blocks, team, nullptr };         \
    __attribute__((constructor)) static void emu_register_##name() { emu_register(&emu_entry_##name); }                    \
    static void emu_body_##name(const type &p)

#define DYNAMIC_SHARED(name) unsigned char *const name = emu::self()->in->dynamic

/* --- CUDA's types and variables --- */

struct emu_dim {
    unsigned x, y, z;
};
#define threadIdx (emu_dim{ emu::self()->thread, 0, 0 })
#define blockIdx (emu_dim{ emu::self()->in->index, 0, 0 })
#define blockDim (emu_dim{ emu::self()->in->threads, 1, 1 })
#define gridDim (emu_dim{ emu::self()->in->grid, 1, 1 })
#define warpSize 32

#define EMU_VECTORS(type, name)                                                                                             \
    struct alignas(2 * sizeof(type)) name##2 {                                                                              \
        type x, y;                                                                                                          \
    };                                                                                                                      \
    struct name##3 {                                                                                                        \
        type x, y, z;                                                                                                       \
    };                                                                                                                      \
    struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 {                                                      \
        type x, y, z, w;                                                                                                    \
    };                                                                                                                      \
    DEV name##2 make_##name##2(type x, type y) { return { x, y }; }                                                         \
    DEV name##3 make_##name##3(type x, type y, type z) { return { x, y, z }; }                                              \
    DEV name##4 make_##name##4(type x, type y, type z, type w) { return { x, y, z, w }; }
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned, uint)
EMU_VECTORS(float, float)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(long long, longlong)
EMU_VECTORS(unsigned long long, ulonglong)

/* --- numbers --- */

template <class To, class From> DEV To emu_bits(From x)
{
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To r;
    memcpy(&r, &x, sizeof r);
    return r;
}
DEV unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
DEV int __float_as_int(float x) { return emu_bits<int>(x); }
DEV float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
DEV float __int_as_float(int x) { return emu_bits<float>(x); }
DEV long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
DEV double __longlong_as_double(long long x) { return emu_bits<double>(x); }

DEV int __popc(unsigned x) { return __builtin_popcount(x); }
DEV int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
DEV int __ffs(int x) { return __builtin_ffs(x); }
DEV int __ffsll(long long x) { return __builtin_ffsll(x); }
DEV int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
DEV int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
DEV unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1) << (31 - i);
    return r;
}
DEV unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    const unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) { /* bit 3: the byte's sign, repeated */
        const unsigned pick = selector >> 4 * i & 15, byte = (unsigned)(both >> 8 * (pick & 7)) & 255;
        r |= (pick & 8 ? (byte & 128 ? 255u : 0) : byte) << 8 * i;
    }
    return r;
}
DEV int __mul24(int a, int b) { return a * b; }
DEV unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
DEV unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
DEV float rsqrtf(float x) { return 1.0f / sqrtf(x); }
DEV float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
DEV float __fdividef(float a, float b) { return a / b; }
DEV float __fadd_rn(float a, float b) { return a + b; }
DEV float __fmul_rn(float a, float b) { return a * b; }
DEV int __float2int_rn(float x) { return (int)lrintf(x); }
DEV long long __float2ll_rn(float x) { return llrintf(x); }
DEV long long __double2ll_rn(double x) { return llrint(x); }

/* As CUDA's: the operands' common type. */
template <class A, class B> DEV typename std::common_type<A, B>::type min(A a, B b)
{
    typedef typename std::common_type<A, B>::type type;
    if constexpr (std::is_floating_point<type>::value)
        return fmin((type)a, (type)b);
    else
        return (type)b < (type)a ? (type)b : (type)a;
}
template <class A, class B> DEV typename std::common_type<A, B>::type max(A a, B b)
{
    typedef typename std::common_type<A, B>::type type;
    if constexpr (std::is_floating_point<type>::value)
        return fmax((type)a, (type)b);
    else
        return (type)a < (type)b ? (type)b : (type)a;
}

DEV float emu_half_float(unsigned short h)
{
    const unsigned sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
    if (rest >= 0x0f800000u) /* infinity, NaN */
        return __uint_as_float(sign | rest | 0x7f800000u | ((h & 0x3ffu) ? 0x400000u : 0));
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));
}
DEV unsigned short emu_float_half(float x)
{
    const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, u = bits & 0x7fffffffu;
    if (u > 0x7f800000u)
        return 0x7fff; /* what the device makes of every NaN */
    if (u >= 0x477ff000u) /* 65520 and more */
        return (unsigned short)(sign | 0x7c00u);
    if (u < 0x38800000u) /* below 2^-14: the float addition rounds at 2^-24 */
        return (unsigned short)(sign | (__float_as_uint(__uint_as_float(u) + 0.5f) - 0x3f000000u));
    return (unsigned short)(sign | ((u - 0x38000000u + 0xfffu + (u >> 13 & 1)) >> 13));
}

DEV int opaque(int x) { return x; }
DEV float exp_weight(float x) { return expf(x); }
DEV float exp2_weight(float x) { return exp2f(x); }
DEV float half_float(unsigned short x) { return emu_half_float(x); }
DEV unsigned short float_half(float x) { return emu_float_half(x); }
DEV unsigned floats_half2(float x, float y) { return emu_float_half(x) | (unsigned)emu_float_half(y) << 16; }
DEV unsigned short emu_float_bfloat(float x)
{
    const unsigned b = __float_as_uint(x);
    return (unsigned short)((b & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16);
}
DEV unsigned floats_bf162(float x, float y) { return emu_float_bfloat(x) | (unsigned)emu_float_bfloat(y) << 16; }
DEV float2 half2_floats(unsigned x)
{
    return make_float2(emu_half_float((unsigned short)x), emu_half_float((unsigned short)(x >> 16)));
}
DEV float2 bf162_floats(unsigned x) { return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)); }

/* --- memory --- */

template <class T> DEV T __ldg(const T *p) { return *p; }
template <class T> DEV T __ldcg(const T *p) { return *p; }
template <class T> DEV T __ldca(const T *p) { return *p; }
template <class T> DEV T __ldcs(const T *p) { return *p; }
template <class T> DEV T __ldcv(const T *p) { return *(const volatile T *)p; }
template <class T> DEV void __stcg(T *p, T x) { *p = x; }
template <class T> DEV void __stcs(T *p, T x) { *p = x; }

/* Vector accesses fault on a device where they are not aligned. */
template <class T> DEV const T *emu_aligned(const void *p)
{
    if ((uintptr_t)p % sizeof(T))
        emu::fail(emu::self(), "an access of %zu bytes at %p", sizeof(T), p);
    return (const T *)p;
}

DEV void bring_closer(const void *) {}
DEV void bring_near(const void *) {}
DEV uint4 load_stream(const void *p) { return *emu_aligned<uint4>(p); }
DEV uint4 load_stream_or_zero(const void *p, bool real) { return real ? load_stream(p) : make_uint4(0, 0, 0, 0); }
DEV float4 load_shared_result(const float *p) { return *emu_aligned<float4>(p); }

DEV void copy_async_or_zero(void *shared, const void *global, bool real)
{
    emu::copy_later(emu::self(), (void *)emu_aligned<uint4>(shared), real ? emu_aligned<uint4>(global) : nullptr);
}
DEV void copy_async(void *shared, const void *global) { copy_async_or_zero(shared, global, true); }
typedef const unsigned char *shared_at;
DEV shared_at shared_at_of(const void *p) { return (shared_at)p; }
DEV void copy_once_or_zero(void *shared, const void *global, bool real) { copy_async_or_zero(shared, global, real); }
DEV void copy_once(void *shared, const void *global) { copy_async(shared, global); }
template <int TO, int FROM> DEV void copy_once_or_zero(shared_at to, const void *from, bool real)
{
    copy_async_or_zero((void *)(to + TO), (const unsigned char *)from + FROM, real);
}
template <int TO, int FROM> DEV void copy_once(shared_at to, const void *from) { copy_async((void *)(to + TO), (const unsigned char *)from + FROM); }
DEV void copy_commit() { emu::commit_copies(emu::self()); }
template <int N> DEV void copy_wait() { emu::land_copies(emu::self(), N); }

DEV void grid_begin() { emu::self()->began = true; }
template <class T> DEV void grid_begin(const T &) { grid_begin(); }

DEV void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
DEV void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* --- atomics: the old value --- */

#define EMU_ATOMIC(cuda, builtin)                                                                                          \
    template <class T, class U> DEV T cuda(T *p, U x) { return builtin(p, (T)x, __ATOMIC_RELAXED); }
EMU_ATOMIC(atomicAdd, __atomic_fetch_add)
EMU_ATOMIC(atomicSub, __atomic_fetch_sub)
EMU_ATOMIC(atomicOr, __atomic_fetch_or)
EMU_ATOMIC(atomicAnd, __atomic_fetch_and)
EMU_ATOMIC(atomicXor, __atomic_fetch_xor)
EMU_ATOMIC(atomicExch, __atomic_exchange_n)
template <class T, class U, class V> DEV T atomicCAS(T *p, U expected, V x)
{
    T old = (T)expected;
    __atomic_compare_exchange_n(p, &old, (T)x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
}
template <class T, class U> DEV T atomicMax(T *p, U x)
{
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < (T)x && !__atomic_compare_exchange_n(p, &old, (T)x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    return old;
}
template <class T, class U> DEV T atomicMin(T *p, U x)
{
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while ((T)x < old && !__atomic_compare_exchange_n(p, &old, (T)x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    return old;
}

/* --- functions of the block and of the warp. HERE: where the caller stands, for reports --- */

#define EMU_HERE const char *file = __builtin_FILE(), unsigned line = (unsigned)__builtin_LINE()

DEV void __syncthreads(EMU_HERE) { emu::barrier(file, line); }
DEV int __syncthreads_or(int x, EMU_HERE)
{
    __shared__ int any;
    emu::barrier(file, line); /* all have read the last one */
    any = 0;
    emu::barrier(file, line);
    if (x)
        any = 1;
    emu::barrier(file, line);
    return any != 0;
}
DEV void __syncwarp(unsigned mask = FULL, EMU_HERE)
{
    emu::meet(emu::self(), emu::SYNC, mask, file, line, [](emu::warp *, unsigned) {});
}

/* Of a team: see cuda/device.cuh. */
DEV unsigned team_rank() { return emu::self()->in->index % emu::self()->in->kernel->team; }
DEV void team_sync(EMU_HERE) { emu::barrier(file, line, true); }
template <class T> DEV const T *of_member(const T *p, unsigned rank) { return (const T *)emu::shared_of(p, rank); }

void emu_shuffle(emu::fiber *f, unsigned mask, unsigned source, const char *file, unsigned line);
enum emu_reduction { EMU_BALLOT, EMU_MIN, EMU_MAX, EMU_MIN_INT, EMU_MAX_INT, EMU_ADD, EMU_AND, EMU_OR, EMU_XOR };
unsigned emu_reduce(emu_reduction how, unsigned mask, unsigned x, const char *file, unsigned line);

template <class T> DEV T emu_shuffled(unsigned mask, T x, unsigned source, emu::fiber *f, const char *file, unsigned line)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 32 or 64 bits");
    typedef typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type bits;
    f->with->value[f->lane] = emu_bits<bits>(x);
    emu_shuffle(f, mask, source, file, line);
    return emu_bits<T>((bits)f->with->result[f->lane]);
}
template <class T> DEV T __shfl_sync(unsigned mask, T x, int from, int width = 32, EMU_HERE)
{
    emu::fiber *f = emu::self();
    return emu_shuffled(mask, x, (f->lane & ~(unsigned)(width - 1)) | ((unsigned)from & (unsigned)(width - 1)), f, file, line);
}
template <class T> DEV T __shfl_xor_sync(unsigned mask, T x, int with, int width = 32, EMU_HERE)
{
    emu::fiber *f = emu::self();
    const unsigned source = f->lane ^ (unsigned)with, end = (f->lane & ~(unsigned)(width - 1)) + (unsigned)width;
    return emu_shuffled(mask, x, source < end && source < 32 ? source : f->lane, f, file, line);
}
template <class T> DEV T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, EMU_HERE)
{
    emu::fiber *f = emu::self();
    return emu_shuffled(mask, x, (f->lane & (unsigned)(width - 1)) >= by ? f->lane - by : f->lane, f, file, line);
}
template <class T> DEV T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, EMU_HERE)
{
    emu::fiber *f = emu::self();
    return emu_shuffled(mask, x, (f->lane & (unsigned)(width - 1)) + by < (unsigned)width ? f->lane + by : f->lane, f, file, line);
}

DEV unsigned __ballot_sync(unsigned mask, int x, EMU_HERE) { return emu_reduce(EMU_BALLOT, mask, x != 0, file, line); }
DEV int __any_sync(unsigned mask, int x, EMU_HERE) { return emu_reduce(EMU_BALLOT, mask, x != 0, file, line) != 0; }
DEV int __all_sync(unsigned mask, int x, EMU_HERE) { return emu_reduce(EMU_BALLOT, mask, x == 0, file, line) == 0; }
#define EMU_REDUCE(cuda, of_unsigned, of_int)                                                                              \
    DEV unsigned cuda(unsigned mask, unsigned x, EMU_HERE) { return emu_reduce(of_unsigned, mask, x, file, line); }         \
    DEV int cuda(unsigned mask, int x, EMU_HERE) { return (int)emu_reduce(of_int, mask, (unsigned)x, file, line); }
EMU_REDUCE(__reduce_min_sync, EMU_MIN, EMU_MIN_INT)
EMU_REDUCE(__reduce_max_sync, EMU_MAX, EMU_MAX_INT)
EMU_REDUCE(__reduce_add_sync, EMU_ADD, EMU_ADD)
DEV unsigned __reduce_and_sync(unsigned mask, unsigned x, EMU_HERE) { return emu_reduce(EMU_AND, mask, x, file, line); }
DEV unsigned __reduce_or_sync(unsigned mask, unsigned x, EMU_HERE) { return emu_reduce(EMU_OR, mask, x, file, line); }
DEV unsigned __reduce_xor_sync(unsigned mask, unsigned x, EMU_HERE) { return emu_reduce(EMU_XOR, mask, x, file, line); }
unsigned __match_any_sync(unsigned mask, unsigned x, const char *file = __builtin_FILE(), unsigned line = (unsigned)__builtin_LINE());

/* The lanes that run: all that have not left the kernel, for here lanes only part where they call different functions. */
DEV unsigned __activemask() { return emu::self()->with->alive; }

void emu_load_matrices(unsigned r[4], const void *row, bool transposed, const char *file, unsigned line);
void emu_multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1, bool bf16, const char *file, unsigned line);

DEV void load_matrices(unsigned r[4], const void *row, EMU_HERE) { emu_load_matrices(r, row, false, file, line); }
DEV void load_matrices_transposed(unsigned r[4], const void *row, EMU_HERE) { emu_load_matrices(r, row, true, file, line); }
template <int OFFSET> DEV void load_matrices(unsigned r[4], shared_at row, EMU_HERE)
{
    emu_load_matrices(r, row + OFFSET, false, file, line);
}
template <int OFFSET> DEV void load_matrices_transposed(unsigned r[4], shared_at row, EMU_HERE)
{
    emu_load_matrices(r, row + OFFSET, true, file, line);
}
template <bool BF16> DEV void multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1, EMU_HERE)
{
    emu_multiply(c, a, b0, b1, BF16, file, line);
}

#endif
