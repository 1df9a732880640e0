/* SPDX-License-Identifier: Apache-2.0 */
/* Plots of points and lines, as SVG. */
#include <math.h>
#include <stdlib.h>

#include "report.h"

enum { WIDTH = 600, HEIGHT = 380, LEFT = 82, RIGHT = 30, TOP = 14, BOTTOM = 54, LABELS = 64 };
enum { DIGIT = 9 }; /* of a label: its width where text is largest, on a narrow page */

typedef struct drawing {
    page *p;
    const plot *what;
    scale x, y;
    size_t hidden; /* points without a place */
} drawing;

static bool drawn(const drawing *d, const plot_point *at) {
    return scale_shows(d->x.log, at->x) && scale_shows(d->y.log, at->y);
}

/* Ends of the values that any axis shows. */
static void extent(const plot *what, bool log_x, bool log_y, double ends[4]) {
    ends[0] = ends[2] = INFINITY;
    ends[1] = ends[3] = -INFINITY;
    for (size_t i = 0; i < what->count; i++)
        for (size_t j = 0; j < what->series[i].count; j++) {
            const plot_point *at = &what->series[i].points[j];
            if (!scale_shows(log_x, at->x) || !scale_shows(log_y, at->y))
                continue;
            ends[0] = fmin(ends[0], at->x);
            ends[1] = fmax(ends[1], at->x);
            ends[2] = fmin(ends[2], at->y);
            ends[3] = fmax(ends[3], at->y);
        }
    if (scale_shows(log_x, what->x_line)) {
        ends[0] = fmin(ends[0], what->x_line);
        ends[1] = fmax(ends[1], what->x_line);
    }
}

static void make_scales(drawing *d) {
    const plot *what = d->what;
    double ends[4];
    extent(what, false, false, ends);
    if (what->diagonal) {
        extent(what, what->x.log, what->y.log, ends);
        ends[0] = ends[2] = fmin(ends[0], ends[2]);
        ends[1] = ends[3] = fmax(ends[1], ends[3]);
    }
    d->x = scale_make(&what->x, ends[0], ends[1], LEFT, WIDTH - RIGHT);
    d->y = scale_make(&what->y, ends[2], ends[3], HEIGHT - BOTTOM, TOP);
}

static void axes(const drawing *d) {
    page *p = d->p;
    const double base = HEIGHT - BOTTOM;
    for (size_t i = 0; i < d->x.count; i++) {
        const double at = scale_at(&d->x, d->x.ticks[i]);
        page_raw(p, "<path class=\"%s\" d=\"M%.1f %dV%.1f\"/>", d->x.labelled[i] ? "grid" : "minor", at, TOP, base);
        if (d->x.labelled[i])
            page_raw(p, "<text class=\"middle\" x=\"%.1f\" y=\"%.1f\">%g</text>\n", at, base + 19, d->x.ticks[i]);
    }
    for (size_t i = 0; i < d->y.count; i++) {
        const double at = scale_at(&d->y, d->y.ticks[i]);
        page_raw(p, "<path class=\"%s\" d=\"M%d %.1fH%d\"/>", d->y.labelled[i] ? "grid" : "minor", LEFT, at, WIDTH - RIGHT);
        if (d->y.labelled[i])
            page_raw(p, "<text class=\"end\" x=\"%d\" y=\"%.1f\">%g</text>\n", LEFT - 6, at + 4, d->y.ticks[i]);
    }
    page_raw(p, "<path class=\"axis\" d=\"M%d %dV%.1fH%d\"/>", LEFT, TOP, base, WIDTH - RIGHT);
    if (!d->y.log && d->y.low < 0)
        page_raw(p, "<path class=\"axis\" d=\"M%d %.1fH%d\"/>", LEFT, scale_at(&d->y, 0), WIDTH - RIGHT);
    page_raw(p, "<text class=\"middle\" x=\"%d\" y=\"%d\">", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10);
    page_text(p, d->what->x.label);
    page_raw(p, "</text><text class=\"middle\" transform=\"translate(18 %d) rotate(-90)\">", (TOP + HEIGHT - BOTTOM) / 2);
    page_text(p, d->what->y.label);
    page_raw(p, "</text>\n");
}

/* y = by * x from end to end, as far as both axes go. */
static void ray(const drawing *d, double by, const char *class) {
    const double low = fmax(d->x.low, d->y.low / by), high = fmin(d->x.high, d->y.high / by);
    if (low < high)
        page_raw(d->p, "<path class=\"%s\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", class, scale_at(&d->x, low), scale_at(&d->y, low * by),
                 scale_at(&d->x, high), scale_at(&d->y, high * by));
}

static void references(const drawing *d) {
    const plot *what = d->what;
    if (what->diagonal) {
        ray(d, 1, "axis");
        ray(d, 1.25, "ref");
        ray(d, 1 / 1.25, "ref");
    }
    if (!scale_shows(d->x.log, what->x_line))
        return;
    const double at = scale_at(&d->x, what->x_line);
    page_raw(d->p, "<path class=\"ref\" d=\"M%.1f %dV%d\"/><text class=\"end small halo\" x=\"%.1f\" y=\"%d\">", at, TOP, HEIGHT - BOTTOM, at - 5,
             TOP + 12);
    page_text(d->p, what->x_line_name);
    page_raw(d->p, "</text>\n");
}

static void line(const drawing *d, const plot_series *s) {
    bool begun = false;
    page_raw(d->p, "<path class=\"line l%u%s\" d=\"", s->style, s->dashed ? " dash" : "");
    for (size_t i = 0; i < s->count; i++)
        if (drawn(d, &s->points[i])) {
            page_raw(d->p, "%c%.1f %.1f", begun ? 'L' : 'M', scale_at(&d->x, s->points[i].x), scale_at(&d->y, s->points[i].y));
            begun = true;
        }
    page_raw(d->p, "%s\"/>\n", begun ? "" : "M0 0");
}

static void mark_class(page *p, const plot_series *s) {
    if (s->dashed)
        page_raw(p, "hollow l%u", s->style);
    else
        page_raw(p, "mark s%u", s->style);
}

static void marks(drawing *d, const plot_series *s) {
    page *p = d->p;
    for (size_t i = 0; i < s->count; i++) {
        const plot_point *at = &s->points[i];
        if (!drawn(d, at)) {
            d->hidden++;
            continue;
        }
        page_raw(p, "<path class=\"");
        mark_class(p, s);
        page_raw(p, "\" transform=\"translate(%.1f %.1f)%s\" d=\"%s\"><title>", scale_at(&d->x, at->x), scale_at(&d->y, at->y),
                 s->small ? " scale(.6)" : "", mark_path(s->style));
        page_text(p, at->name);
        page_raw(p, ": ");
        page_number(p, at->x);
        page_raw(p, ", ");
        page_number(p, at->y);
        page_raw(p, "</title></path>\n");
    }
}

/* Many numbers would only cover each other: then the titles have to do. */
static void numbers(const drawing *d) {
    label_place labels[LABELS];
    size_t n = 0;
    for (size_t i = 0; i < d->what->count; i++)
        for (size_t j = 0; j < d->what->series[i].count; j++) {
            const plot_point *at = &d->what->series[i].points[j];
            if (!at->number || !drawn(d, at))
                continue;
            if (n == LABELS)
                return;
            const int digits = at->number < 10 ? 1 : at->number < 100 ? 2 : 3;
            labels[n++] = (label_place){ scale_at(&d->x, at->x), scale_at(&d->y, at->y), DIGIT * digits, at->number };
        }
    labels_place(labels, n, LEFT, TOP - 6, WIDTH - 2, HEIGHT - BOTTOM);
    for (size_t i = 0; i < n; i++)
        page_raw(d->p, "<text class=\"middle small halo\" x=\"%.1f\" y=\"%.1f\">%u</text>\n", labels[i].x, labels[i].y + 4, labels[i].number);
}

static bool visible(const drawing *d, const plot_series *s) {
    for (size_t i = 0; i < s->count; i++)
        if (drawn(d, &s->points[i]))
            return true;
    return false;
}

static void legend(const drawing *d) {
    page *p = d->p;
    const plot *what = d->what;
    page_raw(p, "<ul class=\"legend\">");
    for (size_t i = 0; i < what->count; i++) {
        const plot_series *s = &what->series[i];
        if (!visible(d, s) || (s->dashed && what->dashed_name))
            continue;
        page_raw(p, "<li><svg width=\"30\" height=\"16\" viewBox=\"-15 -8 30 16\" aria-hidden=\"true\">");
        if (s->line)
            page_raw(p, "<path class=\"line l%u%s\" d=\"M-15 0H15\"/>", s->style, s->dashed ? " dash" : "");
        page_raw(p, "<path class=\"");
        mark_class(p, s);
        page_raw(p, "\" d=\"%s\"/></svg><span>", mark_path(s->style));
        page_text(p, s->name);
        page_raw(p, "</span></li>\n");
    }
    if (what->dashed_name) {
        page_raw(p, "<li><svg width=\"30\" height=\"16\" viewBox=\"-15 -8 30 16\" aria-hidden=\"true\"><path class=\"axis dash\" d=\"M-15 0H15\"/></svg><span>");
        page_text(p, what->dashed_name);
        page_raw(p, "</span></li>\n");
    }
    if (what->diagonal)
        page_raw(p, "<li><svg width=\"30\" height=\"16\" viewBox=\"-15 -8 30 16\" aria-hidden=\"true\"><path class=\"axis\" d=\"M-15 0H15\"/></svg>"
                    "<span>equal; dotted: 1.25 times, 1/1.25 of it</span></li>\n");
    page_raw(p, "</ul>\n");
}

static void description(page *p, const plot *what) {
    page_raw(p, "Vertical: ");
    page_text(p, what->y.label);
    page_raw(p, "; horizontal: ");
    page_text(p, what->x.label);
    page_raw(p, ". Series:");
    for (size_t i = 0; i < what->count; i++) {
        page_raw(p, i ? ", " : " ");
        page_text(p, what->series[i].name);
    }
    page_raw(p, ". The values are in the table that follows.");
}

void plot_figure(page *p, const plot *what) {
    drawing d = { .p = p, .what = what };
    const uint32_t id = ++p->ids;
    make_scales(&d);
    page_raw(p, "<figure class=\"pair\"><figcaption>");
    page_text(p, what->title);
    if (what->note) {
        page_raw(p, "<small>");
        page_text(p, what->note);
        page_raw(p, "</small>");
    }
    page_raw(p, "</figcaption>\n<div><div class=\"drawing\" tabindex=\"0\" role=\"region\" aria-labelledby=\"t%u\">"
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"t%u d%u\"><title id=\"t%u\">",
             id, WIDTH, HEIGHT, id, id, id);
    page_text(p, what->title);
    page_raw(p, "</title><desc id=\"d%u\">", id);
    description(p, what);
    page_raw(p, "</desc>\n");
    axes(&d);
    references(&d);
    for (size_t i = 0; i < what->count; i++)
        if (what->series[i].line)
            line(&d, &what->series[i]);
    for (size_t i = 0; i < what->count; i++)
        marks(&d, &what->series[i]);
    numbers(&d);
    page_raw(p, "</svg></div>\n");
    legend(&d);
    if (d.hidden)
        page_raw(p, "<p class=\"aside\">%zu %s no place in the plot: a value is missing, or not positive on a logarithmic axis.</p>\n", d.hidden,
                 d.hidden == 1 ? "entry has" : "entries have");
    page_raw(p, "</div>\n");
}

void figure_end(page *p) { page_raw(p, "</figure>\n"); }
