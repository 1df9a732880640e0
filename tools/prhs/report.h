/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prhs report: what its files share. A page is one HTML document that is well-formed XML too, with a style sheet inside, plots as SVG and
 * every number of the inputs in a table; nothing in it runs, and nothing is fetched. Text that comes from an input is always escaped.
 */
#ifndef PRHS_REPORT_H
#define PRHS_REPORT_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include <stdio.h>

#include "tool.h"

/* --- report_read.c --- */

typedef enum report_kind { REPORT_PERPLEXITY, REPORT_REPLAY, REPORT_BENCH, REPORT_REFERENCE } report_kind;

typedef struct report_file {
    const char *path, *name; /* name: without folders */
    cJSON *root;
    report_kind kind;
    uint32_t number;         /* from 1 */
} report_file;

/* Reads a document and says what it is; false with a sentence. */
bool report_read(const char *path, report_file *file);
/* A member that is a finite number, else NaN. */
double report_number(const cJSON *object, const char *key);
/* The same of a.b.c. */
double report_number_at(const cJSON *object, const char *dotted);
/* A member that is a string, else `otherwise`. */
const char *report_string(const cJSON *object, const char *key, const char *otherwise);
/* calloc, or the end of the program with a sentence. */
void *report_alloc(size_t n, size_t size);

/* --- report_html.c --- */

typedef struct page {
    FILE *f;
    uint32_t ids; /* given out */
} page;

void page_write(page *p, const char *title, const report_file *files, size_t count);
/* Markup of the program's own. */
void page_raw(page *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Text, escaped. */
void page_text(page *p, const char *text);
/* Five significant digits, whole numbers whole; a dash for NaN. */
void page_number(page *p, double x);

/* A table in a frame that scrolls. Columns whose name begins with '<' hold text, aligned left. */
void table_begin(page *p, const char *caption, const char *const *columns, size_t count);
void table_end(page *p);
void table_row(page *p);
void table_row_end(page *p);
void table_text(page *p, const char *text);
void table_number(page *p, double x);

/* --- report_table.c --- */

/* Members of an object that are numbers, words or short lists, members of member objects too, as a table of two columns. */
void table_of_members(page *p, const char *caption, const cJSON *object);
/*
 * Every list of the object: objects as rows with their members as columns, lists in them as tables of their own, lists of numbers as one row.
 * Rows are told apart by their policy, text, name or layer, else by their number.
 */
void table_of_lists(page *p, const cJSON *object);

/* --- report_plot.c --- */

enum { PLOT_STYLES = 9, PLOT_TICKS = 24 };

typedef struct plot_point {
    double x, y;
    const char *name;
    uint32_t number; /* drawn beside the point; 0: none */
} plot_point;

typedef struct plot_series {
    const char *name;
    uint32_t style;     /* colour and shape, below PLOT_STYLES */
    bool line, dashed;  /* points are joined; dashed: by a dashed line, with hollow marks */
    bool small;         /* little marks */
    plot_point *points;
    size_t count;
} plot_series;

typedef struct plot_axis {
    const char *label;
    bool log;            /* where the values allow it: all positive, and far enough apart */
    const double *ticks; /* of a logarithmic axis, ascending; NULL: 1-2-5 */
    size_t tick_count;
} plot_axis;

typedef struct plot {
    const char *title, *note; /* note: a sentence below the title; may be NULL */
    plot_axis x, y;
    const plot_series *series;
    size_t count;
    double x_line;            /* a dotted upright at this x; NaN: none */
    const char *x_line_name;
    const char *dashed_name;  /* of all dashed series in the legend, where they stand for the marks they share */
    bool diagonal;            /* y = x, with 1/1.25 and 1.25 times that; axes get the same ends */
} plot;

/* A figure up to the place where its table stands; figure_end() closes it. Values that cannot be drawn are counted in a sentence. */
void plot_figure(page *p, const plot *what);
void figure_end(page *p);

typedef struct scale {
    bool log;
    double low, high, from, to;
    double ticks[PLOT_TICKS];
    bool labelled[PLOT_TICKS];
    size_t count;
} scale;

/* --- report_scale.c --- */

/* A scale for values from `low` to `high`, drawn from `from` to `to`; both NaN: there are none. */
scale scale_make(const plot_axis *axis, double low, double high, double from, double to);
double scale_at(const scale *s, double x);
/* Whether a value has a place on an axis of this kind. */
bool scale_shows(bool log, double x);

/* --- report_marks.c --- */

/* The outline of a style's mark around 0, 0. */
const char *mark_path(uint32_t style);
typedef struct label_place {
    double x, y, width;
    uint32_t number;
} label_place;
/* Moves labels, which stand at their points, beside them so that they cover as little as possible. */
void labels_place(label_place *labels, size_t count, double left, double top, double right, double bottom);

/* --- report_heat.c --- */

/* Values of rows and columns, NaN: none; colours from 0 to `high`. A figure as plot_figure() makes it. */
typedef struct heat {
    const char *title, *note, *row_name, *column_name;
    const double *values; /* [rows][columns] */
    const double *row_ids; /* [rows] */
    size_t rows, columns;
    double high;
} heat;
void heat_figure(page *p, const heat *h);
void heat_table(page *p, const heat *h);

/* --- the parts --- */

/* report_policies.c: perplexity and replay; report_heads.c: their layers and heads; report_latency.c: bench. */
void report_policies(page *p, const report_file *file);
/* Colour and shape of a policy, by the name before the first comma. */
uint32_t report_style(const char *policy);
void report_heads(page *p, const cJSON *policies);
void report_latency(page *p, const report_file *file);

#endif
