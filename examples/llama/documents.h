/* SPDX-License-Identifier: Apache-2.0 */
/* Texts as documents of a fixed number of tokens. */
#ifndef DOCUMENTS_H
#define DOCUMENTS_H

#include "options.h"
#include "report.h"

typedef struct documents {
    int32_t **ids;    /* [files], with n[files] tokens each */
    size_t *n;
    uint32_t files;
    run_shape shape;
} documents;

/*
 * shape.at_end: a document a file, its last tokens; sets shape.docs. Else one file, whose documents are spread evenly: those of set
 * shape.set of shape.sets, which have no token in common with the other sets'. false: a sentence was written.
 */
bool documents_read(documents *d, const loaded *l, char *const *files, uint32_t count, run_shape *shape);
void documents_free(documents *d);
/* context + decode tokens, and the one after them. */
const int32_t *documents_ids(const documents *d, uint32_t doc);

#endif
