/* SPDX-License-Identifier: Apache-2.0 */
/* The emulator as its users see it: kernels by name, and a launch that returns when every block has run. */
#ifndef PRHS_EMU_H
#define PRHS_EMU_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct emu_kernel {
    const char *name;
    void (*body)(const void *params);
    size_t params;                        /* bytes of the launch struct */
    unsigned threads, blocks;             /* of KERNEL(): the largest block, the blocks a multiprocessor shall hold */
    unsigned team;                        /* of TEAM_KERNEL(): neighbours that start together; 1: none */
    struct emu_kernel *next;
} emu_kernel;

void emu_register(emu_kernel *kernel);
const emu_kernel *emu_find(const char *name); /* NULL: there is none */
const emu_kernel *emu_first(void);

/* Runs grid x block threads. overlaps: every thread has to call grid_begin(). false: the kernel broke a rule of its barriers or warp
   functions; a report is on stderr. */
bool emu_launch(const emu_kernel *kernel, unsigned grid, unsigned block, size_t dynamic_bytes, const void *params, bool overlaps);

#ifdef __cplusplus
}
#endif

#endif
