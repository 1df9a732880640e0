/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program cache: a folder of files, each a header and a driver's binary. Drivers abort on truncated binaries and take flipped
 * bits silently, so a file is used only if its checksum holds. Whatever goes wrong here costs a compilation, never a failure.
 */
#define _POSIX_C_SOURCE 200809L
#include "host.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define MAX_FILES 256
#define MAX_PAYLOAD ((uint64_t)1 << 28)
#define SUFFIX ".clbin"
#define NAME_LENGTH (32 + sizeof SUFFIX - 1)

typedef struct file_header {
    char magic[8];
    uint32_t version, reserved;
    unsigned char key[16];
    uint64_t size;
    unsigned char hash[16];
} file_header;

static const char file_magic[8] = "PRHS-CL";
#define FILE_VERSION 1

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

static void hash128(const void *data, size_t size, unsigned char out[16]) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, size));
    memcpy(out, canonical.digest, 16);
}

prhs_cl_cache_key prhs_cl_cache_key_of(const char *identity, const char *options, const char *text, size_t size) {
    /* Hash of hashes: lengths cannot run into each other, and nothing is allocated. */
    unsigned char parts[3][16];
    prhs_cl_cache_key key;
    hash128(identity, strlen(identity), parts[0]);
    hash128(options, strlen(options), parts[1]);
    hash128(text, size, parts[2]);
    hash128(parts, sizeof parts, key.bytes);
    return key;
}

static char *path_of(const char *dir, const prhs_cl_cache_key *key) {
    char name[NAME_LENGTH + 1];
    for (int i = 0; i < 16; i++)
        snprintf(name + 2 * i, 3, "%02x", key->bytes[i]);
    memcpy(name + 32, SUFFIX, sizeof SUFFIX);
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
static void *load_file(int fd, const prhs_cl_cache_key *key, size_t *size, const char **what) {
    struct stat st;
    file_header head;
    unsigned char hash[16];
    *what = "it is not the user's own";
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != 0) || (st.st_mode & S_IWOTH))
        return NULL;
    *what = "its header is wrong";
    if (!read_all(fd, &head, sizeof head) || memcmp(head.magic, file_magic, sizeof head.magic) != 0 || head.version != FILE_VERSION ||
        memcmp(head.key, key->bytes, 16) != 0)
        return NULL;
    *what = "its length is wrong";
    if (head.size == 0 || head.size > MAX_PAYLOAD || (uint64_t)st.st_size != sizeof head + head.size)
        return NULL;
    *what = "it cannot be read";
    void *data = malloc((size_t)head.size);
    if (!data || !read_all(fd, data, (size_t)head.size)) {
        free(data);
        return NULL;
    }
    hash128(data, (size_t)head.size, hash);
    if (memcmp(hash, head.hash, 16) != 0) {
        *what = "its checksum is wrong";
        free(data);
        return NULL;
    }
    *size = (size_t)head.size;
    return data;
}

void *prhs_cl_cache_load(const char *dir, const prhs_cl_cache_key *key, const prhs_log *log, size_t *size) {
    char *path = path_of(dir, key);
    void *data = NULL;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    if (fd >= 0) {
        const char *what = NULL;
        data = load_file(fd, key, size, &what);
        if (data)
            futimens(fd, NULL); /* pruning drops what was not used for longest; where this fails, what is oldest */
        else
            prhs_logf(log, PRHS_LOG_WARN, "opencl: the cached program %s is ignored: %s", path, what);
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

static bool is_ours(const char *name) {
    return strlen(name) == NAME_LENGTH && strspn(name, "0123456789abcdef") >= 32 && strcmp(name + 32, SUFFIX) == 0;
}

/* Removes the file that was not used for longest while there are more than MAX_FILES. */
static void prune(const char *dir) {
    for (int round = 0; round < 16; round++) {
        DIR *d = opendir(dir);
        if (!d)
            return;
        size_t count = 0;
        struct timespec oldest = { 0, 0 };
        char name[NAME_LENGTH + 1] = "";
        for (struct dirent *e; (e = readdir(d));) {
            struct stat st;
            if (!is_ours(e->d_name) || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
                continue;
            if (count++ == 0 || st.st_mtim.tv_sec < oldest.tv_sec ||
                (st.st_mtim.tv_sec == oldest.tv_sec && st.st_mtim.tv_nsec < oldest.tv_nsec)) {
                oldest = st.st_mtim;
                memcpy(name, e->d_name, sizeof name);
            }
        }
        bool full = count > MAX_FILES && unlinkat(dirfd(d), name, 0) == 0;
        closedir(d);
        if (!full)
            return;
    }
}

void prhs_cl_cache_store(const char *dir, const prhs_cl_cache_key *key, const void *data, size_t size, const prhs_log *log) {
    file_header head = { .version = FILE_VERSION, .size = size };
    memcpy(head.magic, file_magic, sizeof head.magic);
    memcpy(head.key, key->bytes, 16);
    hash128(data, size, head.hash);
    bool stored = false;
    char *path = path_of(dir, key), *temporary = join(dir, "tmp-XXXXXX");
    int fd = path && temporary && make_dir(dir) ? mkstemp(temporary) : -1;
    if (fd >= 0) {
        /* A reader sees the whole file or none; after a crash of the machine the checksum tells. */
        stored = write_all(fd, &head, sizeof head) && write_all(fd, data, size);
        stored = close(fd) == 0 && stored;
        stored = stored && rename(temporary, path) == 0;
        if (!stored)
            unlink(temporary);
    }
    if (stored)
        prune(dir);
    else
        prhs_logf(log, PRHS_LOG_WARN, "opencl: a compiled program cannot be saved in %s: %s", dir, strerror(errno));
    free(path);
    free(temporary);
}
