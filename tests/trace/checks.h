/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs of this folder count, and how they say what is wrong. */
#ifndef CHECKS_H
#define CHECKS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static int checks, failures;

static bool check(bool good, const char *format, ...) {
    checks++;
    if (good)
        return true;
    va_list args;
    failures++;
    va_start(args, format);
    printf("FAIL ");
    vprintf(format, args);
    putchar('\n');
    va_end(args);
    return false;
}

#endif
