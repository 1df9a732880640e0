/* SPDX-License-Identifier: Apache-2.0 */
/* Marks that differ in shape, and places for the numbers beside them. */
#include <math.h>
#include <stdlib.h>

#include "report.h"

const char *mark_path(uint32_t style) {
    static const char *const paths[PLOT_STYLES] = {
        "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
        "M-4-4h8v8h-8z",
        "M0-5.5L5 4H-5z",
        "M0-6L5 0L0 6L-5 0z",
        "M0 5.5L5-4H-5z",
        "M-1.7-5.5h3.4v3.8h3.8v3.4h-3.8v3.8h-3.4v-3.8h-3.8v-3.4h3.8z",
        "M-5-3L-3-5L0-2L3-5L5-3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0z",
        "M-2.8-5h5.6L5.6 0L2.8 5h-5.6L-5.6 0z",
        "M0-6L1.6-2L6-1.9L2.6.8L3.8 5L0 2.6L-3.8 5L-2.6.8L-6-1.9L-1.6-2z",
    };
    return paths[style % PLOT_STYLES];
}

typedef struct box {
    double left, top, right, bottom;
} box;

enum { HEIGHT = 14, AROUND = 6, RINGS = 4, PASSES = 4 };

/* Around a label whose text is centred at x, y. */
static box box_of(const label_place *l) { return (box){ l->x - l->width / 2, l->y - HEIGHT / 2.0, l->x + l->width / 2, l->y + HEIGHT / 2.0 }; }

static double overlap(const box *a, const box *b) {
    const double w = fmin(a->right, b->right) - fmax(a->left, b->left), h = fmin(a->bottom, b->bottom) - fmax(a->top, b->top);
    return w > 0 && h > 0 ? w * h : 0;
}

/* What is against a label there: other labels' marks and texts, those from `placed` on excepted, which have no place yet. */
static double cost_of(const label_place *at, const label_place *labels, const box *marks, size_t count, size_t own, size_t placed,
                      const box *room) {
    const box b = box_of(at);
    double cost = b.left < room->left || b.top < room->top || b.right > room->right || b.bottom > room->bottom ? 1000 : 0;
    for (size_t j = 0; j < count; j++) {
        const box other = box_of(&labels[j]);
        cost += overlap(&b, &marks[j]) * 2 + (j < placed && j != own ? overlap(&b, &other) * 4 : 0);
    }
    return cost;
}

void labels_place(label_place *labels, size_t count, double left, double top, double right, double bottom) {
    static const signed char ways[][2] = { { 1, 0 }, { 1, -1 }, { 0, -1 }, { -1, -1 }, { -1, 0 }, { -1, 1 }, { 0, 1 }, { 1, 1 } };
    const size_t n_ways = sizeof ways / sizeof ways[0];
    const box room = { left, top, right, bottom };
    box *marks = report_alloc(count, sizeof *marks);
    label_place *at_mark = report_alloc(count, sizeof *at_mark);
    for (size_t i = 0; i < count; i++) {
        at_mark[i] = labels[i];
        marks[i] = (box){ labels[i].x - AROUND, labels[i].y - AROUND, labels[i].x + AROUND, labels[i].y + AROUND };
    }
    /* One after the other; then each anew, now that all others have a place: the first ones did not know of those to come. */
    for (size_t n = 0; n < PASSES * count; n++) {
        const size_t i = n % count, placed = n < count ? i : count;
        label_place best = labels[i];
        double least = INFINITY;
        for (size_t w = 0; w < RINGS * n_ways; w++) { /* close by, then further and further */
            const signed char *way = ways[w % n_ways];
            const double away = 1 + (double)(w / n_ways);
            label_place at = at_mark[i];
            at.x += way[0] * (AROUND * away + at.width / 2);
            at.y += way[1] * (AROUND * away + HEIGHT / 2.0 - (way[0] ? 3 : 0));
            const double cost = (double)w * 0.5 + cost_of(&at, labels, marks, count, i, placed, &room);
            if (cost < least) {
                least = cost;
                best = at;
            }
        }
        labels[i] = best;
    }
    free(at_mark);
    free(marks);
}
