/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gguf.c, with the file between two pages that nobody may touch. A real mapping ends in the zeros of its last page, where reads
 * past the file's end go unseen; here the file's last byte is the last of a page. The source is included, because at link time
 * mmap has other names too (mmap64).
 */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tiny.h"

static size_t whole_pages(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

static char *reserve(size_t size) {
    const size_t page = whole_pages(1), inner = whole_pages(size);
    char *all = mmap(NULL, inner + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all, page, PROT_NONE) != 0 || mprotect(all + page + inner, page, PROT_NONE) != 0)
        abort();
    return all + page + inner - size;
}

void *guard(const void *data, size_t size) {
    char *at = reserve(size);
    if (size)
        memcpy(at, data, size);
    return at;
}

void unguard(void *data, size_t size) {
    const size_t page = whole_pages(1), inner = whole_pages(size);
    if (munmap((char *)data + size - inner - page, inner + 2 * page) != 0)
        abort();
}

static void *guarded_mmap(size_t size, int fd) {
    char *at = reserve(size);
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, at + done, size - done, (off_t)done);
        if (n <= 0) {
            unguard(at, size);
            return MAP_FAILED;
        }
        done += (size_t)n;
    }
    return at;
}

#define mmap(where, size, protection, flags, fd, offset) guarded_mmap(size, fd)
#define munmap(at, size) unguard(at, size)
#include "../gguf.c"
