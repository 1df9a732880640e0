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

enum { HEIGHT = 12, AROUND = 6 };

/* Around a label whose text is centred at x, y. */
static box box_of(const label_place *l) { return (box){ l->x - l->width / 2, l->y - HEIGHT / 2.0, l->x + l->width / 2, l->y + HEIGHT / 2.0 }; }

static double overlap(const box *a, const box *b) {
    const double w = fmin(a->right, b->right) - fmax(a->left, b->left), h = fmin(a->bottom, b->bottom) - fmax(a->top, b->top);
    return w > 0 && h > 0 ? w * h : 0;
}

void labels_place(label_place *labels, size_t count, double left, double top, double right, double bottom) {
    static const signed char ways[][2] = { { 1, 0 }, { 1, -1 }, { 0, -1 }, { -1, -1 }, { -1, 0 }, { -1, 1 }, { 0, 1 }, { 1, 1 } };
    const size_t n_ways = sizeof ways / sizeof ways[0];
    box *marks = report_alloc(count, sizeof *marks);
    for (size_t i = 0; i < count; i++)
        marks[i] = (box){ labels[i].x - AROUND, labels[i].y - AROUND, labels[i].x + AROUND, labels[i].y + AROUND };
    for (size_t i = 0; i < count; i++) {
        label_place best = labels[i];
        double least = INFINITY;
        for (size_t w = 0; w < 2 * n_ways; w++) { /* close by, then a little further */
            const double away = w < n_ways ? 1 : 2;
            label_place at = labels[i];
            at.x += ways[w % n_ways][0] * (AROUND * away + at.width / 2);
            at.y += ways[w % n_ways][1] * (AROUND * away + HEIGHT / 2.0 - (ways[w % n_ways][0] ? 3 : 0));
            box b = box_of(&at);
            double cost = (double)w * 0.5 + (b.left < left || b.top < top || b.right > right || b.bottom > bottom ? 1000 : 0);
            for (size_t j = 0; j < count; j++) {
                const box other = box_of(&labels[j]);
                cost += overlap(&b, &marks[j]) * 2 + (j < i ? overlap(&b, &other) * 4 : 0);
            }
            if (cost < least) {
                least = cost;
                best = at;
            }
        }
        labels[i] = best;
    }
    free(marks);
}
