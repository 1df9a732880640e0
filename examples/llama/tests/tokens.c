/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tokenizer: pre-tokens, merges, damaged vocabularies, bytes that are no UTF-8; with --real the demo's text.
 * usage: llama-tokens [SEED] | --real   (77: the model or the text is not there)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiny.h"

#define LONGEST 64 /* bytes of a text whose pre-tokens are looked at */

static void put_stand_ins(bytes *b, const unsigned char *text, size_t size) {
    char form[2 * LONGEST];
    size_t n = 0;
    for (size_t i = 0; i < size; i++)
        n += stand_in_of(text[i], form + n);
    put_u64(b, n);
    put(b, form, n);
}

static void put_merge(bytes *b, const unsigned char *text, size_t left, size_t right) {
    char form[4 * LONGEST + 1];
    size_t n = 0;
    for (size_t i = 0; i < left + right; i++) {
        if (i == left)
            form[n++] = ' ';
        n += stand_in_of(text[i], form + n);
    }
    put_u64(b, n);
    put(b, form, n);
}

/*
 * A vocabulary in which any two neighbours within the text merge: all its substrings are tokens. Each pre-token then ends as one
 * token, and nothing but the pre-tokenizer keeps two apart.
 */
static void greedy_vocabulary(bytes *b, const char *pre, const unsigned char *text, size_t size) {
    uint64_t merges = 0;
    for (size_t n = 2; n <= size; n++)
        merges += (size - n + 1) * (n - 1);
    put_header(b, 0, pre ? 4 : 3);
    put_key_text(b, "tokenizer.ggml.model", "gpt2");
    if (pre)
        put_key_text(b, "tokenizer.ggml.pre", pre);
    put_key_array(b, "tokenizer.ggml.tokens", 256 + size * (size + 1) / 2);
    for (int c = 0; c < 256; c++)
        put_stand_ins(b, &(unsigned char){ (unsigned char)c }, 1);
    for (size_t n = 1; n <= size; n++)
        for (size_t at = 0; at + n <= size; at++)
            put_stand_ins(b, text + at, n);
    put_key_array(b, "tokenizer.ggml.merges", merges + 1);
    put_merge(b, (const unsigned char *)"xy", 1, 1); /* texts of one byte have none of their own */
    for (size_t n = 2; n <= size; n++)
        for (size_t at = 0; at + n <= size; at++)
            for (size_t left = 1; left < n; left++)
                put_merge(b, text + at, left, n - left);
}

/* The text's tokens with a bar between each two; false where it cannot be tokenized. The text lies before a forbidden page. */
static bool split(const bytes *file, const char *text, size_t size, bytes *out) {
    char error[512] = "", piece[256];
    gguf *g = open_bytes(file, error, sizeof error);
    bpe *b = g ? bpe_open(g, error, sizeof error) : NULL;
    bool good = check(b != NULL, "a vocabulary is refused: %s", error);
    if (good) {
        char *guarded = guard(text, size);
        int32_t *ids = NULL;
        size_t n = bpe_encode(b, guarded, size, &ids);
        good = check(n <= size, "%zu tokens of %zu bytes", n, size);
        for (size_t i = 0; good && i < n; i++) {
            if (i)
                put(out, "|", 1);
            put(out, piece, bpe_decode(b, ids[i], piece, sizeof piece));
        }
        free(ids);
        unguard(guarded, size);
    }
    bpe_close(b);
    gguf_close(g);
    return good;
}

/* `pieces` is the text with a bar between pre-tokens (so texts here have no bars of their own). */
static void pre_tokens(const char *pre, const char *pieces) {
    char text[LONGEST];
    size_t size = 0;
    bytes file = { 0 }, got = { 0 };
    for (const char *p = pieces; *p; p++)
        if (*p != '|')
            text[size++] = *p;
    greedy_vocabulary(&file, pre, (const unsigned char *)text, size);
    if (split(&file, text, size, &got))
        check(got.size == strlen(pieces) && (!got.size || memcmp(got.data, pieces, got.size) == 0),
              "%s: \"%s\" is split \"%.*s\"", pre ? pre : "no name", pieces, (int)got.size, got.data ? (char *)got.data : "");
    bytes_free(&file);
    bytes_free(&got);
}

static void all_pre_tokens(void) {
    /* clang-format off */
    static const char *const smollm[] = {
        /* digits stand alone, and white space before one ends there */
        "", "a", " ", "1", "abc", "abc| def", "1|2|3", "abc| |1|2|3", "a|1|b", "a|  |1", "1| a", "1|  |2", "1|\n|2", "-|1|.|5",
        /* so do the numbers of other scripts and shapes: superscript, fraction, Roman, Arabic, full width */
        "x|\u00b2|\u00bd|\u2167|\u0663|\uff11",
        /* clitics in lower case only, and only where a pre-token begins */
        "don|'t| we|'ll| I|'ve| he|'d| they|'re| I|'m| it|'s", "DON|'|T", "'s|ound", "!'|s", " '|s", "'|x", "'",
        /* a blank leads what follows; other white space stands alone, and a run leaves its last character to the next */
        "a| b", "a| | b", "a|  | b", "a|  ", "a|\n|\n|b", "a| \n| b", "a| |\t|b", "\n", "\n\n\n", "a|\r\n", "\t\t| a",
        /* runs of punctuation, and letters beside it */
        "...| ,,,| --", "a|,|b", "__|init|__", "a| (|b|).", "\x01\x02|a", "a|\x1c\x1c|b",
        /* white space beyond ASCII: no-break, ideographic, next line; a zero-width space is none */
        "a|\u00a0|b", "a|\u3000| b", "a| |\u3000|b", "a|\xc2\x85|b", "a|\u200b|b", "\u2003|\u2003|b",
        /* letters of any script, with their marks apart; symbols */
        "na\u00efve| \u00e9t\u00e9", "e|\u0301", "\u6f22\u5b57\u304b\u306a", "\U0001d4b3\U0001d4b4", "\U0001f600\U0001f600| a",
        "\u00aa\u00ba|\u00b7|\u00df", "\u0915|\u093f",
        /* no UTF-8: stray bytes, sequences cut short, one too long for its code point */
        "a|\xff|b", "\xc3", "a|\xc3(|b", "a|\xe2\x82", "\x80\x80| \xbf", "\xf0\x9f\x98|a", "\xfe\xff",
    };
    /* clang-format on */
    static const char *const gpt2[] = { "abc| 123| 4", "1|a|2", "x|\u00b2\u00bd", "a| | 1", "don|'t| 12|.|5", "1| a" };
    for (size_t i = 0; i < sizeof smollm / sizeof smollm[0]; i++)
        pre_tokens("smollm", smollm[i]);
    for (size_t i = 0; i < sizeof gpt2 / sizeof gpt2[0]; i++) {
        pre_tokens("gpt-2", gpt2[i]);
        pre_tokens(NULL, gpt2[i]);
    }
}

/* Any bytes come back from their tokens unchanged. */
static void any_bytes(uint64_t seed) {
    uint64_t state = seed;
    for (int i = 0; i < 1000; i++) {
        unsigned char text[16];
        const size_t size = (size_t)(draw(&state) % (sizeof text + 1));
        bytes file = { 0 }, got = { 0 };
        for (size_t j = 0; j < size; j++) {
            uint64_t x = draw(&state);
            text[j] = (unsigned char)(x % 4 ? x >> 8 | 0x80 : x >> 8 & 0x7f);
        }
        greedy_vocabulary(&file, i % 2 ? "smollm" : "gpt-2", text, size);
        if (split(&file, (const char *)text, size, &got)) {
            size_t same = 0;
            for (size_t j = 0; j < got.size && same < size; j++)
                if (got.data[j] == text[same])
                    same++; /* else a bar between two tokens */
            check(same == size, "text %d of seed %llu does not come back", i, (unsigned long long)seed);
        }
        bytes_free(&file);
        bytes_free(&got);
    }
}

/* A vocabulary of words with blanks between them; merges with commas between them. */
static void put_lists(bytes *b, const char *words, const char *merges) {
    const struct {
        const char *key, *list, *between;
    } lists[] = { { "tokenizer.ggml.tokens", words, " " }, { "tokenizer.ggml.merges", merges, "," } };
    put_header(b, 0, 3);
    put_key_text(b, "tokenizer.ggml.model", "gpt2");
    for (int i = 0; i < 2; i++) {
        uint64_t count = 1;
        for (const char *p = lists[i].list; *p; p++)
            count += *p == lists[i].between[0];
        put_key_array(b, lists[i].key, count);
        for (const char *p = lists[i].list; count--; p++) {
            size_t n = strcspn(p, lists[i].between);
            put_u64(b, n);
            put(b, p, n);
            p += n;
        }
    }
}

/* The lowest rank first, the leftmost of equals; merges of missing tokens and second mentions count for nothing. */
static void merges(void) {
    static const struct {
        const char *words, *merges, *text, *tokens;
    } cases[] = {
        { "a b c ab bc abc", "b c,a b,a bc", "abc", "abc" },
        { "a b c ab bc abc", "a b,b c,a bc", "abc", "ab|c" },
        { "a b c ab bc abc", "a b,b c,a bc,ab c", "abc", "abc" },
        { "a aa", "a a", "aaa", "aa|a" },
        { "a aa aaaa", "a a,aa aa", "aaaaaa", "aaaa|aa" },
        { "a b ab", "a b", "xaxb!ab", "ab|ab" }, /* bytes without a token are left out, and their neighbours meet */
        { "a b c bc", "a b,b c", "abc", "a|bc" },
        { "a b c ab bc", "b c,a b,b c", "abc", "a|bc" },
        { "a b a ab", "a b", "ab", "ab" },
        { "a b", "a b", "ab", "a|b" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bytes file = { 0 }, got = { 0 };
        put_lists(&file, cases[i].words, cases[i].merges);
        if (split(&file, cases[i].text, strlen(cases[i].text), &got))
            check(got.size == strlen(cases[i].tokens) && memcmp(got.data, cases[i].tokens, got.size) == 0,
                  "\"%s\" becomes %.*s, not %s", cases[i].text, (int)got.size, (char *)got.data, cases[i].tokens);
        bytes_free(&file);
        bytes_free(&got);
    }
}

/* Words over a and b up to four letters, and merges drawn at random; merged by the book, on strings. */
static size_t by_the_book(char merges[][12], size_t n_merges, const char *text, char pieces[][8]) {
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        snprintf(pieces[i], 8, "%c", text[i]);
    for (size_t rank = 0; rank < n_merges;) {
        char pair[20];
        size_t i = 0;
        for (; i + 1 < n; i++) {
            strcat(strcat(strcpy(pair, pieces[i]), " "), pieces[i + 1]);
            if (strcmp(pair, merges[rank]) == 0)
                break;
        }
        if (i + 1 >= n) {
            rank++;
            continue;
        }
        size_t left = strlen(pieces[i]);
        strcpy(pieces[i] + left, pair + left + 1);
        memmove(pieces[i + 1], pieces[i + 2], (n - i - 2) * sizeof pieces[0]);
        n--;
        rank = 0;
    }
    return n;
}

static void random_merges(uint64_t seed) {
    static const char words[] =
        "a b aa ab ba bb aaa aab aba abb baa bab bba bbb aaaa aaab aaba aabb abaa abab abba abbb baaa baab "
        "baba babb bbaa bbab bbba bbbb";
    uint64_t state = seed;
    for (int i = 0; i < 2000; i++) {
        char merges[12][12], list[160] = "", text[41], pieces[48][8];
        for (int m = 0; m < 12; m++) {
            int left = 1 + (int)(draw(&state) % 2), right = 1 + (int)(draw(&state) % 2), at = 0;
            for (int j = 0; j < left + right; j++) {
                if (j == left)
                    merges[m][at++] = ' ';
                merges[m][at++] = (char)('a' + draw(&state) % 2);
            }
            merges[m][at] = 0;
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", m ? "," : "", merges[m]);
        }
        const size_t size = 1 + (size_t)(draw(&state) % 40);
        for (size_t j = 0; j < size; j++)
            text[j] = (char)('a' + draw(&state) % 2);
        text[size] = 0;
        bytes file = { 0 }, got = { 0 }, want = { 0 };
        put_lists(&file, words, list);
        for (size_t j = 0, n = by_the_book(merges, 12, text, pieces); j < n; j++) {
            put(&want, "|", j ? 1 : 0);
            put(&want, pieces[j], strlen(pieces[j]));
        }
        if (split(&file, text, size, &got))
            check(got.size == want.size && memcmp(got.data, want.data, got.size) == 0, "%s with %s: %.*s, not %.*s", text, list,
                  (int)got.size, (char *)got.data, (int)want.size, (char *)want.data);
        bytes_free(&file);
        bytes_free(&got);
        bytes_free(&want);
    }
}

/* A run of one letter is one pre-token however long; the alarm rings if each merge looks at all of it. */
static void long_run(void) {
    const size_t size = (size_t)1 << 20;
    bytes file = { 0 }, got = { 0 };
    char *text = malloc(size);
    if (check(text != NULL, "no memory")) {
        memset(text, 'a', size);
        put_lists(&file, "a aa aaaa aaaaaaaa", "a a,aa aa,aaaa aaaa");
        if (split(&file, text, size, &got))
            check(got.size == size + size / 8 - 1, "%zu bytes for %zu tokens of a long run", got.size, size / 8);
    }
    free(text);
    bytes_free(&file);
    bytes_free(&got);
}

static void refused(bytes *file, const char *sentence) {
    char error[512] = "";
    gguf *g = open_bytes(file, error, sizeof error);
    if (check(g != NULL, "%s: the file itself is refused: %s", sentence, error)) {
        bpe *b = bpe_open(g, error, sizeof error);
        check(!b && strstr(error, sentence), "\"%s\" expected: %s", sentence, b ? "opened" : error);
        bpe_close(b);
    }
    gguf_close(g);
    file->size = 0;
}

static void damaged(void) {
    char longest[600];
    bytes file = { 0 };
    memset(longest, 'a', sizeof longest);
    longest[300] = ' ';
    longest[sizeof longest - 1] = 0;
    put_header(&file, 0, 0);
    refused(&file, "no byte-level BPE");
    put_header(&file, 0, 1);
    put_key_text(&file, "tokenizer.ggml.model", "llama");
    refused(&file, "no byte-level BPE");
    put_header(&file, 0, 1);
    put_key_text(&file, "tokenizer.ggml.model", "gpt2");
    refused(&file, "vocabulary is missing");
    static const char *const bad[] = { "ab", "", " ", "a", " b" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        put_lists(&file, "a b ab", bad[i]);
        refused(&file, "merges are missing or damaged");
    }
    put_lists(&file, "a b ab", longest);
    refused(&file, "merges are missing or damaged");
    greedy_vocabulary(&file, "llama-bpe", (const unsigned char *)"ab", 2);
    refused(&file, "pre-tokenizer is not known");
    bytes_free(&file);
}

static unsigned char *read_whole(const char *path, size_t *size) {
    bytes b = { 0 };
    unsigned char part[4096];
    FILE *f = fopen(path, "rb");
    for (size_t n; f && (n = fread(part, 1, sizeof part, f)) > 0;)
        put(&b, part, n);
    if (f)
        fclose(f);
    *size = b.size;
    return b.data;
}

/* The handbook's tokens as SmolLM2's own tokenizer gives them (their number and the first), and back. */
static int real(void) {
    static const int32_t first[] = { 198, 15880, 260, 40479 };
    const char *data = getenv("PRHS_DATA"), *home = getenv("HOME");
    char model[512], text[512], error[512] = "", piece[256];
    snprintf(model, sizeof model, "%s%s/smollm2-135m.gguf", data ? data : home ? home : "", data ? "" : "/.cache/prhs");
    snprintf(text, sizeof text, "%s%s/handbook.txt", data ? data : home ? home : "", data ? "" : "/.cache/prhs");
    size_t size, at = 0;
    unsigned char *bytes_of = read_whole(text, &size);
    gguf *g = gguf_open(model, error, sizeof error);
    if (!bytes_of || !g) {
        printf("skipped: %s is not there (scripts/fetch brings it)\n", bytes_of ? model : text);
        free(bytes_of);
        gguf_close(g);
        return 77;
    }
    bpe *b = bpe_open(g, error, sizeof error);
    int32_t *ids = NULL;
    if (check(b != NULL, "%s", error)) {
        size_t n = bpe_encode(b, (const char *)bytes_of, size, &ids);
        check(n == 292783 && memcmp(ids, first, sizeof first) == 0, "%zu tokens, beginning %d %d %d %d", n, ids[0], ids[1],
              ids[2], ids[3]);
        for (size_t i = 0; n != SIZE_MAX && i < n; i++) {
            size_t m = bpe_decode(b, ids[i], piece, sizeof piece);
            if (m > size - at || memcmp(piece, bytes_of + at, m) != 0)
                break;
            at += m;
        }
        check(at == size, "the tokens give the text back up to byte %zu of %zu", at, size);
    }
    free(ids);
    free(bytes_of);
    bpe_close(b);
    gguf_close(g);
    return finish();
}

int main(int argc, char **argv) {
    begin(300);
    if (argc > 1 && strcmp(argv[1], "--real") == 0)
        return real();
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    all_pre_tokens();
    any_bytes(seed);
    merges();
    random_merges(seed);
    long_run();
    damaged();
    printf("seed %llu\n", (unsigned long long)seed);
    return finish();
}
