// SPDX-License-Identifier: Apache-2.0
// The emulator's scheduler. Blocks run one after another in a random order (PRHS_EMU_SEED), on PRHS_EMU_WORKERS host threads.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "fiber.h"

#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emu {

char *stacks;
fiber *all_fibers;

struct team {
    std::mutex lock;
    std::condition_variable moved;
    unsigned size, here, left, round; // blocks, those at the barrier, those that have ended, barriers passed
    unsigned line;                    // of the barrier
    block *members[8];
};

namespace {

constexpr size_t stack_size = (size_t)1 << stack_bits, page = 4096;
constexpr unsigned max_workers = 8;
constexpr size_t max_dynamic = 256 * 1024;

emu_kernel *kernels;
std::mutex launching;
uint64_t launches, seed;
unsigned workers;
thread_local int tls_anchor;

struct worker {
    fiber *fibers;
    warp warps[max_threads / 32];
    unsigned char *dynamic; // its end lies before a page that faults
    block now;
    std::minstd_rand random;
    unsigned blocks;
};
worker all_workers[max_workers];

const char *kind_name(kind k)
{
    static const char *const names[] = { "running", "__syncthreads", "__syncwarp", "a shuffle", "a vote",
                                         "a reduction", "load_matrices", "multiply", "left the kernel" };
    return names[k];
}

// --- switching ---

#if defined(__x86_64__)
// Saves the registers that calls keep on the old stack. A jump instead of ret: lanes leave from the same place, which predicts well.
extern "C" void emu_switch(void **from, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".globl emu_switch\n"
        ".hidden emu_switch\n"
        ".type emu_switch, @function\n"
        "emu_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    popq %rcx\n"
        "    jmpq *%rcx\n"
        ".size emu_switch, .-emu_switch\n");

void *fresh_stack(char *top, void (*entry)())
{
    void **sp = (void **)top; // 16-byte aligned; entry starts as if called: 8 below
    *--sp = nullptr;
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    return sp;
}
#else
ucontext_t contexts[max_workers * (max_threads + 1)];
void emu_switch(void **from, void *to) { swapcontext((ucontext_t *)*from, (ucontext_t *)to); }
#endif

// --- the scheduler, on a fiber's stack ---

fiber *next_fiber(block *b, warp *w)
{
    if (!w->runnable) {
        if (!b->ready)
            return nullptr;
        const unsigned later = b->ready & ~0u << b->rotation, i = (unsigned)__builtin_ctz(later ? later : b->ready);
        b->ready &= ~(1u << i);
        w = &b->warp_list[i];
    }
    const unsigned i = (unsigned)__builtin_ctz(w->runnable);
    w->runnable &= w->runnable - 1;
    return &b->fibers[w->first + (i ^ w->flip)];
}

bool alike(const fiber &a, const fiber &b)
{
    return a.why == b.why && (a.why == RUNS || a.why == GONE || (a.line == b.line && (a.why == BARRIER || a.mask == b.mask)));
}

// Which threads wait where.
void where(FILE *out, const block *b)
{
    for (unsigned first = 0; first < b->threads; first++) {
        const fiber &f = b->fibers[first];
        bool known = false;
        for (unsigned t = 0; t < first && !known; t++)
            known = alike(b->fibers[t], f);
        if (known)
            continue;
        fprintf(out, "  %s", kind_name(f.why));
        if (f.why != RUNS && f.why != GONE)
            fprintf(out, " at %s:%u", f.file, f.line);
        if (f.why > BARRIER && f.why < GONE)
            fprintf(out, ", mask %08x", f.mask);
        fprintf(out, ": threads");
        int spans = 0;
        for (unsigned t = first, end; t < b->threads; t = end) {
            const bool same = alike(b->fibers[t], f);
            for (end = t + 1; end < b->threads && alike(b->fibers[end], f) == same; end++)
                ;
            if (same && ++spans <= 8)
                fprintf(out, end - t > 1 ? " %u-%u" : " %u", t, end - 1);
        }
        fprintf(out, spans > 8 ? " and more\n" : "\n");
    }
}

void go_home(fiber *f)
{
    void *dead;
    (void)dead;
#if defined(__x86_64__)
    emu_switch(&dead, f->in->home);
#else
    setcontext((ucontext_t *)f->in->home);
#endif
    __builtin_unreachable();
}

[[noreturn]] void leave()
{
    fiber *f = self();
    block *b = f->in;
    warp *w = f->with;
    f->why = GONE;
    w->alive &= ~(1u << f->lane);
    b->alive--;
    if (b->overlaps && !f->began)
        fail(f, "a thread leaves the kernel without grid_begin()");
    if (b->at_barrier)
        fail(f, "a thread leaves the kernel while others wait for the block");
    for (unsigned lanes = w->arrived; lanes; lanes &= lanes - 1)
        if ((unsigned)w->call[__builtin_ctz(lanes)] & 1u << f->lane)
            fail(f, "a lane leaves the kernel while others of its warp wait for it");
    fiber *n = next_fiber(b, w);
    if (!n) {
        if (b->alive)
            fail(f, "all threads that are left wait");
        go_home(f);
    }
    void *dead;
    (void)dead;
#if defined(__x86_64__)
    emu_switch(&dead, n->stack_pointer);
#else
    setcontext((ucontext_t *)n->stack_pointer);
#endif
    __builtin_unreachable();
}

void enter()
{
    fiber *f = self();
    f->in->kernel->body(f->in->params);
    leave();
}

// A block is at its team's barrier, for all its threads. False: not all blocks come to it.
bool team_meet(team *t, unsigned line)
{
    std::unique_lock<std::mutex> lock(t->lock);
    const unsigned round = t->round;
    if (t->left || (t->here && t->line != line))
        return false;
    t->line = line;
    if (++t->here == t->size) {
        t->here = 0;
        t->round++;
        t->moved.notify_all();
        return true;
    }
    t->moved.wait(lock, [&] { return t->round != round || t->left; });
    return t->round != round;
}

} // namespace

const void *shared_of(const void *p, unsigned rank)
{
    fiber *f = self();
    const block *mine = f->in, *other = mine->with ? mine->with->members[rank] : mine;
    const unsigned char *at = (const unsigned char *)p;
    if (at >= mine->fixed && at < mine->fixed + mine->fixed_size)
        return other->fixed + (at - mine->fixed);
    if (at < mine->dynamic || at >= mine->dynamic + max_dynamic)
        fail(f, "of_member() of what is not in shared memory");
    return other->dynamic + (at - mine->dynamic);
}

__attribute__((noinline)) void wait(fiber *f)
{
    fiber *n = next_fiber(f->in, f->with);
    if (!n)
        fail(f, "all threads wait, and not for the same");
    if (n != f)
        emu_switch(&f->stack_pointer, n->stack_pointer);
    f->why = RUNS;
}

void fail(fiber *f, const char *format, ...)
{
    block *b = f->in;
    fprintf(stderr, "emulator: kernel %s, block %u of %u, thread %u: ", b->kernel->name, b->index, b->grid, f->thread);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    where(stderr, b);
    b->failed = true;
    go_home(f);
    __builtin_unreachable();
}

void barrier(const char *file, unsigned line, bool of_team)
{
    fiber *f = self();
    block *b = f->in;
    f->why = BARRIER;
    f->file = file;
    f->line = line;
    if (b->alive != b->threads)
        fail(f, "__syncthreads after a thread has left the kernel");
    if (!b->at_barrier) {
        b->barrier_file = file;
        b->barrier_line = line;
    } else if (b->barrier_line != line || (b->barrier_file != file && strcmp(b->barrier_file, file) != 0))
        fail(f, "__syncthreads at two places at once");
    if (++b->at_barrier < b->alive) {
        wait(f);
        return;
    }
    if (of_team && b->with && !team_meet(b->with, line))
        fail(f, "blocks of the team do not all come to this barrier");
    b->at_barrier = 0;
    for (unsigned i = 0; i < b->warps; i++)
        b->warp_list[i].runnable = flipped(b->warp_list[i].alive, b->warp_list[i].flip);
    f->with->runnable &= ~(1u << (f->lane ^ f->with->flip));
    b->ready = (b->warps == 32 ? ~0u : (1u << b->warps) - 1) & ~(1u << f->thread / 32);
    f->why = RUNS;
}

void check_call(fiber *f, unsigned need)
{
    const warp *w = f->with;
    const uint64_t call = w->call[f->lane];
    uint64_t differs = 0;
    if (need == 0xffffffffu)
        for (unsigned i = 0; i < 32; i++)
            differs |= w->call[i] ^ call;
    else
        for (unsigned lanes = need; lanes; lanes &= lanes - 1)
            differs |= w->call[__builtin_ctz(lanes)] ^ call;
    if (differs)
        fail(f, "lanes of a warp wait at different functions");
}

unsigned flipped(unsigned mask, unsigned flip)
{
    unsigned r = 0;
    if (mask == 0xffffffffu)
        return mask;
    for (; mask; mask &= mask - 1)
        r |= 1u << ((unsigned)__builtin_ctz(mask) ^ flip);
    return r;
}

namespace {

// --- workers ---

// What a fault in a kernel says before the process ends.
void on_fault(int signal, siginfo_t *info, void *context)
{
#if defined(__x86_64__)
    const size_t i = (size_t)((char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RSP] - stacks) >> stack_bits;
    if (i < (size_t)max_workers * max_threads && all_fibers[i].in && all_fibers[i].in->kernel) {
        const block *b = all_fibers[i].in;
        fprintf(stderr, "emulator: signal %d, address %p: kernel %s, block %u of %u, thread %u\n", signal, info->si_addr, b->kernel->name,
                b->index, b->grid, all_fibers[i].thread);
        where(stderr, b);
    }
#endif
    struct sigaction normal = {};
    normal.sa_handler = SIG_DFL;
    sigaction(signal, &normal, nullptr);
    raise(signal);
}

void *reserve(size_t size)
{
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("emulator: mmap");
        abort();
    }
    return p;
}

void set_up()
{
    const char *text = getenv("PRHS_EMU_SEED");
    seed = text ? strtoull(text, nullptr, 0) : 1;
    text = getenv("PRHS_EMU_WORKERS");
    workers = text && atoi(text) > 0 ? (unsigned)atoi(text) : 1;
    workers = workers < max_workers ? workers : max_workers;
    const size_t fibers = (size_t)max_workers * max_threads;
    stacks = (char *)(((uintptr_t)reserve((fibers + 1) << stack_bits) + stack_size - 1) & ~(uintptr_t)(stack_size - 1));
    all_fibers = (fiber *)reserve(fibers * sizeof(fiber));
    for (size_t i = 0; i < fibers; i++)
        mprotect(stacks + (i << stack_bits), page, PROT_NONE);
    for (unsigned i = 0; i < max_workers; i++) {
        all_workers[i].fibers = all_fibers + (size_t)i * max_threads;
        unsigned char *d = (unsigned char *)reserve(max_dynamic + page);
        mprotect(d + max_dynamic, page, PROT_NONE);
        all_workers[i].dynamic = d + max_dynamic;
    }
#ifndef EMU_ASAN
    struct sigaction act = {};
    act.sa_sigaction = on_fault;
    act.sa_flags = SA_SIGINFO | SA_ONSTACK;
    static char stack[64 * 1024];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, nullptr);
    const int signals[] = { SIGSEGV, SIGBUS, SIGFPE };
    for (int s : signals)
        sigaction(s, &act, nullptr);
#endif
}

struct span {
    char *begin;
    size_t size;
};

// The calling thread's copy of the module's thread-local variables: __shared__ ones, and tls_anchor.
int find_tls(dl_phdr_info *info, size_t, void *data)
{
    bool mine = false;
    size_t size = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &h = info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + h.p_vaddr;
        mine |= h.p_type == PT_LOAD && (uintptr_t)&find_tls - begin < h.p_memsz;
        if (h.p_type == PT_TLS)
            size = h.p_memsz;
    }
    if (!mine)
        return 0;
    *(span *)data = { (char *)info->dlpi_tls_data, size };
    return 1;
}

span fixed_shared()
{
    tls_anchor = 1;
    __asm__ volatile("" ::"r"(&tls_anchor) : "memory"); // allocated now
    span s = { nullptr, 0 };
    dl_iterate_phdr(find_tls, &s);
    return s;
}

void start_fiber(fiber *f, block *b, unsigned thread)
{
    const size_t i = (size_t)(f - all_fibers);
    char *stack = stacks + (i << stack_bits), *top = stack + stack_size - (thread * 320u & 4032u) - 64;
    f->in = b;
    f->thread = thread;
    f->lane = thread & 31;
    f->with = &b->warp_list[thread >> 5];
    f->why = RUNS;
    f->began = false;
    f->late.count = f->late.groups = 0;
#ifdef EMU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(stack + page, stack_size - page);
#endif
#if defined(__x86_64__)
    f->stack_pointer = fresh_stack(top, enter);
#else
    ucontext_t *c = &contexts[i];
    getcontext(c);
    c->uc_stack.ss_sp = stack + page;
    c->uc_stack.ss_size = (size_t)(top - stack) - page;
    c->uc_link = nullptr;
    makecontext(c, enter, 0);
    f->stack_pointer = c;
#endif
}

bool run_block(worker *me, const emu_kernel *kernel, unsigned index, unsigned grid, unsigned threads, size_t dynamic, const void *params,
               bool overlaps, team *with)
{
    const unsigned r = (unsigned)me->random();
    block *b = &me->now;
    *b = {};
    b->with = with;
    b->kernel = kernel;
    b->params = params;
    b->index = index;
    b->grid = grid;
    b->threads = b->alive = threads;
    b->overlaps = overlaps;
    b->warps = (threads + 31) / 32;
    b->rotation = r % b->warps;
    b->fibers = me->fibers;
    b->warp_list = me->warps;
    b->dynamic = me->dynamic - ((dynamic + 15) & ~(size_t)15);
    const unsigned char poison = r & 64 ? 0xff : 0x5c;
    memset(b->dynamic, poison, (size_t)(me->dynamic - b->dynamic));
    if (with || me->blocks % 16 == 0) {
        const span s = fixed_shared();
        b->fixed = (unsigned char *)s.begin;
        b->fixed_size = s.size;
        if (s.begin && me->blocks % 16 == 0)
            memset(s.begin, poison, s.size);
    }
    me->blocks++;
    for (unsigned i = 0; i < b->warps; i++) {
        warp *w = &me->warps[i];
        const unsigned lanes = threads - 32 * i;
        w->alive = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        w->flip = r >> 8 & 31;
        w->runnable = flipped(w->alive, w->flip);
        w->arrived = 0;
        w->first = 32 * i;
    }
    b->ready = b->warps == 32 ? ~0u : (1u << b->warps) - 1;
    for (unsigned t = 0; t < threads; t++)
        start_fiber(&me->fibers[t], b, t);
    warp nobody = {};
    fiber *first = next_fiber(b, &nobody);
#if defined(__x86_64__)
    emu_switch(&b->home, first->stack_pointer);
#else
    ucontext_t home;
    b->home = &home;
    emu_switch(&b->home, first->stack_pointer);
#endif
    b->kernel = nullptr;
    return !b->failed;
}

// A team's blocks, a host thread each.
bool run_team(const emu_kernel *kernel, unsigned first, unsigned grid, unsigned threads, size_t dynamic, const void *params, bool overlaps)
{
    team t = {};
    std::atomic<bool> good{ true };
    std::vector<std::thread> members;
    t.size = kernel->team;
    for (unsigned i = 0; i < t.size; i++)
        t.members[i] = &all_workers[i].now;
    for (unsigned i = 0; i < t.size; i++)
        members.emplace_back([&, i] {
            all_workers[i].blocks = 0; // a new thread has its own shared memory
            if (!run_block(&all_workers[i], kernel, first + i, grid, threads, dynamic, params, overlaps, &t))
                good = false;
            std::lock_guard<std::mutex> lock(t.lock);
            t.left++;
            t.moved.notify_all();
        });
    for (std::thread &m : members)
        m.join();
    all_workers[0].blocks = 0;
    return good;
}

} // namespace
} // namespace emu

using namespace emu;

void emu_register(emu_kernel *kernel)
{
    kernel->next = kernels;
    kernels = kernel;
}

const emu_kernel *emu_first(void) { return kernels; }

const emu_kernel *emu_find(const char *name)
{
    for (const emu_kernel *k = kernels; k; k = k->next)
        if (strcmp(k->name, name) == 0)
            return k;
    return nullptr;
}

bool emu_launch(const emu_kernel *kernel, unsigned grid, unsigned threads, size_t dynamic, const void *params, bool overlaps)
{
    std::lock_guard<std::mutex> lock(launching);
    if (!stacks)
        set_up();
    if (threads == 0 || threads > kernel->threads || grid == 0 || dynamic > max_dynamic) {
        fprintf(stderr, "emulator: kernel %s cannot run %u blocks of %u threads with %zu bytes\n", kernel->name, grid, threads, dynamic);
        return false;
    }
    if (grid % kernel->team || kernel->team > max_workers) {
        fprintf(stderr, "emulator: kernel %s has teams of %u, and is to run %u blocks\n", kernel->name, kernel->team, grid);
        return false;
    }
    std::mt19937_64 random(seed * 0x9e3779b97f4a7c15u + ++launches);
    std::vector<unsigned> order(grid / kernel->team);
    for (unsigned i = 0; i < order.size(); i++) {
        const unsigned j = (unsigned)(random() % (i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    std::atomic<unsigned> next{ 0 };
    std::atomic<bool> good{ true };
    const auto work = [&](worker *me) {
        if (me != all_workers)
            me->blocks = 0; // a new thread has its own shared memory
        for (unsigned i; good && (i = next++) < grid;)
            if (!run_block(me, kernel, order[i], grid, threads, dynamic, params, overlaps, nullptr))
                good = false;
    };
    std::vector<std::thread> others;
    for (unsigned i = 0; i < max_workers; i++)
        all_workers[i].random.seed((unsigned)random() | 1);
    if (kernel->team > 1) {
        for (unsigned i = 0; i < order.size() && good; i++)
            good = run_team(kernel, order[i] * kernel->team, grid, threads, dynamic, params, overlaps);
        return good;
    }
    for (unsigned i = 1; i < workers && i < grid; i++)
        others.emplace_back(work, &all_workers[i]);
    work(&all_workers[0]);
    for (std::thread &t : others)
        t.join();
    return good;
}
