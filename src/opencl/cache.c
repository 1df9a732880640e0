/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program cache: a folder of files, each a header and what it is kept for: a driver's binary, or the words of a failed
 * self-test. Drivers abort on truncated binaries and take flipped bits silently, so a file is used only if its checksum holds.
 * Whatever goes wrong here costs a compilation, never a failure.
 */
#define _POSIX_C_SOURCE 200809L
#include "host.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define MAX_FILES 512
#define MAX_BYTES ((uint64_t)1 << 28) /* of all files together; the one that was stored last always stays */
#define STALE_SECONDS 3600            /* a temporary file of that age is of a process that was killed */
#define SUFFIX_LENGTH 6
#define NAME_LENGTH (32 + SUFFIX_LENGTH)

static const char *const suffixes[] = { [PRHS_CL_CACHE_PROGRAM] = ".clbin", [PRHS_CL_CACHE_FAILED] = ".clbad" };

typedef struct file_header {
    char magic[8];
    uint32_t version, kind;
    unsigned char key[16];
    uint64_t size;
    unsigned char hash[16]; /* of the members above and of what follows */
} file_header;

static const char file_magic[8] = "PRHS-CL";
#define FILE_VERSION 2 /* of what a file means, too: a program of version 2 has passed its self-test */

static char *join(const char *dir, const char *name) {
    size_t size = strlen(dir) + strlen(name) + 2;
    char *path = malloc(size);
    if (path)
        snprintf(path, size, "%s/%s", dir, name);
    return path;
}

char *prhs_cl_cache_dir(const char *wanted) {
    const char *base;
    if (!wanted)
        wanted = getenv("PRHS_CACHE_DIR");
    if (wanted)
        return *wanted ? strdup(wanted) : NULL;
    if ((base = getenv("XDG_CACHE_HOME")) && *base == '/')
        return join(base, "prhs");
    if ((base = getenv("HOME")) && *base == '/')
        return join(base, ".cache/prhs");
    return NULL;
}

static void canonical(XXH128_hash_t hash, unsigned char out[16]) {
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, hash);
    memcpy(out, bytes.digest, 16);
}

static void hash128(const void *data, size_t size, unsigned char out[16]) { canonical(XXH3_128bits(data, size), out); }

prhs_cl_cache_key prhs_cl_cache_key_of(const char *identity, const char *options, const char *const *text, const size_t *size, size_t pieces) {
    /* Hash of hashes: lengths cannot run into each other, and nothing is allocated. */
    unsigned char parts[3][16];
    prhs_cl_cache_key key;
    hash128(identity, strlen(identity), parts[0]);
    hash128(options, strlen(options), parts[1]);
    XXH3_state_t whole;
    XXH3_INITSTATE(&whole);
    XXH3_128bits_reset(&whole);
    for (size_t i = 0; i < pieces; i++)
        XXH3_128bits_update(&whole, text[i], size[i]);
    canonical(XXH3_128bits_digest(&whole), parts[2]);
    hash128(parts, sizeof parts, key.bytes);
    return key;
}

static void file_hash(const file_header *head, const void *data, unsigned char out[16]) {
    unsigned char parts[2][16];
    hash128(head, offsetof(file_header, hash), parts[0]);
    hash128(data, (size_t)head->size, parts[1]);
    hash128(parts, sizeof parts, out);
}

static char *path_of(const char *dir, prhs_cl_cache_kind kind, const prhs_cl_cache_key *key) {
    char name[NAME_LENGTH + 1];
    for (int i = 0; i < 16; i++)
        snprintf(name + 2 * i, 3, "%02x", key->bytes[i]);
    memcpy(name + 32, suffixes[kind], SUFFIX_LENGTH + 1);
    return join(dir, name);
}

static bool read_all(int fd, void *data, size_t size) {
    for (char *at = data; size > 0;) {
        ssize_t n = read(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool write_all(int fd, const void *data, size_t size) {
    for (const char *at = data; size > 0;) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

/* The payload of an open file, or NULL with *what. The binary is code that will run: only our own files, or root's, count. */
static void *load_file(int fd, prhs_cl_cache_kind kind, const prhs_cl_cache_key *key, size_t *size, const char **what) {
    struct stat st;
    file_header head;
    unsigned char hash[16];
    *what = "others may write to it";
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != 0) ||
        (st.st_mode & (S_IWGRP | S_IWOTH)))
        return NULL;
    *what = "its header is wrong";
    if (!read_all(fd, &head, sizeof head) || memcmp(head.magic, file_magic, sizeof head.magic) != 0 ||
        head.version != FILE_VERSION || head.kind != (uint32_t)kind || memcmp(head.key, key->bytes, 16) != 0)
        return NULL;
    *what = "its length is wrong";
    if (head.size == 0 || head.size > MAX_BYTES || (uint64_t)st.st_size != sizeof head + head.size)
        return NULL;
    *what = "it cannot be read";
    void *data = malloc((size_t)head.size);
    if (!data || !read_all(fd, data, (size_t)head.size)) {
        free(data);
        return NULL;
    }
    file_hash(&head, data, hash);
    if (memcmp(hash, head.hash, 16) != 0) {
        *what = "its checksum is wrong";
        free(data);
        return NULL;
    }
    *size = (size_t)head.size;
    return data;
}

void *prhs_cl_cache_load(const char *dir, prhs_cl_cache_kind kind, const prhs_cl_cache_key *key, const prhs_log *log,
                         size_t *size) {
    char *path = path_of(dir, kind, key);
    void *data = NULL;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    if (fd >= 0) {
        const char *what = NULL;
        data = load_file(fd, kind, key, size, &what);
        if (!data)
            prhs_logf(log, PRHS_LOG_WARN, "opencl: the cached %s %s is ignored: %s",
                      kind == PRHS_CL_CACHE_PROGRAM ? "program" : "verdict", path, what);
        else if (kind == PRHS_CL_CACHE_PROGRAM)
            futimens(fd, NULL); /* pruning drops what was not used for longest; where this fails, what is oldest */
        close(fd);
    }
    free(path);
    return data;
}

/* mkdir -p, for the user alone. */
static bool make_dir(const char *dir) {
    char *path = strdup(dir);
    if (!path)
        return false;
    for (char *at = path + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        mkdir(path, 0700); /* whether it worked shows at the last one */
        *at = '/';
    }
    bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
    free(path);
    return made;
}

/* Whether a name is one that path_of() makes; `kind` NULL: of any kind. */
static bool is_ours(const char *name, const prhs_cl_cache_kind *kind) {
    if (strlen(name) != NAME_LENGTH || strspn(name, "0123456789abcdef") < 32)
        return false;
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++)
        if (strcmp(name + 32, suffixes[i]) == 0)
            return !kind || *kind == (prhs_cl_cache_kind)i;
    return false;
}

size_t prhs_cl_cache_list(const char *dir, prhs_cl_cache_kind kind, prhs_cl_cache_key *keys, size_t cap) {
    size_t n = 0;
    DIR *d = opendir(dir);
    if (!d)
        return 0;
    for (struct dirent *e; n < cap && (e = readdir(d));) {
        if (!is_ours(e->d_name, &kind))
            continue;
        for (int i = 0; i < 16; i++) {
            unsigned byte = 0;
            sscanf(e->d_name + 2 * i, "%2x", &byte);
            keys[n].bytes[i] = (unsigned char)byte;
        }
        n++;
    }
    closedir(d);
    return n;
}

typedef struct census {
    size_t files;
    uint64_t bytes;
    struct timespec oldest;
    char name[NAME_LENGTH + 1]; /* of the oldest file but `keep` */
} census;

/* Counts the files of an open folder, and removes what killed processes left half written. */
static census count(DIR *d, const char *keep) {
    census c = { 0 };
    const time_t now = time(NULL);
    for (struct dirent *e; (e = readdir(d));) {
        struct stat st;
        const bool temporary = strncmp(e->d_name, "tmp-", 4) == 0;
        if ((!temporary && !is_ours(e->d_name, NULL)) || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        if (temporary) {
            if (S_ISREG(st.st_mode) && now - st.st_mtim.tv_sec > STALE_SECONDS)
                unlinkat(dirfd(d), e->d_name, 0);
            continue;
        }
        c.files++;
        c.bytes += (uint64_t)st.st_size;
        if (strcmp(e->d_name, keep) != 0 && (!c.name[0] || st.st_mtim.tv_sec < c.oldest.tv_sec ||
                                             (st.st_mtim.tv_sec == c.oldest.tv_sec && st.st_mtim.tv_nsec < c.oldest.tv_nsec))) {
            c.oldest = st.st_mtim;
            memcpy(c.name, e->d_name, sizeof c.name);
        }
    }
    return c;
}

/* Removes the files that were not used for longest while there are too many, or too large ones. */
static void prune(const char *dir, const char *keep) {
    for (int round = 0; round < 64; round++) {
        DIR *d = opendir(dir);
        if (!d)
            return;
        const census c = count(d, keep);
        const bool removed = (c.files > MAX_FILES || c.bytes > MAX_BYTES) && c.name[0] && unlinkat(dirfd(d), c.name, 0) == 0;
        closedir(d);
        if (!removed)
            return;
    }
}

/* Writes a whole file; false with errno. */
static bool write_file(int fd, const file_header *head, const void *data) {
    struct rlimit limit;
    /* Past this limit a write is a signal that ends the process. */
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && sizeof *head + head->size > limit.rlim_cur) {
        errno = EFBIG;
        return false;
    }
    return write_all(fd, head, sizeof *head) && write_all(fd, data, (size_t)head->size);
}

int prhs_cl_cache_store(const char *dir, prhs_cl_cache_kind kind, const prhs_cl_cache_key *key, const void *data, size_t size) {
    file_header head = { .version = FILE_VERSION, .kind = (uint32_t)kind, .size = size };
    memcpy(head.magic, file_magic, sizeof head.magic);
    memcpy(head.key, key->bytes, 16);
    file_hash(&head, data, head.hash);
    char *path = path_of(dir, kind, key), *temporary = join(dir, "tmp-XXXXXX");
    int fd = -1, error = ENOMEM;
    if (path && temporary) {
        fd = make_dir(dir) ? mkstemp(temporary) : -1;
        error = fd < 0 ? errno : 0;
    }
    if (fd >= 0) {
        /* A reader sees the whole file or none; after a crash of the machine the checksum tells. */
        if (!write_file(fd, &head, data))
            error = errno;
        if (close(fd) != 0 && !error)
            error = errno;
        if (!error && rename(temporary, path) != 0)
            error = errno;
        if (error)
            unlink(temporary);
        else
            prune(dir, path + strlen(path) - NAME_LENGTH);
    }
    free(path);
    free(temporary);
    return error;
}
