// SPDX-License-Identifier: Apache-2.0
// Functions that the lanes of a warp compute together.
#include <device.cuh>

#include <stdlib.h>
#include <string.h>

using emu::fiber;
using emu::warp;

void emu_shuffle(fiber *f, unsigned mask, unsigned source, const char *file, unsigned line)
{
    f->with->source[f->lane] = (unsigned char)source;
    emu::meet(f, emu::SHUFFLE, mask, file, line, [](warp *w, unsigned lanes) {
        if (lanes == FULL) {
            for (int i = 0; i < 32; i++)
                w->result[i] = w->value[w->source[i]];
            return;
        }
        for (int i = 0; i < 32; i++) // from a lane that does not take part: anything
            if (lanes >> i & 1)
                w->result[i] = lanes >> w->source[i] & 1 ? w->value[w->source[i]] : 0xffffffffffffffffu;
    });
}

static unsigned reduced(emu_reduction how, const warp *w, unsigned lanes)
{
    unsigned r = how == EMU_BALLOT ? 0 : (unsigned)w->value[__builtin_ctz(lanes)];
    for (unsigned left = how == EMU_BALLOT ? lanes : lanes & (lanes - 1); left; left &= left - 1) {
        const unsigned i = (unsigned)__builtin_ctz(left), x = (unsigned)w->value[i];
        switch (how) {
        case EMU_BALLOT: r |= x << i; break;
        case EMU_MIN: r = min(r, x); break;
        case EMU_MAX: r = max(r, x); break;
        case EMU_MIN_INT: r = (unsigned)min((int)r, (int)x); break;
        case EMU_MAX_INT: r = (unsigned)max((int)r, (int)x); break;
        case EMU_ADD: r += x; break;
        case EMU_AND: r &= x; break;
        case EMU_OR: r |= x; break;
        case EMU_XOR: r ^= x; break;
        }
    }
    return r;
}

unsigned emu_reduce(emu_reduction how, unsigned mask, unsigned x, const char *file, unsigned line)
{
    fiber *f = emu::self();
    f->with->value[f->lane] = x;
    emu::meet(f, how == EMU_BALLOT ? emu::BALLOT : emu::REDUCE, mask, file, line, [how](warp *w, unsigned lanes) {
        const unsigned r = reduced(how, w, lanes);
        for (int i = 0; i < 32; i++)
            if (lanes >> i & 1)
                w->result[i] = r;
    });
    return (unsigned)f->with->result[f->lane];
}

unsigned __match_any_sync(unsigned mask, unsigned x, const char *file, unsigned line)
{
    fiber *f = emu::self();
    f->with->value[f->lane] = x;
    emu::meet(f, emu::BALLOT, mask, file, line, [](warp *w, unsigned lanes) {
        for (int i = 0; i < 32; i++) {
            unsigned r = 0;
            for (int k = 0; k < 32; k++)
                r |= (unsigned)(lanes >> k & 1 && w->value[k] == w->value[i]) << k;
            if (lanes >> i & 1)
                w->result[i] = r;
        }
    });
    return (unsigned)f->with->result[f->lane];
}

// Lane l's register m holds elements 2*(l%4) and the next of row l/4 of matrix m; of its column l/4 where transposed.
void emu_load_matrices(unsigned r[4], const void *row, bool transposed, const char *file, unsigned line)
{
    fiber *f = emu::self();
    f->with->pointer[f->lane] = emu_aligned<uint4>(row);
    f->with->output[f->lane] = r;
    emu::meet(f, emu::MATRICES, FULL, file, line, [transposed](warp *w, unsigned) {
        for (int l = 0; l < 32; l++)
            for (int m = 0; m < 4; m++) {
                const int i = l / 4, k = l % 4 * 2;
                unsigned short x[2];
                for (int e = 0; e < 2; e++)
                    x[e] = ((const unsigned short *)w->pointer[8 * m + (transposed ? k + e : i)])[transposed ? i : k + e];
                ((unsigned *)w->output[l])[m] = x[0] | (unsigned)x[1] << 16;
            }
    });
}

struct factors {
    const unsigned *a;
    unsigned b[2];
};

template <bool BF16> static float2 pair(unsigned x) { return BF16 ? bf162_floats(x) : half2_floats(x); }

// Devices are said to cut sums off; so do we where PRHS_EMU_CUT is set. Rounded else.
static float ended(double x)
{
    static const bool cut = getenv("PRHS_EMU_CUT") != nullptr;
    const float r = (float)x;
    return cut && fabs((double)r) > fabs(x) && !isinf(x) ? nextafterf(r, 0.0f) : r;
}

// Fragments as PTX has them. Products and their sum are as good as exact before that.
template <bool BF16> static void multiplied(warp *w, unsigned)
{
    float a[16][16], b[16][8], c[16][8];
    for (int l = 0; l < 32; l++) {
        const factors *x = (const factors *)w->pointer[l];
        const float *sum = (const float *)w->output[l];
        const int row = l / 4, at = l % 4 * 2;
        for (int i = 0; i < 4; i++) {
            const float2 v = pair<BF16>(x->a[i]);
            a[row + 8 * (i & 1)][at + 8 * (i >> 1)] = v.x;
            a[row + 8 * (i & 1)][at + 8 * (i >> 1) + 1] = v.y;
            c[row + 8 * (i >> 1)][at + (i & 1)] = sum[i];
        }
        for (int i = 0; i < 2; i++) {
            const float2 v = pair<BF16>(x->b[i]);
            b[at + 8 * i][row] = v.x;
            b[at + 8 * i + 1][row] = v.y;
        }
    }
    for (int i = 0; i < 16; i++) {
        double sum[8];
        for (int j = 0; j < 8; j++)
            sum[j] = c[i][j];
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                sum[j] += (double)a[i][k] * b[k][j];
        for (int j = 0; j < 8; j++)
            c[i][j] = ended(sum[j]);
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            ((float *)w->output[l])[i] = c[l / 4 + 8 * (i >> 1)][l % 4 * 2 + (i & 1)];
}

void emu_multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1, bool bf16, const char *file, unsigned line)
{
    fiber *f = emu::self();
    const factors x = { a, { b0, b1 } };
    f->with->pointer[f->lane] = &x;
    f->with->output[f->lane] = c;
    emu::meet(f, emu::MULTIPLY, FULL, file, line, bf16 ? multiplied<true> : multiplied<false>);
}

// Asynchronous copies land when they are waited for, and not before.

void emu::copy_later(fiber *f, void *to, const void *from)
{
    late_copies *l = &f->late;
    if (l->count == max_copies)
        fail(f, "too many asynchronous copies");
    late_copy *c = &l->copy[l->count++];
    c->to = to;
    if (from)
        memcpy(c->data, from, sizeof c->data);
    else
        memset(c->data, 0, sizeof c->data);
}

void emu::commit_copies(fiber *f)
{
    late_copies *l = &f->late;
    if (l->groups == max_groups)
        land_copies(f, max_groups - 1); /* the oldest one has long come */
    l->ends[l->groups++] = l->count;
}

void emu::land_copies(fiber *f, unsigned pending)
{
    late_copies *l = &f->late;
    if (l->groups <= pending)
        return;
    const unsigned groups = l->groups - pending, copies = l->ends[groups - 1];
    for (unsigned i = 0; i < copies; i++)
        memcpy(l->copy[i].to, l->copy[i].data, sizeof l->copy[i].data);
    l->count -= copies;
    memmove(l->copy, l->copy + copies, l->count * sizeof *l->copy);
    for (unsigned i = 0; i < pending; i++)
        l->ends[i] = l->ends[groups + i] - copies;
    l->groups = pending;
}
