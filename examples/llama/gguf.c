/* SPDX-License-Identifier: Apache-2.0 */
#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { T_U8, T_I8, T_U16, T_I16, T_U32, T_I32, T_F32, T_BOOL, T_STRING, T_ARRAY, T_U64, T_I64, T_F64 };
enum { Q_F32 = 0, Q_F16 = 1, Q_Q4_0 = 2, Q_Q4_1 = 3, Q_Q8_0 = 8, Q_BF16 = 30 };

typedef struct entry {
    gguf_str key;
    uint32_t type, item;         /* item: element type of an array */
    uint64_t count;
    const unsigned char *value;
} entry;

struct gguf {
    const unsigned char *map;
    size_t size;
    entry *entries;
    gguf_tensor *tensors;
    uint64_t n_entries, n_tensors;
};

/* A read position; `bad` once anything reached past the end. */
typedef struct reader {
    const unsigned char *at, *end;
    bool bad;
} reader;

static const unsigned char *take(reader *r, uint64_t size) {
    if (r->bad || size > (uint64_t)(r->end - r->at)) {
        r->bad = true;
        return NULL;
    }
    const unsigned char *p = r->at;
    r->at += size;
    return p;
}

static uint32_t u32(reader *r) {
    uint32_t x = 0;
    const unsigned char *p = take(r, sizeof x);
    if (p)
        memcpy(&x, p, sizeof x);
    return x;
}

static uint64_t u64(reader *r) {
    uint64_t x = 0;
    const unsigned char *p = take(r, sizeof x);
    if (p)
        memcpy(&x, p, sizeof x);
    return x;
}

static gguf_str str(reader *r) {
    gguf_str s = { "", 0 };
    uint64_t size = u64(r);
    const unsigned char *p = take(r, size);
    if (p)
        s = (gguf_str){ (const char *)p, size };
    return s;
}

static uint64_t scalar_size(uint32_t type) {
    static const uint64_t sizes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    return type < sizeof sizes / sizeof sizes[0] ? sizes[type] : 0;
}

static void skip_value(reader *r, entry *e) {
    e->value = r->at;
    if (e->type == T_STRING) {
        str(r);
    } else if (e->type == T_ARRAY) {
        e->item = u32(r);
        e->count = u64(r);
        e->value = r->at;
        uint64_t size = scalar_size(e->item);
        if (e->item == T_STRING)
            for (uint64_t i = 0; i < e->count && !r->bad; i++)
                str(r);
        else if (size == 0 || e->count > (uint64_t)(r->end - r->at) / size)
            r->bad = true;
        else
            take(r, e->count * size);
    } else if (scalar_size(e->type)) {
        take(r, scalar_size(e->type));
    } else {
        r->bad = true;
    }
}

/* Elements and bytes of a block; 0 for a type that is not read here. */
static uint64_t block_bytes(uint32_t type, uint64_t *elements) {
    *elements = type == Q_Q4_0 || type == Q_Q4_1 || type == Q_Q8_0 ? 32 : 1;
    switch (type) {
    case Q_F32: return 4;
    case Q_F16: return 2;
    case Q_BF16: return 2;
    case Q_Q4_0: return 18;
    case Q_Q4_1: return 20;
    case Q_Q8_0: return 34;
    default: return 0;
    }
}

uint64_t gguf_elements(const gguf_tensor *t) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->dims; i++)
        n *= t->dim[i];
    return n;
}

static bool read_tensor(reader *r, gguf_tensor *t, uint64_t *offset) {
    t->name = str(r);
    t->dims = u32(r);
    if (r->bad || t->dims == 0 || t->dims > 4)
        return false;
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->dims; i++) {
        t->dim[i] = u64(r);
        if (t->dim[i] == 0 || t->dim[i] > UINT64_C(1) << 40 || n > (UINT64_C(1) << 40) / t->dim[i])
            return false;
        n *= t->dim[i];
    }
    t->type = u32(r);
    *offset = u64(r);
    return !r->bad;
}

static const char *read_tensors(gguf *g, reader *r, uint64_t align) {
    uint64_t *offsets = calloc((size_t)g->n_tensors + 1, sizeof *offsets);
    if (!offsets)
        return "no memory";
    const char *fault = NULL;
    for (uint64_t i = 0; i < g->n_tensors && !fault; i++)
        if (!read_tensor(r, &g->tensors[i], &offsets[i]))
            fault = "a tensor's description is damaged or cut off";
    uint64_t base = (uint64_t)(r->at - g->map);
    base = (base + align - 1) / align * align;
    for (uint64_t i = 0; i < g->n_tensors && !fault; i++) {
        uint64_t per, size = block_bytes(g->tensors[i].type, &per), n = gguf_elements(&g->tensors[i]);
        if (size == 0)
            continue; /* an unknown type matters only if somebody asks for the tensor: data stays NULL */
        if (g->tensors[i].dim[0] % per)
            fault = "a quantised tensor's rows are no multiple of 32";
        else if (base > g->size || offsets[i] > g->size - base || n / per * size > g->size - base - offsets[i])
            fault = "a tensor's data lies past the end of the file";
        else
            g->tensors[i].data = g->map + base + offsets[i];
    }
    free(offsets);
    return fault;
}

static const entry *lookup(const gguf *g, const char *key) {
    size_t size = strlen(key);
    for (uint64_t i = 0; i < g->n_entries; i++)
        if (g->entries[i].key.size == size && memcmp(g->entries[i].key.data, key, size) == 0)
            return &g->entries[i];
    return NULL;
}

static const char *parse(gguf *g) {
    reader r = { g->map, g->map + g->size, false };
    const unsigned char *magic = take(&r, 4);
    if (!magic || memcmp(magic, "GGUF", 4) != 0)
        return "this is no GGUF file";
    uint32_t version = u32(&r);
    if (version != 2 && version != 3)
        return "this GGUF version is not supported (2 and 3 are)";
    g->n_tensors = u64(&r);
    g->n_entries = u64(&r);
    /* A description takes 12 bytes at least, so larger counts are lies; this also bounds the allocations. */
    if (r.bad || g->n_tensors > g->size / 12 || g->n_entries > g->size / 12)
        return "its header counts more than the file can hold";
    g->entries = calloc((size_t)g->n_entries + 1, sizeof *g->entries);
    g->tensors = calloc((size_t)g->n_tensors + 1, sizeof *g->tensors);
    if (!g->entries || !g->tensors)
        return "no memory";
    for (uint64_t i = 0; i < g->n_entries; i++) {
        g->entries[i].key = str(&r);
        g->entries[i].type = u32(&r);
        skip_value(&r, &g->entries[i]);
        if (r.bad)
            return "its metadata is damaged or cut off";
    }
    /* A value of another type is no reason to read the data from the default place. */
    uint32_t align = 32;
    if (lookup(g, "general.alignment") && !gguf_u32(g, "general.alignment", &align))
        return "general.alignment is no 32-bit integer";
    if (align == 0 || align > 1 << 20 || (align & (align - 1)))
        return "general.alignment is no power of two up to 2^20";
    return read_tensors(g, &r, align);
}

gguf *gguf_open(const char *path, char *error, size_t cap) {
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size <= 0) {
        snprintf(error, cap, "%s: %s", path, fd < 0 ? strerror(errno) : "this is no file, or an empty one");
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    gguf *g = calloc(1, sizeof *g);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (!g || map == MAP_FAILED) {
        snprintf(error, cap, "%s: cannot be mapped", path);
        if (map != MAP_FAILED)
            munmap(map, (size_t)st.st_size);
        free(g);
        return NULL;
    }
    g->map = map;
    g->size = (size_t)st.st_size;
    const char *fault = parse(g);
    if (fault) {
        snprintf(error, cap, "%s: %s", path, fault);
        gguf_close(g);
        return NULL;
    }
    return g;
}

void gguf_close(gguf *g) {
    if (!g)
        return;
    munmap((void *)(uintptr_t)g->map, g->size);
    free(g->entries);
    free(g->tensors);
    free(g);
}

bool gguf_u32(const gguf *g, const char *key, uint32_t *out) {
    const entry *e = lookup(g, key);
    if (!e || (e->type != T_U32 && e->type != T_I32))
        return false;
    memcpy(out, e->value, sizeof *out);
    return true;
}

bool gguf_f32(const gguf *g, const char *key, float *out) {
    const entry *e = lookup(g, key);
    if (!e || e->type != T_F32)
        return false;
    memcpy(out, e->value, sizeof *out);
    return true;
}

/* Strings inside the map were measured when the file was opened. */
gguf_str gguf_next(const unsigned char **cursor) {
    gguf_str s;
    memcpy(&s.size, *cursor, sizeof s.size);
    s.data = (const char *)*cursor + sizeof s.size;
    *cursor += sizeof s.size + s.size;
    return s;
}

bool gguf_text(const gguf *g, const char *key, gguf_str *out) {
    const entry *e = lookup(g, key);
    if (!e || e->type != T_STRING)
        return false;
    const unsigned char *at = e->value;
    *out = gguf_next(&at);
    return true;
}

uint64_t gguf_strings(const gguf *g, const char *key, const unsigned char **cursor) {
    const entry *e = lookup(g, key);
    if (!e || e->type != T_ARRAY || e->item != T_STRING)
        return 0;
    *cursor = e->value;
    return e->count;
}

const gguf_tensor *gguf_find(const gguf *g, const char *name) {
    size_t size = strlen(name);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (g->tensors[i].name.size == size && memcmp(g->tensors[i].name.data, name, size) == 0)
            return &g->tensors[i];
    return NULL;
}

static float bits(uint32_t x) {
    float f;
    memcpy(&f, &x, sizeof f);
    return f;
}

static float half(const unsigned char *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31)
        return bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0)
        return bits(sign) + (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f;
    return bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* One block of 32: Q8_0 d*q; Q4_0 d*(q - 8); Q4_1 d*q + m. The low nibbles are the first 16 elements. */
static void block(uint32_t type, const unsigned char *p, float *out) {
    float d = half(p);
    if (type == Q_Q8_0) {
        for (int i = 0; i < 32; i++)
            out[i] = d * (float)(signed char)p[2 + i];
        return;
    }
    if (type == Q_Q4_0) {
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)((p[2 + i] & 15) - 8);
            out[16 + i] = d * (float)((p[2 + i] >> 4) - 8);
        }
        return;
    }
    float m = half(p + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(p[4 + i] & 15) + m;
        out[16 + i] = d * (float)(p[4 + i] >> 4) + m;
    }
}

bool gguf_floats(const gguf_tensor *t, float *out) {
    uint64_t n = gguf_elements(t), per, size = block_bytes(t->type, &per);
    const unsigned char *p = t->data;
    if (size == 0 || !p)
        return false;
    for (uint64_t i = 0; i < n; i += per, p += size) {
        uint16_t h;
        switch (t->type) {
        case Q_F32: memcpy(&out[i], p, 4); break;
        case Q_F16: out[i] = half(p); break;
        case Q_BF16:
            memcpy(&h, p, 2);
            out[i] = bits((uint32_t)h << 16);
            break;
        default: block(t->type, p, out + i); break;
        }
    }
    return true;
}
