/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Damaged GGUF files: each ends in one sentence or opens and can be used; nothing reads outside the file, crashes or hangs.
 * usage: gguf-damage [SEED]
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiny.h"

#define FLIPPED 4000 /* files with random bits flipped */

/* Where the fields of tiny_file are. */
typedef struct layout {
    size_t tensors, entries, first_key, string_type, string, array_type, array_item, array_count, array_text, align_type, align;
    size_t tensor_name, rank, dim, type, offset, end;
} layout;

static const char *const vocabulary[] = { "a", "b", "ab", "\304\240", "\304\240ab", "<eos>" };
static const uint64_t square[2] = { 32, 3 };

/* Every kind of value, three tensors; the last one's data ends the file. */
static void tiny_file(bytes *b, layout *l) {
    put_header(b, 3, 9);
    *l = (layout){ .tensors = 8, .entries = 16, .first_key = b->size };
    put_key_text(b, "general.architecture", "llama");
    l->string = b->size + 8 + strlen("tokenizer.ggml.model") + 4;
    l->string_type = l->string - 4;
    put_key_text(b, "tokenizer.ggml.model", "gpt2");
    put_key_text(b, "tokenizer.ggml.pre", "smollm");
    put_key_array(b, "tokenizer.ggml.tokens", 6);
    l->array_count = b->size - 8;
    l->array_item = b->size - 12;
    l->array_type = b->size - 16;
    l->array_text = b->size;
    for (int i = 0; i < 6; i++)
        put_text(b, vocabulary[i]);
    put_key_array(b, "tokenizer.ggml.merges", 2);
    put_text(b, "a b");
    put_text(b, "\xc4\xa0 ab");
    put_key_u32(b, "tokenizer.ggml.eos_token_id", 5);
    put_key_u32(b, "general.alignment", 64);
    l->align = b->size - 4;
    l->align_type = b->size - 8;
    put_text(b, "scores");
    put_u32(b, TINY_ARRAY);
    put_u32(b, TINY_F32);
    put_u64(b, 2);
    put_u64(b, 0);
    put_text(b, "big");
    put_u32(b, TINY_U64);
    put_u64(b, 1);
    l->tensor_name = b->size;
    put_tensor(b, "token_embd.weight", 2, square, 8, 0);
    l->offset = b->size - 8;
    l->type = b->size - 12;
    l->dim = b->size - 28;
    l->rank = b->size - 32;
    put_tensor(b, "norm", 1, square, 0, 128);
    put_tensor(b, "half", 2, square, 1, 256);
    l->end = b->size;
    put_align(b, 64);
    for (int i = 0; i < 256 + 192; i++)
        put(b, &(unsigned char){ (unsigned char)(i * 37) }, 1);
}

static void use_tokens(const gguf *g) {
    char error[256] = "";
    bpe *b = bpe_open(g, error, sizeof error);
    if (!b) {
        check(error[0] && !strchr(error, '\n'), "the tokenizer is refused without a sentence");
        return;
    }
    static const char text[] = "ab ab  a\xff 12 b";
    char *guarded = guard(text, sizeof text - 1);
    int32_t *ids = NULL;
    size_t n = bpe_encode(b, guarded, sizeof text - 1, &ids);
    check(n <= sizeof text - 1, "%zu tokens of %zu bytes", n, sizeof text - 1);
    for (size_t i = 0; n != SIZE_MAX && i < n; i++) {
        char piece[256];
        check(ids[i] >= 0 && bpe_decode(b, ids[i], piece, sizeof piece) <= sizeof piece, "token %zu is %d", i, (int)ids[i]);
    }
    free(ids);
    unguard(guarded, sizeof text - 1);
    bpe_eos(b);
    bpe_close(b);
}

/* Reads everything that can be asked for. */
static void use(const gguf *g, size_t file_size) {
    static const char *const keys[] = { "general.architecture",
                                        "tokenizer.ggml.model",
                                        "tokenizer.ggml.tokens",
                                        "general.alignment",
                                        "tokenizer.ggml.merges",
                                        "scores",
                                        "big",
                                        "" };
    static const char *const tensors[] = { "token_embd.weight", "norm", "half", "" };
    volatile unsigned sum = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        uint32_t whole = 0;
        float real = 0.0f;
        gguf_str text = { "", 0 };
        const unsigned char *cursor = NULL;
        gguf_u32(g, keys[i], &whole);
        gguf_f32(g, keys[i], &real);
        if (gguf_text(g, keys[i], &text))
            for (uint64_t j = 0; j < text.size; j++)
                sum += (unsigned char)text.data[j];
        for (uint64_t n = gguf_strings(g, keys[i], &cursor); n--;) {
            text = gguf_next(&cursor);
            if (text.size)
                sum += (unsigned char)text.data[text.size - 1];
        }
    }
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        const gguf_tensor *t = gguf_find(g, tensors[i]);
        if (!t || !t->data)
            continue;
        uint64_t n = gguf_elements(t);
        if (!check(n > 0 && n <= file_size, "a tensor of %" PRIu64 " elements in %zu bytes", n, file_size))
            continue;
        float *x = malloc(n * sizeof *x);
        check(x && gguf_floats(t, x), "a tensor of %" PRIu64 " elements cannot be read", n);
        free(x);
    }
    (void)sum; /* read, so that the bytes are */
    use_tokens(g);
}

/* Opens the bytes; what is refused is refused in one sentence about the file. `error` gets it. */
static bool opens(const bytes *b, const char *what, char *error, size_t cap) {
    memset(error, '?', cap);
    gguf *g = open_bytes(b, error, cap);
    if (g) {
        use(g, b->size);
        gguf_close(g);
        error[0] = 0;
        return true;
    }
    size_t path = strlen(scratch_path());
    const char *end = memchr(error, 0, cap);
    check(end && strncmp(error, scratch_path(), path) == 0 && end > error + path + 10 && !strchr(error, '\n'),
          "%s: refused without a proper sentence", what);
    return false;
}

static void copy(bytes *to, const bytes *from) {
    to->size = 0;
    put(to, from->data, from->size);
}

static void whole(const bytes *good) {
    char error[512];
    check(opens(good, "whole", error, sizeof error), "the undamaged file is refused: %s", error);
    gguf *g = open_bytes(good, error, sizeof error);
    if (!g)
        return;
    uint32_t eos = 0;
    gguf_str pre = { "", 0 };
    const unsigned char *cursor;
    check(gguf_u32(g, "tokenizer.ggml.eos_token_id", &eos) && eos == 5, "eos is %u", eos);
    check(gguf_text(g, "tokenizer.ggml.pre", &pre) && pre.size == 6 && memcmp(pre.data, "smollm", 6) == 0, "pre is wrong");
    check(gguf_strings(g, "tokenizer.ggml.tokens", &cursor) == 6, "the vocabulary has another length");
    check(!gguf_u32(g, "big", &eos) && eos == 5 && !gguf_text(g, "none", &pre) && !gguf_find(g, "nor"),
          "things that are not there");
    const gguf_tensor *t = gguf_find(g, "half");
    check(t && t->dims == 2 && t->dim[0] == 32 && t->dim[1] == 3 && t->type == 1 && gguf_elements(t) == 96,
          "tensor 'half' is wrong");
    gguf_close(g);
}

static void truncated(const bytes *good) {
    bytes b = { 0 };
    char error[512], what[64];
    for (size_t size = 0; size < good->size; size++) {
        copy(&b, good);
        b.size = size;
        snprintf(what, sizeof what, "first %zu bytes", size);
        check(!opens(&b, what, error, sizeof error), "%s: opened", what);
    }
    bytes_free(&b);
}

static void absurd(const bytes *good, const layout *l) {
    const struct {
        const char *what, *sentence;
        size_t at, size;
        uint64_t value;
    } cases[] = {
        { "bad magic", "no GGUF", 0, 4, 0x46554748 },
        { "version 0", "version", 4, 4, 0 },
        { "version 1", "version", 4, 4, 1 },
        { "version 4", "version", 4, 4, 4 },
        { "another byte order", "version", 4, 4, 0x03000000 },
        { "2^63 tensors", "counts", l->tensors, 8, UINT64_C(1) << 63 },
        { "2^64 - 1 tensors", "counts", l->tensors, 8, UINT64_MAX },
        { "four tensors", "", l->tensors, 8, 4 },
        { "2^63 entries", "counts", l->entries, 8, UINT64_C(1) << 63 },
        { "ten entries", "", l->entries, 8, 10 },
        { "key of 2^62 bytes", "metadata", l->first_key, 8, UINT64_C(1) << 62 },
        { "key of 2^64 - 1 bytes", "metadata", l->first_key, 8, UINT64_MAX },
        { "string of 2^62 bytes", "metadata", l->string, 8, UINT64_C(1) << 62 },
        { "string of 2^64 - 8 bytes", "metadata", l->string, 8, UINT64_MAX - 7 },
        { "unknown value type", "metadata", l->string_type, 4, 13 },
        { "value type 2^32 - 1", "metadata", l->string_type, 4, UINT32_MAX },
        { "array of arrays", "metadata", l->array_item, 4, TINY_ARRAY },
        { "array of an unknown type", "metadata", l->array_item, 4, 99 },
        { "array of 2^64 - 1 strings", "metadata", l->array_count, 8, UINT64_MAX },
        { "array of 2^61 strings", "metadata", l->array_count, 8, UINT64_C(1) << 61 },
        { "string in an array of 2^62 bytes", "metadata", l->array_text, 8, UINT64_C(1) << 62 },
        { "alignment 0", "alignment", l->align, 4, 0 },
        { "alignment 3", "alignment", l->align, 4, 3 },
        { "alignment 2^31", "alignment", l->align, 4, UINT32_C(1) << 31 },
        { "alignment 2^20, more than the file", "past the end", l->align, 4, 1 << 20 },
        { "alignment that is a float", "32-bit", l->align_type, 4, TINY_F32 },
        { "tensor name of 2^62 bytes", "description", l->tensor_name, 8, UINT64_C(1) << 62 },
        { "no dimensions", "description", l->rank, 4, 0 },
        { "five dimensions", "description", l->rank, 4, 5 },
        { "2^32 - 1 dimensions", "description", l->rank, 4, UINT32_MAX },
        { "dimension 0", "description", l->dim, 8, 0 },
        { "dimension 2^63", "description", l->dim, 8, UINT64_C(1) << 63 },
        { "product of 3 * 2^40", "description", l->dim, 8, UINT64_C(1) << 40 },
        { "more than the file holds", "past the end", l->dim, 8, 1 << 20 },
        { "rows of 33 in blocks of 32", "multiple", l->dim, 8, 33 },
        { "offset 2^63", "past the end", l->offset, 8, UINT64_C(1) << 63 },
        { "offset 2^64 - 64", "past the end", l->offset, 8, UINT64_MAX - 63 },
        { "offset at the end", "past the end", l->offset, 8, good->size - l->end },
    };
    bytes b = { 0 };
    char error[512];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        copy(&b, good);
        poke(&b, cases[i].at, cases[i].value, cases[i].size);
        check(!opens(&b, cases[i].what, error, sizeof error), "%s: opened", cases[i].what);
        check(strstr(error, cases[i].sentence) != NULL, "%s: another sentence: %.200s", cases[i].what, error);
    }
    bytes_free(&b);
}

/* Numbers whose bytes come out one too large, sign-extended, multiplied past 2^64 ... at every place of the description. */
static void numbers_everywhere(const bytes *good, const layout *l) {
    static const uint64_t values[] = { 0, 1, 7, 0x7fffffff, 0xffffffff, UINT64_C(1) << 61, UINT64_C(1) << 63, UINT64_MAX };
    bytes b = { 0 };
    char error[512], what[64];
    for (size_t at = 0; at + 8 <= l->end; at++)
        for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
            copy(&b, good);
            poke(&b, at, values[i], at % 2 ? 8 : 4);
            snprintf(what, sizeof what, "%" PRIx64 " at %zu", values[i], at);
            opens(&b, what, error, sizeof error);
        }
    bytes_free(&b);
}

static void flipped(const bytes *good, const layout *l, uint64_t seed) {
    bytes b = { 0 };
    char error[512], what[64];
    size_t opened = 0;
    uint64_t state = seed;
    for (int i = 0; i < FLIPPED; i++) {
        copy(&b, good);
        for (uint64_t n = 1 + draw(&state) % 8; n--;) {
            size_t bit = (size_t)(draw(&state) % (8 * (i % 4 ? l->end : good->size)));
            b.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        }
        snprintf(what, sizeof what, "flipped file %d", i);
        opened += opens(&b, what, error, sizeof error);
    }
    printf("seed %" PRIu64 ": %zu of %d files with flipped bits still open\n", seed, opened, FLIPPED);
    bytes_free(&b);
}

/* What is no model file at all, and a file with nothing in it. */
static void others(void) {
    char error[512];
    bytes b = { 0 };
    check(!opens(&b, "empty file", error, sizeof error), "empty file: opened");
    check(!gguf_open("/nonexistent/file.gguf", error, sizeof error) && strstr(error, "No such file"), "a file that is not there");
    check(!gguf_open("/", error, sizeof error) && error[0], "a folder");
    put_header(&b, 0, 0);
    check(opens(&b, "nothing in it", error, sizeof error), "a file with nothing in it is a file: %s", error);
    b.size = 0;
    put_header(&b, 0, 1);
    put_text(&b, "last");
    put_u32(&b, TINY_ARRAY);
    put_u32(&b, TINY_F32);
    put_u64(&b, UINT64_C(1) << 62);
    check(!opens(&b, "2^64 bytes of numbers at the end", error, sizeof error), "2^64 bytes of numbers at the end: opened");
    b.size = 0;
    put_header(&b, 1, 0);
    put_tensor(&b, "x", 5, (const uint64_t[]){ 1, 1, 1, 1, 1 }, 0, 0);
    put(&b, "some bytes of data, more than the alignment of thirty-two asks for", 64);
    check(!opens(&b, "five dimensions", error, sizeof error) && strstr(error, "description"), "five dimensions: %s", error);
    char small[4];
    memset(small, 'x', sizeof small);
    check(!gguf_open("/nonexistent/file.gguf", small, sizeof small) && !small[3], "a short buffer for the sentence");
    bytes_free(&b);
}

int main(int argc, char **argv) {
    begin(300);
    bytes good = { 0 };
    layout l;
    tiny_file(&good, &l);
    whole(&good);
    truncated(&good);
    absurd(&good, &l);
    numbers_everywhere(&good, &l);
    flipped(&good, &l, argc > 1 ? strtoull(argv[1], NULL, 10) : 1);
    others();
    bytes_free(&good);
    return finish();
}
