/* SPDX-License-Identifier: Apache-2.0 */
/* Documents, and what kind each one is. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { FORMAT = 1 }; /* the newest that is known */
static const size_t size_limit = (size_t)256 << 20;

void *report_alloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) {
        fprintf(stderr, "prhs report: there is no memory\n");
        exit(TOOL_FAILED);
    }
    return p;
}

double report_number(const cJSON *object, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(x) && isfinite(x->valuedouble) ? x->valuedouble : NAN;
}

double report_number_at(const cJSON *object, const char *dotted) {
    const char *dot = strchr(dotted, '.');
    char head[32];
    if (!dot)
        return report_number(object, dotted);
    snprintf(head, sizeof head, "%.*s", (int)(dot - dotted), dotted);
    return report_number_at(cJSON_GetObjectItemCaseSensitive(object, head), dot + 1);
}

const char *report_string(const cJSON *object, const char *key, const char *otherwise) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsString(x) ? x->valuestring : otherwise;
}

/* NULL: no memory, or larger than the limit. */
static char *read_stream(FILE *f, size_t *size) {
    size_t room = 1 << 16, got;
    char *text = malloc(room + 1);
    for (*size = 0; text && (got = fread(text + *size, 1, room - *size, f)) > 0;) {
        *size += got;
        if (*size < room)
            continue;
        char *more = room < size_limit ? realloc(text, 2 * room + 1) : NULL;
        if (!more)
            free(text);
        text = more;
        room *= 2;
    }
    if (text)
        text[*size] = 0;
    return text;
}

static char *read_all(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    if (f) {
        text = read_stream(f, size);
        if (!text)
            fprintf(stderr, "prhs report: %s is too large\n", path);
    }
    if (!f || (text && ferror(f))) {
        fprintf(stderr, "prhs report: %s cannot be read: %s\n", path, strerror(errno));
        free(text);
        text = NULL;
    }
    if (f)
        fclose(f);
    return text;
}

static cJSON *parse(const char *path, const char *text, size_t size) {
    const char *end = text;
    cJSON *root = cJSON_ParseWithLengthOpts(text, size + 1, &end, true);
    if (root)
        return root;
    if (size == 0)
        fprintf(stderr, "prhs report: %s is empty\n", path);
    else
        fprintf(stderr, "prhs report: %s is no JSON document, or a damaged one (byte %zu of %zu)\n", path, (size_t)(end - text), size);
    return NULL;
}

static const cJSON *list(const cJSON *root, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(root, key);
    return cJSON_IsArray(x) ? x : NULL;
}

/* Whether all of a list are objects with a string `key`; a missing list has none that are not. */
static bool named(const char *path, const cJSON *root, const char *where, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(root, where), *item;
    uint32_t at = 0;
    if (x && !cJSON_IsArray(x)) {
        fprintf(stderr, "prhs report: %s is damaged: '%s' is no list\n", path, where);
        return false;
    }
    cJSON_ArrayForEach(item, x) {
        at++;
        if (!cJSON_IsObject(item) || !report_string(item, key, NULL)) {
            fprintf(stderr, "prhs report: %s is damaged: entry %u of '%s' has no '%s'\n", path, at, where, key);
            return false;
        }
    }
    return true;
}

/* Each kind's lists. */
static bool whole(const report_file *file) {
    const cJSON *root = file->root, *text;
    if (file->kind == REPORT_BENCH)
        return named(file->path, root, "rows", "name");
    if (file->kind == REPORT_REFERENCE)
        return true;
    if (!named(file->path, root, "policies", "policy") || !named(file->path, root, "texts", "text"))
        return false;
    cJSON_ArrayForEach(text, list(root, "texts")) {
        if (!named(file->path, text, "policies", "policy"))
            return false;
    }
    const cJSON *sweep = cJSON_GetObjectItemCaseSensitive(root, "sweep");
    return !cJSON_IsObject(sweep) || named(file->path, sweep, "points", "policy");
}

/* By its kind, or by what it holds. */
static bool recognise(report_file *file) {
    const cJSON *root = file->root;
    static const struct {
        const char *name;
        report_kind kind;
    } kinds[] = { { "perplexity", REPORT_PERPLEXITY }, { "replay", REPORT_REPLAY }, { "bench", REPORT_BENCH } };
    const char *kind = report_string(root, "kind", NULL);
    for (size_t i = 0; kind && i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(kind, kinds[i].name) == 0) {
            file->kind = kinds[i].kind;
            return true;
        }
    if (kind || !cJSON_IsObject(root))
        return false;
    if (cJSON_GetObjectItemCaseSensitive(root, "trace"))
        file->kind = REPORT_REPLAY;
    else if (list(root, "rows") && report_number(root, "copy_bytes_per_second") > 0)
        file->kind = REPORT_BENCH;
    else if ((list(root, "policies") || list(root, "texts")) && report_number(root, "decode") > 0)
        file->kind = REPORT_PERPLEXITY;
    else if (list(root, "documents") && report_number(root, "nll") == report_number(root, "nll"))
        file->kind = REPORT_REFERENCE;
    else
        return false;
    return true;
}

bool report_read(const char *path, report_file *file) {
    const char *slash = strrchr(path, '/');
    size_t size = 0;
    char *text = read_all(path, &size);
    *file = (report_file){ .path = path, .name = slash ? slash + 1 : path };
    if (!text)
        return false;
    file->root = parse(path, text, size);
    free(text);
    if (!file->root)
        return false;
    if (!recognise(file)) {
        fprintf(stderr, "prhs report: %s is no document of 'prhs-llama perplexity', 'prhs replay' or 'prhs bench'\n", path);
        return false;
    }
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(file->root, "format");
    if (format && !(cJSON_IsNumber(format) && format->valuedouble >= 1 && format->valuedouble <= FORMAT)) {
        fprintf(stderr, "prhs report: %s has a format that this version does not know (it knows %d)\n", path, FORMAT);
        return false;
    }
    return whole(file);
}
