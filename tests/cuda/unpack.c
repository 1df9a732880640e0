/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How packed kernels come out: unpack PACKED WHOLE, unpack MARKED TEXT KERNEL. Exit status 1: PACKED does not give WHOLE back, or is
 * taken for it when it is damaged; what MARKED has of this kernel is not TEXT.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/lzma.h"
#include "cuda/ptx.h"

enum { HEADER = 13, SMALL = 4096 }; /* streams up to SMALL bytes are cut and damaged at every byte */

static unsigned char *read_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0)
        exit(2);
    *size = (size_t)ftell(f);
    rewind(f);
    unsigned char *data = malloc(*size + 1);
    if (!data || fread(data, 1, *size, f) != *size)
        exit(2);
    data[*size] = '\0';
    fclose(f);
    return data;
}

/* In memory of just this size, so that a sanitizer sees what reads past it. */
static bool unpacks(const unsigned char *packed, size_t size, const unsigned char *whole, size_t whole_size, bool *same) {
    unsigned char *in = malloc(size ? size : 1), *out = malloc(whole_size ? whole_size : 1);
    if (!in || !out)
        exit(2);
    memcpy(in, packed, size);
    const bool good = prhs_nv_lzma(in, size, out, whole_size);
    *same = memcmp(out, whole, whole_size) == 0;
    free(in);
    free(out);
    return good;
}

/* A small one with every byte made another one in turn, too: whatever comes out, nothing is read or written out of bounds. */
static bool takes_kernel(const char *text, size_t size, const char *whole, const char *kernel) {
    char *copy = malloc(size + 1);
    if (!copy)
        exit(2);
    memcpy(copy, text, size + 1);
    char *got = prhs_nv_ptx(copy, kernel);
    const bool good = got && strcmp(got, whole) == 0;
    if (!good)
        printf("FAIL kernel %s: %s\n", kernel, got ? "another text" : "none");
    free(got);
    for (size_t at = 0; size <= SMALL && at < size; at++) {
        memcpy(copy, text, size + 1);
        copy[at] = "9%$L/\n"[at % 6];
        free(prhs_nv_ptx(copy, kernel));
    }
    free(copy);
    return good;
}

static bool unpacks_whole(unsigned char *packed, size_t size, const unsigned char *whole, size_t whole_size) {
    bool same = false, good = unpacks(packed, size, whole, whole_size, &same) && same;
    if (!good)
        printf("FAIL it is not given back\n");
    if (whole_size > HEADER && unpacks(packed, HEADER + (size - HEADER) / 2, whole, whole_size, &same)) {
        printf("FAIL half of it will do\n");
        good = false;
    }
    for (size_t at = 0; size <= SMALL && at < size; at++) {
        if (unpacks(packed, at, whole, whole_size, &same) && !same) {
            printf("FAIL cut to %zu bytes it is something else\n", at);
            good = false;
        }
        packed[at] ^= (unsigned char)(1 << at % 8);
        unpacks(packed, size, whole, whole_size, &same);
        packed[at] ^= (unsigned char)(1 << at % 8);
    }
    return good;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4)
        return 2;
    size_t size, whole_size;
    unsigned char *packed = read_file(argv[1], &size), *whole = read_file(argv[2], &whole_size);
    const bool good = argc == 3 ? unpacks_whole(packed, size, whole, whole_size) : takes_kernel((char *)packed, size, (char *)whole, argv[3]);
    free(packed);
    free(whole);
    return !good;
}
