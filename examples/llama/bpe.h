/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-level BPE from a GGUF's own vocabulary and merges, with the pre-tokenizer that the file names (smollm, gpt-2). */
#ifndef BPE_H
#define BPE_H

#include "gguf.h"

typedef struct bpe bpe;

/* NULL on failure, with one sentence in `error`. Keeps pointers into g. */
bpe *bpe_open(const gguf *g, char *error, size_t cap);
void bpe_close(bpe *b);

/* Token ids of a text; *ids is malloc'ed. Returns how many, or SIZE_MAX where memory ran out. */
size_t bpe_encode(const bpe *b, const char *text, size_t size, int32_t **ids);
/* The bytes of a token into out (cap >= 256 suffices for any); returns their number. */
size_t bpe_decode(const bpe *b, int32_t id, char *out, size_t cap);
int32_t bpe_eos(const bpe *b);
/* Tokens of the vocabulary: every id is below. */
uint64_t bpe_count(const bpe *b);

#endif
