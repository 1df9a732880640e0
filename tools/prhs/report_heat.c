/* SPDX-License-Identifier: Apache-2.0 */
/* Heat maps: rows by columns, the value in every field that has room for it. */
#include <math.h>
#include <stdlib.h>

#include "report.h"

enum { WIDTH = 600, LEFT = 60, RIGHT = 10, TOP = 40, FIELD_HEIGHT = 17, STEPS = 7, DARK = 4 /* steps that need light text */, KEY = 34 };

/* Three digits, below 1 without the leading zero. */
static void short_text(page *p, double x) {
    char text[32];
    snprintf(text, sizeof text, x < 1 ? "%.3f" : "%.3g", x);
    page_raw(p, "%s", text[0] == '0' && text[1] ? text + 1 : text);
}

/* Where a step begins: masses are mostly small, so the small ones get more steps. */
static double step_begin(const heat *h, int step) { return h->high * step * step / (STEPS * STEPS); }

static int step_of(const heat *h, double x) {
    int step = 0;
    while (step < STEPS - 1 && x >= step_begin(h, step + 1) && h->high > 0)
        step++;
    return step;
}

static void field(page *p, const heat *h, size_t row, size_t column, double width) {
    const double x = h->values[row * h->columns + column], left = LEFT + width * (double)column;
    const double top = TOP + FIELD_HEIGHT * (double)row;
    const int step = isfinite(x) ? step_of(h, x) : -1;
    if (step < 0)
        page_raw(p, "<rect class=\"none\"");
    else
        page_raw(p, "<rect class=\"h%d\"", step);
    page_raw(p, " x=\"%.2f\" y=\"%.0f\" width=\"%.2f\" height=\"%d\"><title>%s %.0f, %s %zu: ", left, top, width, FIELD_HEIGHT, h->row_name,
             h->row_ids[row], h->column_name, column);
    page_number(p, x);
    page_raw(p, "</title></rect>");
    if (width >= 30 && step >= 0) {
        page_raw(p, "<text class=\"middle small%s\" x=\"%.2f\" y=\"%.0f\" aria-hidden=\"true\">", step >= DARK ? " over" : "", left + width / 2,
                 top + 13);
        short_text(p, x);
        page_raw(p, "</text>");
    }
    page_raw(p, "\n");
}

static void names(page *p, const heat *h, double width) {
    const size_t every = width >= 18 ? 1 : (size_t)ceil(18 / width);
    page_raw(p, "<text class=\"middle\" x=\"%.1f\" y=\"14\">%s</text>\n", LEFT + width * (double)h->columns / 2, h->column_name);
    page_raw(p, "<text class=\"middle\" transform=\"translate(18 %.1f) rotate(-90)\">%s</text>\n",
             TOP + FIELD_HEIGHT * (double)h->rows / 2, h->row_name);
    for (size_t i = 0; i < h->columns; i += every)
        page_raw(p, "<text class=\"middle small\" x=\"%.1f\" y=\"32\">%zu</text>", LEFT + width * ((double)i + 0.5), i);
    for (size_t i = 0; i < h->rows; i++)
        page_raw(p, "<text class=\"end small\" x=\"%d\" y=\"%.1f\">%.0f</text>", LEFT - 6, TOP + FIELD_HEIGHT * (double)i + 13, h->row_ids[i]);
}

static void key(page *p, const heat *h, double top) {
    const double width = (double)(WIDTH - LEFT - RIGHT) / STEPS;
    for (int i = 0; i < STEPS; i++)
        page_raw(p, "<rect class=\"h%d\" x=\"%.1f\" y=\"%.0f\" width=\"%.1f\" height=\"12\"/>"
                    "<text class=\"middle small\" x=\"%.1f\" y=\"%.0f\">%.2g</text>\n",
                 i, LEFT + width * i, top, width, LEFT + width * i, top + 25, step_begin(h, i));
    page_raw(p, "<text class=\"end small\" x=\"%d\" y=\"%.0f\">%.2g</text>\n", WIDTH - RIGHT, top + 25, h->high);
}

void heat_figure(page *p, const heat *h) {
    const double width = (double)(WIDTH - LEFT - RIGHT) / (double)h->columns, bottom = TOP + FIELD_HEIGHT * (double)h->rows;
    const uint32_t id = ++p->ids;
    page_raw(p, "<figure class=\"pair\"><figcaption>");
    page_text(p, h->title);
    page_raw(p, "<small>");
    page_text(p, h->note);
    page_raw(p, "</small></figcaption>\n<div><div class=\"drawing\" tabindex=\"0\" role=\"region\" aria-labelledby=\"t%u\">"
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" role=\"img\" aria-labelledby=\"t%u d%u\"><title id=\"t%u\">",
             id, WIDTH, bottom + 10 + KEY, id, id, id);
    page_text(p, h->title);
    page_raw(p, "</title><desc id=\"d%u\">A field for every %s and %s; the darker or, on a dark page, the lighter, the larger the value. "
                "The values are in the table that follows.</desc>\n",
             id, h->row_name, h->column_name);
    names(p, h, width);
    for (size_t i = 0; i < h->rows; i++)
        for (size_t j = 0; j < h->columns; j++)
            field(p, h, i, j, width);
    key(p, h, bottom + 10);
    page_raw(p, "</svg></div></div>\n");
}

void heat_table(page *p, const heat *h) {
    const char **heads = report_alloc(h->columns + 1, sizeof *heads);
    char(*names)[40] = report_alloc(h->columns, sizeof *names);
    heads[0] = h->row_name;
    for (size_t i = 0; i < h->columns; i++) {
        snprintf(names[i], sizeof names[i], "%.10s %zu", h->column_name, i);
        heads[i + 1] = names[i];
    }
    table_begin(p, h->title, heads, h->columns + 1);
    for (size_t i = 0; i < h->rows; i++) {
        table_row(p);
        table_number(p, h->row_ids[i]);
        for (size_t j = 0; j < h->columns; j++)
            table_number(p, h->values[i * h->columns + j]);
        table_row_end(p);
    }
    table_end(p);
    free(names);
    free(heads);
}
