/* SPDX-License-Identifier: Apache-2.0 */
#include "bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct unicode_range {
    uint32_t first, last;
} unicode_range;
#include "unicode_table.h"

/* Open addressing from 64-bit keys to values; 0 marks a free place (keys are never 0). */
typedef struct table {
    uint64_t *keys, *values;
    size_t mask;
} table;

#define STAND_INS 0x144 /* GPT-2's stand-ins for bytes end below this code point */

struct bpe {
    gguf_str *tokens;
    uint64_t n_tokens;
    table words;                /* hash of a token's text -> id */
    table merges;               /* left id << 32 | right id (+1) -> rank << 32 | merged id */
    int32_t byte_id[256];       /* token of a single byte */
    int16_t byte_of[STAND_INS]; /* byte that a code point stands for, or -1 */
    bool split_digits;
    uint32_t eos;
};

static bool table_make(table *t, uint64_t entries) {
    size_t size = 16;
    while (size < entries * 2)
        size *= 2;
    t->mask = size - 1;
    t->keys = calloc(size, sizeof *t->keys);
    t->values = calloc(size, sizeof *t->values);
    return t->keys && t->values;
}

static size_t table_place(const table *t, uint64_t key) {
    size_t i = (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & t->mask;
    while (t->keys[i] && t->keys[i] != key)
        i = (i + 1) & t->mask;
    return i;
}

static uint64_t hash(const char *s, uint64_t size) {
    uint64_t h = UINT64_C(1469598103934665603);
    for (uint64_t i = 0; i < size; i++)
        h = (h ^ (unsigned char)s[i]) * UINT64_C(1099511628211);
    return h ? h : 1;
}

/* FNV's 64 bits could collide in theory: a found token is compared, and the next hash tried. */
static int64_t find_token(const bpe *b, const char *s, uint64_t size) {
    for (uint64_t h = hash(s, size);; h = h * 31 + 7) {
        size_t i = table_place(&b->words, h ? h : 1);
        if (!b->words.keys[i])
            return -1;
        uint64_t id = b->words.values[i];
        if (b->tokens[id].size == size && memcmp(b->tokens[id].data, s, (size_t)size) == 0)
            return (int64_t)id;
    }
}

static void add_token(bpe *b, uint64_t id) {
    for (uint64_t h = hash(b->tokens[id].data, b->tokens[id].size);; h = h * 31 + 7) {
        size_t i = table_place(&b->words, h ? h : 1);
        if (b->words.keys[i]) {
            uint64_t old = b->words.values[i];
            if (b->tokens[old].size == b->tokens[id].size &&
                memcmp(b->tokens[old].data, b->tokens[id].data, (size_t)b->tokens[id].size) == 0)
                return;
            continue;
        }
        b->words.keys[i] = h ? h : 1;
        b->words.values[i] = id;
        return;
    }
}

/* GPT-2's printable stand-ins: bytes that are printable in Latin-1 stand for themselves, the others for U+0100 upwards. */
static uint32_t stand_in(int byte) {
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)
        return (uint32_t)byte;
    uint32_t next = 256;
    for (int c = 0; c < byte; c++)
        if (!((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || c >= 174))
            next++;
    return next;
}

static size_t utf8(uint32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 63));
    return 2; /* stand-ins end below U+0800 */
}

/* One code point at s; a byte that is no UTF-8 counts as itself. */
static size_t decode_utf8(const char *s, size_t left, uint32_t *c) {
    const unsigned char *u = (const unsigned char *)s;
    size_t n = u[0] < 0x80 ? 1 : (u[0] & 0xe0) == 0xc0 ? 2 : (u[0] & 0xf0) == 0xe0 ? 3 : (u[0] & 0xf8) == 0xf0 ? 4 : 0;
    if (n == 0 || n > left) {
        *c = 0xfffd;
        return 1;
    }
    *c = n == 1 ? u[0] : (uint32_t)(u[0] & (0xff >> (n + 1)));
    for (size_t i = 1; i < n; i++) {
        if ((u[i] & 0xc0) != 0x80) {
            *c = 0xfffd;
            return 1;
        }
        *c = *c << 6 | (u[i] & 63);
    }
    return n;
}

static bool inside(const unicode_range *r, size_t n, uint32_t c) {
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (c > r[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && c >= r[lo].first;
}
#define INSIDE(r, c) inside(r, sizeof(r) / sizeof((r)[0]), c)

enum { LETTER, NUMBER, SPACE, OTHER };

static int class_of(uint32_t c) {
    if (c < 0x80) {
        if ((c | 32) >= 'a' && (c | 32) <= 'z')
            return LETTER;
        if (c >= '0' && c <= '9')
            return NUMBER;
        return c == ' ' || (c >= 9 && c <= 13) ? SPACE : OTHER;
    }
    return INSIDE(letters, c) ? LETTER : INSIDE(numbers, c) ? NUMBER : INSIDE(spaces, c) ? SPACE : OTHER;
}

static int class_at(const char *s, size_t left, size_t *n) {
    uint32_t c;
    *n = decode_utf8(s, left, &c);
    return class_of(c);
}

/* English clitics that GPT-2 splits off: 's 't 're 've 'm 'll 'd. */
static size_t clitic(const char *s, size_t left) {
    static const char *const forms[] = { "'s", "'t", "'re", "'ve", "'m", "'ll", "'d" };
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        size_t n = strlen(forms[i]);
        if (n <= left && memcmp(s, forms[i], n) == 0)
            return n;
    }
    return 0;
}

/* White space: all of it at the end of the text, otherwise without the last character, which may lead the next word. */
static size_t space_run(const char *s, size_t left) {
    size_t n, at = 0, last = 0;
    while (at < left && class_at(s + at, left - at, &n) == SPACE) {
        last = at;
        at += n;
    }
    return at == left || last == 0 ? at : last;
}

/* Length of GPT-2's next pre-token of s; `left` ends the fragment. */
static size_t pre_token(const char *s, size_t left) {
    size_t n = clitic(s, left), lead = 0;
    if (n)
        return n;
    int class = class_at(s, left, &n);
    if (s[0] == ' ' && left > 1) {
        size_t m;
        int next = class_at(s + 1, left - 1, &m);
        if (next != SPACE) {
            lead = 1;
            class = next;
        }
    }
    if (class == SPACE)
        return space_run(s, left);
    size_t at = lead;
    while (at < left && class_at(s + at, left - at, &n) == class)
        at += n;
    return at;
}

/* Rank << 32 | merged id of two neighbours, or NO_MERGE. */
#define NO_MERGE UINT64_MAX

static uint64_t merge_of(const bpe *b, int32_t left, int32_t right) {
    size_t place = table_place(&b->merges, ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1);
    return b->merges.keys[place] ? b->merges.values[place] : NO_MERGE;
}

/* A merge that could be done at symbol `at`, the lower value first, then the symbol further left. */
typedef struct candidate {
    uint64_t value;
    size_t at;
} candidate;

/* A pre-token's symbols as a list, and a heap of what could be merged: a long run takes n log n steps. */
typedef struct merging {
    candidate *heap;
    size_t *next, *prev;
    size_t heaped, room;
} merging;

static bool merging_fits(merging *w, size_t n) {
    if (n <= w->room)
        return true;
    free(w->heap);
    free(w->next);
    w->room = n < 64 ? 64 : 2 * n;
    w->heap = malloc(2 * w->room * sizeof *w->heap); /* n - 1 at first; each merge takes one out and puts two in at most */
    w->next = malloc(2 * w->room * sizeof *w->next);
    w->prev = w->next + (w->next ? w->room : 0);
    return w->heap && w->next;
}

static bool before(candidate a, candidate b) { return a.value != b.value ? a.value < b.value : a.at < b.at; }

/* If symbol `at` and the next can be merged, into the heap with it. */
static void offer(const bpe *b, merging *w, const int32_t *ids, size_t n, size_t at) {
    candidate c = { w->next[at] < n ? merge_of(b, ids[at], ids[w->next[at]]) : NO_MERGE, at };
    if (c.value == NO_MERGE)
        return;
    size_t i = w->heaped++;
    for (; i > 0 && before(c, w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static candidate first_of(merging *w) {
    candidate first = w->heap[0], last = w->heap[--w->heaped];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->heaped; i = child) {
        if (child + 1 < w->heaped && before(w->heap[child + 1], w->heap[child]))
            child++;
        if (!before(w->heap[child], last))
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return first;
}

/* Merges the symbols of one pre-token in order of rank; ids in place, returns how many are left. */
static size_t merge_all(const bpe *b, merging *w, int32_t *ids, size_t n) {
    w->heaped = 0;
    for (size_t i = 0; i < n; i++) {
        w->next[i] = i + 1;
        w->prev[i] = i - 1; /* of the first: SIZE_MAX */
    }
    for (size_t i = 0; i < n; i++)
        offer(b, w, ids, n, i);
    while (w->heaped) {
        candidate c = first_of(w);
        size_t right = w->next[c.at];
        /* Both symbols may have gone into other merges since. */
        if (ids[c.at] < 0 || right >= n || merge_of(b, ids[c.at], ids[right]) != c.value)
            continue;
        ids[c.at] = (int32_t)(c.value & UINT32_MAX);
        ids[right] = -1;
        w->next[c.at] = w->next[right];
        if (w->next[right] < n)
            w->prev[w->next[right]] = c.at;
        if (w->prev[c.at] < n)
            offer(b, w, ids, n, w->prev[c.at]);
        offer(b, w, ids, n, c.at);
    }
    size_t left = 0;
    for (size_t i = 0; i < n; i = w->next[i])
        ids[left++] = ids[i];
    return left;
}

size_t bpe_encode(const bpe *b, const char *text, size_t size, int32_t **out) {
    int32_t *ids = malloc((size + 1) * sizeof *ids);
    size_t n = 0, at = 0;
    merging work = { 0 };
    bool ok = ids != NULL;
    while (ok && at < size) {
        /* A fragment ends where a number stands, if digits are tokens of their own; the number is one too. */
        size_t end = size, step;
        if (b->split_digits) {
            end = at;
            while (end < size && class_at(text + end, size - end, &step) != NUMBER)
                end += step;
            if (end == at) {
                class_at(text + at, size - at, &step);
                end = at + step;
            }
        }
        while (ok && at < end) {
            size_t len = pre_token(text + at, end - at), m = 0;
            for (size_t i = 0; i < len; i++)
                if (b->byte_id[(unsigned char)text[at + i]] >= 0)
                    ids[n + m++] = b->byte_id[(unsigned char)text[at + i]];
            ok = merging_fits(&work, m);
            n += ok ? merge_all(b, &work, ids + n, m) : 0;
            at += len;
        }
    }
    free(work.heap);
    free(work.next);
    if (!ok)
        free(ids);
    *out = ok ? ids : NULL;
    return ok ? n : SIZE_MAX;
}

size_t bpe_decode(const bpe *b, int32_t id, char *out, size_t cap) {
    if (id < 0 || (uint64_t)id >= b->n_tokens)
        return 0;
    gguf_str s = b->tokens[id];
    size_t n = 0, at = 0;
    while (at < s.size && n < cap) {
        uint32_t c;
        at += decode_utf8(s.data + at, (size_t)s.size - at, &c);
        if (c < STAND_INS && b->byte_of[c] >= 0)
            out[n++] = (char)b->byte_of[c];
    }
    return n;
}

int32_t bpe_eos(const bpe *b) { return (int32_t)b->eos; }

uint64_t bpe_count(const bpe *b) { return b->n_tokens; }

static bool read_vocabulary(bpe *b, const gguf *g) {
    const unsigned char *cursor;
    b->n_tokens = gguf_strings(g, "tokenizer.ggml.tokens", &cursor);
    if (b->n_tokens == 0 || b->n_tokens > INT32_MAX)
        return false;
    b->tokens = calloc((size_t)b->n_tokens, sizeof *b->tokens);
    if (!b->tokens || !table_make(&b->words, b->n_tokens))
        return false;
    for (uint64_t i = 0; i < b->n_tokens; i++) {
        b->tokens[i] = gguf_next(&cursor);
        add_token(b, i);
    }
    for (int c = 0; c < STAND_INS; c++)
        b->byte_of[c] = -1;
    for (int i = 0; i < 256; i++) {
        char text[4];
        b->byte_of[stand_in(i)] = (int16_t)i;
        int64_t id = find_token(b, text, utf8(stand_in(i), text));
        b->byte_id[i] = (int32_t)id; /* -1: bytes that no UTF-8 text holds may be missing */
    }
    return true;
}

static bool read_merges(bpe *b, const gguf *g) {
    const unsigned char *cursor;
    uint64_t n = gguf_strings(g, "tokenizer.ggml.merges", &cursor);
    if (n == 0 || n > INT32_MAX || !table_make(&b->merges, n))
        return false;
    for (uint64_t rank = 0; rank < n; rank++) {
        gguf_str m = gguf_next(&cursor);
        const char *blank = m.size ? memchr(m.data + 1, ' ', (size_t)m.size - 1) : NULL;
        char joined[512];
        if (!blank || m.size > sizeof joined)
            return false;
        size_t left = (size_t)(blank - m.data), right = (size_t)m.size - left - 1;
        memcpy(joined, m.data, left);
        memcpy(joined + left, blank + 1, right);
        int64_t a = find_token(b, m.data, left), c = find_token(b, blank + 1, right), id = find_token(b, joined, left + right);
        if (a < 0 || c < 0 || id < 0)
            continue; /* a merge of tokens that the vocabulary leaves out can never apply */
        uint64_t key = ((uint64_t)a << 32 | (uint64_t)c) + 1;
        size_t place = table_place(&b->merges, key);
        if (b->merges.keys[place])
            continue;
        b->merges.keys[place] = key;
        b->merges.values[place] = rank << 32 | (uint64_t)id;
    }
    return true;
}

bpe *bpe_open(const gguf *g, char *error, size_t cap) {
    bpe *b = calloc(1, sizeof *b);
    gguf_str model, pre = { "", 0 };
    const char *fault = NULL;
    if (!b)
        fault = "no memory";
    else if (!gguf_text(g, "tokenizer.ggml.model", &model) || model.size != 4 || memcmp(model.data, "gpt2", 4) != 0)
        fault = "its tokenizer is no byte-level BPE (gpt2)";
    else if (!read_vocabulary(b, g))
        fault = "its vocabulary is missing or incomplete";
    else if (!read_merges(b, g))
        fault = "its merges are missing or damaged";
    if (!fault && gguf_text(g, "tokenizer.ggml.pre", &pre)) {
        b->split_digits = pre.size == 6 && memcmp(pre.data, "smollm", 6) == 0;
        if (!b->split_digits && !(pre.size == 5 && memcmp(pre.data, "gpt-2", 5) == 0))
            fault = "its pre-tokenizer is not known (smollm and gpt-2 are)";
    }
    if (fault) {
        snprintf(error, cap, "the model's tokenizer cannot be used: %s", fault);
        bpe_close(b);
        return NULL;
    }
    b->eos = UINT32_MAX;
    gguf_u32(g, "tokenizer.ggml.eos_token_id", &b->eos);
    return b;
}

void bpe_close(bpe *b) {
    if (!b)
        return;
    free(b->tokens);
    free(b->words.keys);
    free(b->words.values);
    free(b->merges.keys);
    free(b->merges.values);
    free(b);
}
