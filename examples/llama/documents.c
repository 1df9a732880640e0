/* SPDX-License-Identifier: Apache-2.0 */
#include "documents.h"

#include <stdio.h>
#include <stdlib.h>

static size_t needed(const run_shape *s) { return (size_t)s->context + s->decode; }

/* Tokens between the beginnings of documents, all sets together. */
static size_t step_of(const documents *d) { return (d->n[0] - needed(&d->shape) - 2) / ((size_t)d->shape.docs * d->shape.sets); }

const int32_t *documents_ids(const documents *d, uint32_t doc) {
    if (d->shape.at_end)
        return d->ids[doc] + (d->n[doc] - needed(&d->shape) - 1);
    return d->ids[0] + ((size_t)doc * d->shape.sets + d->shape.set) * step_of(d);
}

static bool read_one(documents *d, const loaded *l, const char *path, uint32_t i) {
    size_t size = 0;
    char *text = read_file(path, &size);
    if (!text) {
        fprintf(stderr, "prhs-llama: %s cannot be read\n", path);
        return false;
    }
    d->n[i] = bpe_encode(l->tokens, text, size, &d->ids[i]);
    free(text);
    const size_t need = needed(&d->shape) + 2;
    if (d->n[i] == SIZE_MAX || d->n[i] < need || needed(&d->shape) > l->m.context) {
        fprintf(stderr, "prhs-llama: %s has %zu tokens; a document needs %zu, and the model reads %u at most\n", path, d->n[i], need,
                l->m.context);
        return false;
    }
    return true;
}

bool documents_read(documents *d, const loaded *l, char *const *files, uint32_t count, run_shape *shape) {
    if (shape->at_end)
        shape->docs = count;
    *d = (documents){ calloc(count, sizeof *d->ids), calloc(count, sizeof *d->n), count, *shape };
    bool ok = d->ids && d->n;
    for (uint32_t i = 0; ok && i < count; i++)
        ok = read_one(d, l, files[i], i);
    if (ok && shape->sets > 1 && step_of(d) < needed(shape) + 1) {
        fprintf(stderr, "prhs-llama: %s is too short for %u sets of %u documents\n", files[0], shape->sets, shape->docs);
        return false;
    }
    return ok;
}

void documents_free(documents *d) {
    for (uint32_t i = 0; d->ids && i < d->files; i++)
        free(d->ids[i]);
    free(d->ids);
    free(d->n);
    *d = (documents){ 0 };
}
