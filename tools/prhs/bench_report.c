/* SPDX-License-Identifier: Apache-2.0 */
/* The table on standard output, and the JSON document. */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

typedef struct report {
    cJSON *root, *rows;
    FILE *table; /* standard error when the document goes to standard output */
    bench_shape shape;
    const char *section;
    char last[80]; /* name of the last row that does not belong to another */
} report;

void bench_report_begin(bench *b) {
    report *r = bench_alloc(1, sizeof *r);
    b->report = r;
    r->table = b->o->json && strcmp(b->o->json, "-") == 0 ? stderr : stdout;
    r->root = cJSON_CreateObject();
    cJSON_AddStringToObject(r->root, "kind", "bench");
    cJSON_AddNumberToObject(r->root, "format", 1);
    cJSON_AddNumberToObject(r->root, "version", prhs_version());
    cJSON_AddStringToObject(r->root, "backend", prhs_backend_name(b->info.backend));
    cJSON_AddStringToObject(r->root, "device", b->info.name);
    cJSON_AddStringToObject(r->root, "platform", b->info.platform);
    cJSON_AddStringToObject(r->root, "driver", b->info.driver);
    cJSON_AddNumberToObject(r->root, "compute_units", b->info.compute_units);
    cJSON_AddNumberToObject(r->root, "copy_bytes_per_second", b->copy_rate);
    cJSON_AddNumberToObject(r->root, "page_size", b->o->page_size);
    cJSON_AddStringToObject(r->root, "layout", b->o->nhd ? "nhd" : "hnd");
    cJSON_AddNumberToObject(r->root, "kept_part", b->o->kept_part);
    cJSON_AddNumberToObject(r->root, "caps", b->info.caps);
    cJSON_AddBoolToObject(r->root, "graphs", b->graphs);
    r->rows = cJSON_AddArrayToObject(r->root, "rows");
    fprintf(r->table, "%s: %s (%s), %u compute units\nmemory: ", prhs_backend_name(b->info.backend), b->info.name, b->info.platform,
            b->info.compute_units);
    if (b->read_rate > 0)
        fprintf(r->table, "read %.1f GB/s, ", b->read_rate * 1e-9);
    fprintf(r->table, "copy %.1f GB/s (read + write)\n", b->copy_rate * 1e-9);
}

static void heading(report *r, const bench_row *row) {
    if (r->section && strcmp(r->section, row->section) == 0 && memcmp(&r->shape, &row->shape, sizeof r->shape) == 0)
        return;
    r->section = row->section;
    r->shape = row->shape;
    fprintf(r->table, "\n%s: %u x %u tokens, %u query heads, %u KV heads of %u; sparse calls keep %u tokens\n", row->section,
            row->shape.batch, row->shape.n, row->shape.heads, row->shape.kv_heads, row->shape.dim, row->shape.kept);
    fprintf(r->table, "  %-46s %10s %10s %10s %10s %9s %8s %8s %8s %8s %8s %7s\n", "", "median us", "min", "max", "mean", "MB", "GB/s",
            "of read", "of copy", "x dense", "worst", "rho");
}

static void cell(FILE *f, double value, int width, int digits) {
    if (value > 0)
        fprintf(f, " %*.*f", width, digits, value);
    else
        fprintf(f, " %*s", width, "-");
}

static double rate_of(const bench_row *row) { return row->bytes > 0 && row->median > 0 ? row->bytes / row->median : 0; }
static double speedup_of(const bench_row *row) { return row->dense > 0 && row->mean > 0 ? row->dense / row->mean : 0; }
static double share(double rate, double of) { return of > 0 ? rate / of : 0; }

void bench_report_row(bench *b, const bench_row *row) {
    if (b->on_row) {
        b->on_row(b->user, row);
        return;
    }
    report *r = b->report;
    FILE *f = r->table;
    heading(r, row);
    fprintf(f, "  %-46s", row->name);
    cell(f, row->median * 1e6, 10, 2);
    cell(f, row->min * 1e6, 10, 2);
    cell(f, row->max * 1e6, 10, 2);
    cell(f, row->mean * 1e6, 10, 2);
    cell(f, row->bytes * 1e-6, 9, 2);
    cell(f, rate_of(row) * 1e-9, 8, 2);
    cell(f, share(rate_of(row), b->host_reads ? b->read_rate : b->dense_rate), 8, 3);
    cell(f, share(rate_of(row), b->copy_rate), 8, 3);
    cell(f, speedup_of(row), 8, 2);
    cell(f, row->worst_of_median, 8, 3);
    cell(f, row->rho, 7, 4);
    fputc('\n', f);
    fflush(f);
    bench_report_add(b, row);
}

void bench_report_add(bench *b, const bench_row *row) {
    report *r = b->report;
    cJSON *j = cJSON_CreateObject();
    const char *name = row->name + strspn(row->name, " ");
    cJSON_AddStringToObject(j, "section", row->section);
    cJSON_AddStringToObject(j, "name", name);
    const double shape[] = { row->shape.batch, row->shape.n, row->shape.heads, row->shape.kv_heads, row->shape.dim };
    cJSON_AddItemToObject(j, "shape", cJSON_CreateDoubleArray(shape, 5));
    const struct {
        const char *key;
        double value;
    } numbers[] = {
        { "kept", row->shape.kept },    { "calls", row->calls },       { "median_s", row->median },  { "min_s", row->min },
        { "max_s", row->max },          { "mean_s", row->mean },       { "bytes", row->bytes },      { "bytes_per_s", rate_of(row) },
        { "of_copy", share(rate_of(row), b->copy_rate) },              { "dense_s", row->dense },    { "times_dense", speedup_of(row) },
        { "rho", row->rho },            { "rotation_bytes", row->rotation },                         { "host_s", row->host },
        { "launches", row->launches },  { "flops", row->flops },       { "worst_of_median", row->worst_of_median },
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (numbers[i].value > 0)
            cJSON_AddNumberToObject(j, numbers[i].key, numbers[i].value);
    if (row->name != name) /* what belongs to the row above is named after it */
        cJSON_AddStringToObject(j, "of", r->last);
    else
        snprintf(r->last, sizeof r->last, "%s", name);
    cJSON_AddItemToArray(r->rows, j);
}

void bench_report_number(bench *b, const char *key, double value) {
    report *r = b->report;
    cJSON_AddNumberToObject(r->root, key, value);
}

void bench_report_note(bench *b, const char *key, double value, const char *text) {
    report *r = b->report;
    fprintf(r->table, "  %s\n", text);
    fflush(r->table);
    if (key)
        bench_report_number(b, key, value);
}

/* Shares of the read rate, which is known now. */
static void finish(bench *b) {
    report *r = b->report;
    double read = b->host_reads ? b->read_rate : b->dense_rate;
    cJSON *row;
    cJSON_AddNumberToObject(r->root, "read_bytes_per_second", read);
    cJSON_AddStringToObject(r->root, "read_by", b->host_reads ? "host threads" : "own dense attention, the best shape");
    cJSON_ArrayForEach(row, r->rows) {
        const cJSON *rate = cJSON_GetObjectItem(row, "bytes_per_s");
        if (rate && read > 0)
            cJSON_AddNumberToObject(row, "of_read", rate->valuedouble / read);
    }
}

bool bench_report_end(bench *b) {
    report *r = b->report;
    bool good = true;
    finish(b);
    if (b->o->json) {
        char *text = cJSON_Print(r->root);
        FILE *f = strcmp(b->o->json, "-") == 0 ? stdout : fopen(b->o->json, "w");
        good = text && f && fprintf(f, "%s\n", text) > 0;
        if (f && f != stdout)
            good = fclose(f) == 0 && good;
        if (!good)
            fprintf(stderr, "prhs bench: could not write %s\n", b->o->json);
        cJSON_free(text);
    }
    cJSON_Delete(r->root);
    free(r);
    return good;
}
