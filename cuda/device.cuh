/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels use beyond C++ and CUDA's own warp functions: everything that is written as PTX, and how a kernel is declared. The
 * emulator of the tests has a header of the same name for a host compiler.
 */
#ifndef PRHS_DEVICE_CUH
#define PRHS_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DEV static __device__ __forceinline__
#define DEV_CALL static __device__ __noinline__
#define FULL 0xffffffffu

/* A kernel with one launch struct, its block size and the blocks that shall fit on a multiprocessor. */
#define KERNEL(name, type, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ type p)

#if __CUDA_ARCH__ >= 900
/* The same in teams of PRHS_TEAM neighbours, which the hardware starts together and which see each other's shared memory. */
#define TEAM_KERNEL(name, type, threads, blocks) \
    extern "C" __global__ void __cluster_dims__(PRHS_TEAM, 1, 1) __launch_bounds__(threads, blocks) name(const __grid_constant__ type p)

DEV unsigned team_rank()
{
    unsigned r;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

/* A barrier of all the team's threads; what they wrote before is to be seen by all after it. */
DEV void team_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Where member `rank` of the team has what this block has at p in its shared memory. */
template <class T> DEV const T *of_member(const T *p, unsigned rank)
{
    const T *r;
    asm("mapa.u64 %0, %1, %2;" : "=l"(r) : "l"(p), "r"(rank));
    return r;
}
#endif

/* Dynamic shared memory, 16-byte aligned. */
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

/*
 * Lets the next kernel of the stream take its place as soon as all blocks of this one have theirs, then waits until those before are done
 * and what they wrote is to be seen. A kernel ends only after it has waited, so that the end of the last one stands for all. Does nothing
 * where launches do not overlap.
 */
DEV void grid_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/*
 * The same for a kernel whose arguments are p: every 64 bytes of them are looked at before it waits. The first look at each costs some hundred
 * nanoseconds, one after the other, which pass while the kernels before are still at work.
 */
template <class T> DEV void grid_begin(const T &p)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const unsigned *words = (const unsigned *)&p;
    unsigned all = 0;
#pragma unroll
    for (unsigned i = 0; i < sizeof(T) / 4; i += 16)
        all ^= words[i];
    asm volatile("{\n\t.reg .pred p;\n\tsetp.eq.u32 p, %0, 0x7f4a7c15;\n\t@p nanosleep.u32 0;\n\t}" ::"r"(all)); /* must not be left out */
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* x, of which the compiler knows nothing: what follows from it is computed anew here, rather than kept in registers from far above. */
DEV int opaque(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/*
 * How the L2 cache takes what is read once: it leaves before anything else does. So rows of the cache, far more than fit, do not drive out what
 * the next kernels look at: code, state, lists, scores, parts.
 */
DEV unsigned long long read_once()
{
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* 16 bytes that are read once. */
DEV uint4 load_stream(const void *p)
{
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p), "l"(read_once()));
    return r;
}

/* The same where `real`, zeros otherwise, without a branch. */
DEV uint4 load_stream_or_zero(const void *p, bool real)
{
    uint4 r;
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\tmov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
                 "@p ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %6;\n\t}"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p), "r"((unsigned)real), "l"(read_once()));
    return r;
}

/* 16 bytes that another multiprocessor wrote, past the cache of this one. */
DEV float4 load_shared_result(const float *p)
{
    return __ldcg((const float4 *)p);
}

/* Asks for the line at p to be brought closer; whoever reads it later waits for less. */
DEV void bring_closer(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/* The same, into the multiprocessor's own cache. */
DEV void bring_near(const void *p) { asm volatile("prefetch.global.L1 [%0];" ::"l"(p)); }

/* e^x; x = -inf gives 0, NaN stays. At most 2 + |x| ulp: used where large |x| means a small weight. */
DEV float exp_weight(float x) { return __expf(x); }

/* 2^x; x = -inf gives 0, NaN stays, 0 gives 1; at most 2 ulp, denormal results are 0. */
DEV float exp2_weight(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two packed halves or bfloat16s as floats. */
DEV float2 half2_floats(unsigned x) { return __half22float2(*(const __half2 *)&x); }
DEV float2 bf162_floats(unsigned x) { return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)); }
/* Two floats packed, the first one in the low half. */
DEV unsigned floats_half2(float x, float y)
{
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
    return r;
}
DEV unsigned floats_bf162(float x, float y)
{
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
    return r;
}
DEV float half_float(unsigned short x) { return __half2float(__ushort_as_half(x)); }
DEV unsigned short float_half(float x) { return __half_as_ushort(__float2half_rn(x)); }

/* 16 bytes from global to shared memory, asynchronously; commit, and wait until at most N groups are pending. */
DEV void copy_async(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global));
}
/* The same where `real`, zeros otherwise; `global` must be a valid address all the same. */
DEV void copy_async_or_zero(void *shared, const void *global, bool real)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global),
                 "r"(real ? 16 : 0));
}
/* An address in shared memory, in the one register that it takes. */
typedef unsigned shared_at;
DEV shared_at shared_at_of(const void *p)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(p);
    asm volatile("" : "+r"(at)); /* not computed anew at every use */
    return at;
}
/*
 * As above, of what is read once. `shared` must not be the sum of what is the same in all lanes and what is not: ptxas 13.0 then makes an illegal
 * instruction of it (uniform registers for the address beside those for the policy).
 */
DEV void copy_once(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared_at_of(shared)), "l"(global), "l"(read_once()));
}
DEV void copy_once_or_zero(void *shared, const void *global, bool real)
{
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_at_of(shared)), "l"(global), "r"(real ? 16 : 0),
                 "l"(read_once()));
}
/* The same at constant distances from both addresses. */
template <int TO, int FROM> DEV void copy_once_or_zero(shared_at to, const void *from, bool real)
{
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0 + %3], [%1 + %4], 16, %2, %5;" ::"r"(to), "l"(from), "r"(real ? 16 : 0), "n"(TO),
                 "n"(FROM), "l"(read_once()));
}
template <int TO, int FROM> DEV void copy_once(shared_at to, const void *from)
{
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0 + %2], [%1 + %3], 16, %4;" ::"r"(to), "l"(from), "n"(TO), "n"(FROM), "l"(read_once()));
}
DEV void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int N> DEV void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }

/* Four 8x8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix l / 8. */
DEV void load_matrices(unsigned r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}
DEV void load_matrices_transposed(unsigned r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}
template <int OFFSET> DEV void load_matrices(unsigned r[4], shared_at row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row), "n"(OFFSET));
}
template <int OFFSET> DEV void load_matrices_transposed(unsigned r[4], shared_at row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row), "n"(OFFSET));
}

/* c += a b: a 16x16 (row), b 16x8 (column), c 16x8 in float32. BF16: elements are bfloat16, else halves. */
template <bool BF16> DEV void multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1)
{
    if (BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
