/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever a document holds, as tables under its own keys. */
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { DEPTH = 4, COLUMNS = 96, SHORT_LIST = 5, WIDE = 512, SECTIONED = 4096 };

/* Keys that lead to a value. */
typedef struct column {
    const char *keys[DEPTH];
    int depth;
    bool text;
    char *name;
} column;

typedef struct columns {
    column all[COLUMNS];
    size_t count;
} columns;

typedef struct row {
    const cJSON *o;
    const char *of; /* the row of another table that this one belongs to; NULL: none */
    uint32_t number;
} row;

static bool of_numbers(const cJSON *x) {
    const cJSON *item;
    cJSON_ArrayForEach(item, x) {
        if (!cJSON_IsNumber(item) && !cJSON_IsNull(item))
            return false;
    }
    return cJSON_IsArray(x);
}

static bool of_objects(const cJSON *x) { return cJSON_IsArray(x) && cJSON_IsObject(x->child); }
static bool is_short(const cJSON *x) { return of_numbers(x) && cJSON_GetArraySize(x) <= SHORT_LIST; }

static const cJSON *value_at(const cJSON *o, const column *c) {
    for (int i = 0; i < c->depth; i++)
        o = cJSON_GetObjectItemCaseSensitive(o, c->keys[i]);
    return o;
}

static char *joined(const column *c) {
    size_t size = 1;
    for (int i = 0; i < c->depth; i++)
        size += strlen(c->keys[i]) + 1;
    char *name = report_alloc(size, 1);
    for (int i = 0; i < c->depth; i++) {
        if (i)
            strcat(name, ".");
        strcat(name, c->keys[i]);
    }
    return name;
}

static void add_column(columns *all, const column *c, bool text) {
    for (size_t i = 0; i < all->count; i++)
        if (all->all[i].depth == c->depth) {
            int same = 0;
            while (same < c->depth && strcmp(all->all[i].keys[same], c->keys[same]) == 0)
                same++;
            if (same == c->depth) {
                all->all[i].text |= text;
                return;
            }
        }
    if (all->count == COLUMNS)
        return;
    all->all[all->count] = *c;
    all->all[all->count].text = text;
    all->all[all->count++].name = joined(c);
}

/* Members that fit into a cell, in their order. */
static void find_columns(columns *all, const cJSON *o, column at) {
    const cJSON *x;
    if (at.depth == DEPTH)
        return;
    at.depth++;
    cJSON_ArrayForEach(x, o) {
        at.keys[at.depth - 1] = x->string ? x->string : "";
        if (cJSON_IsObject(x))
            find_columns(all, x, at);
        else if (!cJSON_IsArray(x) || is_short(x))
            add_column(all, &at, cJSON_IsString(x));
    }
}

static void free_columns(columns *all) {
    for (size_t i = 0; i < all->count; i++)
        free(all->all[i].name);
    free(all);
}

static void cell(page *p, const cJSON *x, bool text) {
    const cJSON *item;
    page_raw(p, text ? "<td class=\"t\">" : "<td>");
    if (cJSON_IsString(x))
        page_text(p, x->valuestring);
    else if (cJSON_IsBool(x))
        page_raw(p, cJSON_IsTrue(x) ? "true" : "false");
    else if (cJSON_IsNumber(x))
        page_number(p, x->valuedouble);
    else if (cJSON_IsArray(x))
        cJSON_ArrayForEach(item, x) {
            if (item != x->child)
                page_raw(p, ", ");
            if (cJSON_IsNumber(item))
                page_number(p, item->valuedouble);
            else
                page_raw(p, "–");
        }
    else
        page_raw(p, "–");
    page_raw(p, "</td>");
}

void table_of_members(page *p, const char *caption, const cJSON *object) {
    static const char *const heads[] = { "<key", "<value" };
    columns *all = report_alloc(1, sizeof *all);
    find_columns(all, object, (column){ { 0 }, 0, false, NULL });
    if (all->count) {
        table_begin(p, caption, heads, 2);
        for (size_t i = 0; i < all->count; i++) {
            table_row(p);
            table_text(p, all->all[i].name);
            cell(p, value_at(object, &all->all[i]), true);
            table_row_end(p);
        }
        table_end(p);
    }
    free_columns(all);
}

/* What a row is called in the tables of its lists. */
static char *label_of(const row *r, const char *key) {
    const char *own = report_string(r->o, "policy", report_string(r->o, "text", report_string(r->o, "name", NULL)));
    const double layer = report_number(r->o, "layer");
    char counted[64];
    if (layer == layer)
        snprintf(counted, sizeof counted, "layer %.0f", layer);
    else
        snprintf(counted, sizeof counted, "%.32s %u", key, r->number);
    own = own ? own : counted;
    const size_t size = strlen(own) + (r->of ? strlen(r->of) : 0) + 8;
    char *label = report_alloc(size, 1);
    snprintf(label, size, "%s%s%s", r->of ? r->of : "", r->of ? " · " : "", own);
    return label;
}

static void tables(page *p, const char *key, const row *rows, size_t count);

/* Lists of numbers, one a row, their places as columns. */
static void matrix(page *p, const char *key, const row *rows, size_t count, char *const *labels) {
    static const char *const heads[] = { "<of", "values, in order" };
    table_begin(p, key, heads, 2);
    for (size_t i = 0; i < count; i++) {
        const cJSON *list = cJSON_GetObjectItemCaseSensitive(rows[i].o, key), *item;
        int room = WIDE;
        if (!of_numbers(list) || is_short(list))
            continue;
        table_row(p);
        table_text(p, labels[i]);
        cJSON_ArrayForEach(item, list) {
            if (room-- > 0)
                cell(p, item, false);
        }
        table_row_end(p);
    }
    table_end(p);
}

/* The lists of objects under `key`, all rows' together. */
static void nested(page *p, const char *key, const row *rows, size_t count, char *const *labels) {
    size_t n = 0;
    const cJSON *item;
    for (size_t i = 0; i < count; i++)
        n += (size_t)cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(rows[i].o, key));
    row *inner = report_alloc(n, sizeof *inner);
    n = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t number = 0;
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(rows[i].o, key)) {
            number++;
            if (cJSON_IsObject(item))
                inner[n++] = (row){ item, labels[i], number };
        }
    }
    tables(p, key, inner, n);
    free(inner);
}

/* Each key that holds a list in some row, once: it is worked on where it appears first. */
static void lists(page *p, const char *parent, const row *rows, size_t count) {
    char **labels = report_alloc(count, sizeof *labels);
    for (size_t i = 0; i < count; i++)
        labels[i] = label_of(&rows[i], parent);
    for (size_t i = 0; i < count; i++) {
        const cJSON *x;
        cJSON_ArrayForEach(x, rows[i].o) {
            bool seen = !x->string || !(of_objects(x) || (of_numbers(x) && !is_short(x)));
            for (size_t j = 0; j < i && !seen; j++) {
                const cJSON *other = cJSON_GetObjectItemCaseSensitive(rows[j].o, x->string);
                seen = of_objects(other) || (of_numbers(other) && !is_short(other));
            }
            if (!seen && of_objects(x))
                nested(p, x->string, rows, count, labels);
            else if (!seen)
                matrix(p, x->string, rows, count, labels);
        }
    }
    for (size_t i = 0; i < count; i++)
        free(labels[i]);
    free(labels);
}

static void table(page *p, const char *key, const row *rows, size_t count) {
    const char *heads[COLUMNS + 2];
    size_t n = 0;
    columns *all = report_alloc(1, sizeof *all);
    for (size_t i = 0; i < count; i++)
        find_columns(all, rows[i].o, (column){ { 0 }, 0, false, NULL });
    if (rows[0].of)
        heads[n++] = "<of";
    heads[n++] = "#";
    char **names = report_alloc(all->count, sizeof *names);
    for (size_t i = 0; i < all->count; i++) {
        const size_t size = strlen(all->all[i].name) + 2;
        names[i] = report_alloc(size, 1);
        snprintf(names[i], size, "%s%s", all->all[i].text ? "<" : "", all->all[i].name);
        heads[n++] = names[i];
    }
    table_begin(p, key, heads, n);
    for (size_t i = 0; i < count; i++) {
        table_row(p);
        if (rows[0].of)
            table_text(p, rows[i].of ? rows[i].of : "");
        table_number(p, rows[i].number);
        for (size_t j = 0; j < all->count; j++)
            cell(p, value_at(rows[i].o, &all->all[j]), all->all[j].text);
        table_row_end(p);
    }
    table_end(p);
    for (size_t i = 0; i < all->count; i++)
        free(names[i]);
    free(names);
    free_columns(all);
}

static void tables(page *p, const char *key, const row *rows, size_t count) {
    if (count == 0)
        return;
    table(p, key, rows, count);
    lists(p, key, rows, count);
}

/* Rows that name a section get a table for each. */
static void by_section(page *p, const char *key, const row *rows, size_t count) {
    if (count > SECTIONED) {
        tables(p, key, rows, count);
        return;
    }
    row *part = report_alloc(count, sizeof *part);
    for (size_t i = 0; i < count; i++) {
        const char *section = report_string(rows[i].o, "section", "");
        size_t n = 0;
        bool seen = false;
        for (size_t j = 0; j < count; j++)
            if (strcmp(report_string(rows[j].o, "section", ""), section) == 0) {
                seen |= j < i;
                part[n++] = rows[j];
            }
        if (!seen)
            tables(p, *section ? section : key, part, n);
    }
    free(part);
}

void table_of_lists(page *p, const cJSON *object) {
    const cJSON *x, *item;
    cJSON_ArrayForEach(x, object) {
        if (cJSON_IsObject(x))
            table_of_lists(p, x);
        size_t n = 0;
        if (of_objects(x)) {
            row *rows = report_alloc((size_t)cJSON_GetArraySize(x), sizeof *rows);
            cJSON_ArrayForEach(item, x) {
                if (cJSON_IsObject(item)) {
                    rows[n] = (row){ item, NULL, (uint32_t)n + 1 };
                    n++;
                }
            }
            by_section(p, x->string ? x->string : "", rows, n);
            free(rows);
        } else if (of_numbers(x) && !is_short(x) && x->string) {
            char label[] = "", *labels[] = { label };
            matrix(p, x->string, &(row){ object, NULL, 1 }, 1, labels);
        }
    }
}
