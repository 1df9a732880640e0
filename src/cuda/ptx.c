/* SPDX-License-Identifier: Apache-2.0 */
#include "ptx.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Drops all kernels of a marked text but the one of this name; false: it is not there. */
static bool keep_kernel(char *text, const char *name) {
    const size_t size = strlen(name);
    bool found = false;
    char *to = text;
    for (char *from = text; *from;) {
        char *begin = strstr(from, "\n//:"), *end = begin ? strstr(begin, "\n//.") : NULL;
        if (!end)
            end = begin = from + strlen(from);
        const bool keep = begin < end && strncmp(begin + 4, name, size) == 0 && begin[4 + size] == '\n';
        char *next = *end ? end + 4 : end, *stay = keep ? next : begin;
        memmove(to, from, (size_t)(stay - from));
        to += stay - from;
        found |= keep;
        from = next;
    }
    *to = '\0';
    return found;
}

enum { CLASSES = 16, DIGITS = 10 };

/* The registers of a class, or the labels, of one function: what they are called before their number, and the numbers as they were last seen. */
typedef struct names {
    const char *class;
    size_t length;
    uint32_t *order, count, room;
} names;

static names *names_of(names *all, const char *class, size_t length) {
    for (names *n = all; n < all + CLASSES; n++) {
        if (!n->class)
            *n = (names){ .class = class, .length = length };
        if (n->length == length && memcmp(n->class, class, length) == 0)
            return n;
    }
    return NULL;
}

/* The number at a distance; 0: a new one. */
static bool number_at(names *n, unsigned long distance, uint32_t *number) {
    if (distance > n->count)
        return false;
    if (n->count == n->room) {
        n->room = 2 * n->room + 64;
        uint32_t *order = realloc(n->order, n->room * sizeof *order);
        if (!order)
            return false;
        n->order = order;
    }
    *number = n->count;
    if (distance > 0) {
        uint32_t *at = n->order + n->count - distance;
        *number = *at;
        memmove(at, at + 1, (distance - 1) * sizeof *at);
        n->count--;
    }
    n->order[n->count++] = *number;
    return true;
}

/* How many characters a name at `text` has before its number; 0: there is none. */
static size_t name_length(const char *text) {
    const size_t length = *text == '%' ? 1 + strspn(text + 1, "abcdefghijklmnopqrstuvwxyz") : strncmp(text, "$L", 2) == 0 ? 2 : 0;
    return length > 1 && text[length] >= '0' && text[length] <= '9' ? length : 0;
}

/* Numbers for the distances in a marked text; outside functions there are none. */
static bool expand(const char *from, char *to, names *all) {
    bool inside = false;
    while (*from) {
        if (strncmp(from, "\n//", 3) == 0) {
            inside = from[3] != '.';
            for (names *n = all; n < all + CLASSES; n++)
                n->count = 0;
        }
        const size_t length = inside ? name_length(from) : 0;
        if (length == 0) {
            *to++ = *from++;
            continue;
        }
        uint32_t number = 0;
        char *end = NULL;
        names *n = names_of(all, from, length);
        if (!n || !number_at(n, strtoul(from + length, &end, 10), &number))
            return false;
        memcpy(to, from, length);
        to += length;
        to += snprintf(to, DIGITS + 1, "%u", (unsigned)number);
        from = end;
    }
    *to = '\0';
    return true;
}

char *prhs_nv_ptx(char *text, const char *kernel) {
    names all[CLASSES] = { 0 };
    if (!keep_kernel(text, kernel))
        return NULL;
    size_t size = 1;
    for (const char *c = text; *c; c++)
        size += *c == '%' || *c == '$' ? 1 + DIGITS : 1;
    char *out = malloc(size);
    const bool good = out && expand(text, out, all);
    for (int i = 0; i < CLASSES; i++)
        free(all[i].order);
    if (good)
        return out;
    free(out);
    return NULL;
}
