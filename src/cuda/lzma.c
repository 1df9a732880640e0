/* SPDX-License-Identifier: Apache-2.0 */
#include "lzma.h"

#include <stdint.h>
#include <stdlib.h>

enum { STATES = 12, POS_STATES = 16, HEADER = 13, MATCH_MIN = 2, TOP = 1 << 24, HALF = 1024, SHIFT = 5, BITS = 11 };

typedef uint16_t prob; /* that the next bit is 0, of 2048 */

typedef struct lengths {
    prob choice[2], low[POS_STATES][8], mid[POS_STATES][8], high[256];
} lengths;

typedef struct model {
    prob match[STATES][POS_STATES], rep[STATES], rep0[STATES], rep1[STATES], rep2[STATES], rep0_long[STATES][POS_STATES];
    prob slot[4][64], special[128], align[16];
    lengths match_length, rep_length;
    prob literal[];
} model;

typedef struct decoder {
    const unsigned char *in, *in_end;
    uint32_t range, code;
    bool starved;
    unsigned char *out;
    size_t at, size;
    unsigned lc, lp, pb, state;
    uint32_t rep[4];
    model *m;
} decoder;

static void normalise(decoder *d) {
    if (d->range >= TOP)
        return;
    d->starved |= d->in == d->in_end;
    d->range <<= 8;
    d->code = d->code << 8 | (d->in < d->in_end ? *d->in++ : 0);
}

static unsigned bit(decoder *d, prob *p) {
    normalise(d);
    const uint32_t bound = (d->range >> BITS) * *p;
    if (d->code < bound) {
        d->range = bound;
        *p = (prob)(*p + (((1 << BITS) - *p) >> SHIFT));
        return 0;
    }
    d->range -= bound;
    d->code -= bound;
    *p = (prob)(*p - (*p >> SHIFT));
    return 1;
}

static uint32_t direct(decoder *d, unsigned n) {
    uint32_t x = 0;
    while (n--) {
        normalise(d);
        d->range >>= 1;
        const unsigned one = d->code >= d->range;
        if (one)
            d->code -= d->range;
        x = x << 1 | one;
    }
    return x;
}

static unsigned tree(decoder *d, prob *p, unsigned bits) {
    unsigned x = 1;
    for (unsigned i = 0; i < bits; i++)
        x = x << 1 | bit(d, &p[x]);
    return x - (1u << bits);
}

static unsigned reverse_tree(decoder *d, prob *p, unsigned bits) {
    unsigned x = 1, sum = 0;
    for (unsigned i = 0; i < bits; i++) {
        const unsigned b = bit(d, &p[x]);
        x = x << 1 | b;
        sum |= b << i;
    }
    return sum;
}

static unsigned length(decoder *d, lengths *l, unsigned pos) {
    if (!bit(d, &l->choice[0]))
        return MATCH_MIN + tree(d, l->low[pos], 3);
    if (!bit(d, &l->choice[1]))
        return MATCH_MIN + 8 + tree(d, l->mid[pos], 3);
    return MATCH_MIN + 16 + tree(d, l->high, 8);
}

static void literal(decoder *d) {
    const unsigned before = d->at ? d->out[d->at - 1] : 0;
    const unsigned context = (unsigned)((d->at & ((1u << d->lp) - 1)) << d->lc) + (before >> (8 - d->lc));
    prob *p = d->m->literal + 0x300 * (size_t)context;
    unsigned x = 1;
    if (d->state >= 7) {
        unsigned expected = d->out[d->at - d->rep[0] - 1];
        while (x < 0x100) {
            const unsigned want = expected >> 7 & 1, b = bit(d, &p[((1 + want) << 8) + x]);
            expected <<= 1;
            x = x << 1 | b;
            if (b != want)
                break;
        }
    }
    while (x < 0x100)
        x = x << 1 | bit(d, &p[x]);
    d->out[d->at++] = (unsigned char)x;
    d->state = d->state < 4 ? 0 : d->state < 10 ? d->state - 3 : d->state - 6;
}

static uint32_t distance(decoder *d, unsigned len) {
    const unsigned slot = tree(d, d->m->slot[len - MATCH_MIN < 4 ? len - MATCH_MIN : 3], 6);
    if (slot < 4)
        return slot;
    const unsigned low = (slot >> 1) - 1;
    const uint32_t base = (2 | (slot & 1)) << low;
    if (slot < 14)
        return base + reverse_tree(d, d->m->special + base - slot, low);
    return base + (direct(d, low - 4) << 4) + reverse_tree(d, d->m->align, 4);
}

/* One of the last four distances; its length. */
static unsigned repeated(decoder *d, unsigned pos) {
    model *m = d->m;
    if (!bit(d, &m->rep0[d->state])) {
        if (!bit(d, &m->rep0_long[d->state][pos])) {
            d->state = d->state < 7 ? 9 : 11;
            return 1;
        }
    } else {
        const unsigned which = !bit(d, &m->rep1[d->state]) ? 1 : 2 + bit(d, &m->rep2[d->state]);
        const uint32_t to = d->rep[which];
        for (unsigned i = which; i > 0; i--)
            d->rep[i] = d->rep[i - 1];
        d->rep[0] = to;
    }
    const unsigned len = length(d, &m->rep_length, pos);
    d->state = d->state < 7 ? 8 : 11;
    return len;
}

static bool match(decoder *d, unsigned pos) {
    unsigned len;
    if (bit(d, &d->m->rep[d->state])) {
        len = repeated(d, pos);
    } else {
        for (int i = 3; i > 0; i--)
            d->rep[i] = d->rep[i - 1];
        len = length(d, &d->m->match_length, pos);
        d->state = d->state < 7 ? 7 : 10;
        d->rep[0] = distance(d, len);
    }
    if (d->rep[0] >= d->at)
        return false;
    for (; len > 0 && d->at < d->size; len--, d->at++)
        d->out[d->at] = d->out[d->at - d->rep[0] - 1];
    return true;
}

static bool decode(decoder *d) {
    while (d->at < d->size) {
        const unsigned pos = (unsigned)(d->at & ((1u << d->pb) - 1));
        if (!bit(d, &d->m->match[d->state][pos]))
            literal(d);
        else if (!match(d, pos))
            return false;
        if (d->starved)
            return false;
    }
    return true;
}

bool prhs_nv_lzma(const unsigned char *in, size_t in_size, unsigned char *out, size_t size) {
    if (in_size < HEADER + 5 || in[0] >= 9 * 5 * 5)
        return false;
    const unsigned lc = in[0] % 9, lp = in[0] / 9 % 5, pb = in[0] / 45;
    const size_t literals = (size_t)0x300 << (lc + lp), probs = sizeof(model) / sizeof(prob) + literals;
    decoder d = { .in = in + HEADER + 5, .in_end = in + in_size, .range = UINT32_MAX, .out = out, .size = size, .lc = lc, .lp = lp, .pb = pb };
    for (int i = 1; i < 5; i++)
        d.code = d.code << 8 | in[HEADER + i];
    d.m = malloc(probs * sizeof(prob));
    if (!d.m)
        return false;
    for (size_t i = 0; i < probs; i++)
        ((prob *)(void *)d.m)[i] = HALF;
    const bool good = decode(&d);
    free(d.m);
    return good;
}
