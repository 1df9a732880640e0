/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads of a block as fibers of one host thread. A fiber runs until it has to wait for others: at a barrier of the block or at a
 * function of its warp, which the lane that comes last computes for all. Inside device.cuh only.
 */
#ifndef PRHS_EMU_FIBER_H
#define PRHS_EMU_FIBER_H

#include <cstddef>
#include <cstdint>

#include "emu.h"

namespace emu {

constexpr unsigned stack_bits = 18; /* stacks are 256 KiB apart, so that an address tells its fiber */
constexpr unsigned max_threads = 1024;

enum kind : unsigned char { RUNS, BARRIER, SYNC, SHUFFLE, BALLOT, REDUCE, MATRICES, MULTIPLY, GONE };

struct block;
struct warp;

/* A thread's asynchronous copies that it has not waited for: as late as they may come, so that a wait that lacks is seen. */
struct late_copy {
    void *to;
    unsigned char data[16];
};
constexpr unsigned max_copies = 1024, max_groups = 64;
struct late_copies {
    unsigned count, groups;
    unsigned ends[max_groups]; /* of the groups that were committed */
    late_copy copy[max_copies];
};

struct alignas(64) fiber {
    void *stack_pointer;
    block *in;
    warp *with;
    unsigned thread, lane;
    const char *file; /* where it waits */
    unsigned line, mask;
    kind why;
    bool began; /* grid_begin() was called */
    late_copies late;
};

/* lanes are numbered through ^ flip in `runnable`, so that warps run their lanes in different orders */
struct warp {
    unsigned runnable, alive, arrived, flip, first;
    uint64_t call[32]; /* what a waiting lane called, with which mask */
    uint64_t value[32], result[32];
    unsigned char source[32];
    const void *pointer[32];
    void *output[32];
};

/* Blocks that run at once, a host thread each. */
struct team;

struct block {
    const emu_kernel *kernel;
    const void *params;
    unsigned index, grid, threads;
    unsigned warps, ready, rotation; /* ready: warps with a runnable lane, but the running one */
    unsigned alive, at_barrier;
    const char *barrier_file;
    unsigned barrier_line;
    unsigned char *dynamic, *fixed; /* dynamic shared memory, and the host thread's copy of __shared__ variables */
    size_t fixed_size;
    team *with;
    fiber *fibers;
    warp *warp_list;
    void *home; /* the host thread's stack pointer */
    bool overlaps, failed;
};

extern char *stacks;
extern fiber *all_fibers;

static inline fiber *self()
{
    const char *here;
#if defined(__x86_64__)
    __asm__("movq %%rsp, %0" : "=r"(here));
#else
    here = (const char *)__builtin_frame_address(0);
#endif
    return &all_fibers[(size_t)(here - stacks) >> stack_bits];
}

void copy_later(fiber *f, void *to, const void *from); /* 16 bytes; from null: zeros */
void commit_copies(fiber *f);
void land_copies(fiber *f, unsigned pending); /* all groups but the last `pending` */
void wait(fiber *f);                     /* runs others until somebody has made this fiber runnable */
void barrier(const char *file, unsigned line, bool of_team = false);
const void *shared_of(const void *p, unsigned rank); /* what lies at p in this block's shared memory, in that of a member of its team */
[[noreturn]] void fail(fiber *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
void check_call(fiber *f, unsigned need); /* fails unless all of `need` called the same */
unsigned flipped(unsigned mask, unsigned flip);

/* This lane is at a function of its warp. The last lane of the mask runs complete(warp, lanes); all leave after that. */
template <class Complete> static inline void meet(fiber *f, kind why, unsigned mask, const char *file, unsigned line, Complete complete)
{
    warp *w = f->with;
    const unsigned bit = 1u << f->lane;
    f->why = why;
    f->mask = mask;
    f->file = file;
    f->line = line;
    w->call[f->lane] = (uint64_t)(line << 4 | why) << 32 | mask;
    w->arrived |= bit;
    if (!(mask & bit))
        fail(f, "the mask lacks the lane itself");
    if (mask & ~w->alive)
        fail(f, "the mask names lanes that have left the kernel, or were never in it");
    if ((w->arrived & mask) != mask) {
        wait(f);
        return;
    }
    check_call(f, mask);
    complete(w, mask);
    w->arrived &= ~mask;
    w->runnable |= mask == 0xffffffffu ? mask ^ 1u << (f->lane ^ w->flip) : flipped(mask ^ bit, w->flip);
    f->why = RUNS;
}

} // namespace emu

#endif
