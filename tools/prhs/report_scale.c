/* SPDX-License-Identifier: Apache-2.0 */
/* Axes: ends and ticks at 1, 2 and 5 times powers of ten. */
#include <math.h>

#include "report.h"

enum { FULL = 8 /* logarithmic ticks that all get a label */, LOG_RATIO = 8 /* the least span that is worth it */ };
static const double largest = 1e30, least = 1e-30;

bool scale_shows(bool log, double x) { return isfinite(x) && fabs(x) <= largest && (!log || x >= least); }

/* Step i of 1, 2, 5, 10, 20, ... */
static double step(int i) {
    static const double digits[] = { 1, 2, 5 };
    const int decade = i >= 0 ? i / 3 : -((2 - i) / 3);
    return digits[i - 3 * decade] * pow(10, decade);
}

/* The last step at or below x. */
static int step_below(double x) {
    int i = 3 * (int)floor(log10(x)) - 3;
    while (step(i + 1) <= x * (1 + 1e-9))
        i++;
    return i;
}

static void add(scale *s, double x, bool labelled) {
    if (s->count == PLOT_TICKS)
        return;
    s->labelled[s->count] = labelled;
    s->ticks[s->count++] = x;
}

static void linear(scale *s, double low, double high) {
    low = fmin(low, 0);
    high = fmax(high, 0);
    if (low == high)
        high = 1;
    const double by = step(step_below((high - low) / 4));
    const double first = floor(low / by + 1e-9), last = ceil(high / by - 1e-9);
    s->low = first * by;
    s->high = last * by;
    for (double i = first; i <= last && s->count < PLOT_TICKS; i++)
        add(s, i * by, true);
}

/* Few steps: a label each; more: one a decade, or every few decades. */
static void logarithmic(scale *s, double low, double high) {
    const int first = step_below(low), below = step_below(high), last = step(below) >= high * (1 - 1e-9) ? below : below + 1;
    const int end = last > first ? last : first + 1, n = end - first;
    const int decades = n / 3 + 1, every = n < FULL ? 1 : 3 * ((decades + 6) / 7);
    s->low = step(first);
    s->high = step(end);
    for (int i = first; i <= end; i++) {
        const bool on = i % every == 0;
        if (on || n < PLOT_TICKS)
            add(s, step(i), on);
    }
}

scale scale_make(const plot_axis *axis, double low, double high, double from, double to) {
    scale s = { .from = from, .to = to };
    if (axis->tick_count) {
        s.log = true;
        s.low = axis->ticks[0] / 1.25;
        s.high = axis->ticks[axis->tick_count - 1] * 1.25;
        for (size_t i = 0; i < axis->tick_count; i++)
            add(&s, axis->ticks[i], true);
        return s;
    }
    if (!scale_shows(false, low) || !scale_shows(false, high))
        low = high = 0;
    s.log = axis->log && scale_shows(true, low) && high >= low * LOG_RATIO;
    if (s.log)
        logarithmic(&s, low, high);
    else
        linear(&s, low, high);
    return s;
}

double scale_at(const scale *s, double x) {
    const double low = s->log ? log10(s->low) : s->low, high = s->log ? log10(s->high) : s->high;
    return s->from + (s->to - s->from) * ((s->log ? log10(x) : x) - low) / (high - low);
}
