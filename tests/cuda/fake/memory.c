/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device memory between two pages that fault. What lies between its end and the page has a pattern that is looked at when it is freed.
 * It starts as 0xff bytes (NaN, -1) where it is not too large for that.
 */
#define _GNU_SOURCE
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE ((size_t)4096)
#define SLACK 0xa7
#define FILLED ((size_t)64 << 20)

static size_t used;

static size_t total(void) { return (size_t)fake_setting("PRHS_FAKE_CUDA_MEMORY_MB", 16384) << 20; }

memory *fake_memory_new(kind kind, size_t size, result *error) {
    *error = size == 0 ? PRHS_DRV_INVALID_VALUE : PRHS_DRV_OUT_OF_MEMORY;
    if (size == 0 || size > total() - used)
        return NULL;
    memory *m = fake_new(kind, sizeof *m);
    if (!m)
        return NULL;
    m->size = size;
    m->mapped = (size + 255 + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
    m->map = mmap(NULL, m->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    unsigned char *end = m->map + m->mapped - PAGE;
    if (m->map == MAP_FAILED || mprotect(m->map + PAGE, m->mapped - 2 * PAGE, PROT_READ | PROT_WRITE) != 0) {
        fake_delete(m);
        return NULL;
    }
    m->at = (unsigned char *)((uintptr_t)(end - size) & ~(uintptr_t)255);
    memset(m->at + size, SLACK, (size_t)(end - m->at) - size);
    if (size <= FILLED)
        memset(m->at, 0xff, size);
    used += size;
    *error = PRHS_DRV_SUCCESS;
    return m;
}

void fake_memory_delete(memory *m) {
    const unsigned char *end = m->map + m->mapped - PAGE;
    for (const unsigned char *p = m->at + m->size; p < end; p++)
        if (*p != SLACK) {
            fake_complain("somebody wrote %zu bytes past an allocation of %zu bytes", (size_t)(p - m->at) - m->size, m->size);
            break;
        }
    munmap(m->map, m->mapped);
    used -= m->size;
    fake_delete(m);
}

memory *fake_memory_of(const void *at, size_t size) {
    for (object *o = fake_first(); o; o = o->next) {
        memory *m = (memory *)o;
        if ((o->kind == MEMORY || o->kind == HOST_MEMORY) && (uintptr_t)at >= (uintptr_t)m->at &&
            (uintptr_t)at - (uintptr_t)m->at <= m->size && size <= m->size - ((uintptr_t)at - (uintptr_t)m->at))
            return m;
    }
    return NULL;
}
