/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program cache by itself, without a driver: a key depends on a text, and not on the pieces it is in; what is damaged, foreign or cut short is never used; a disk that is full or
 * read-only is an error number; the folder stays bounded; processes that store and load at once see whole files only. Exit
 * status: 0 good, 1 a check failed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "opencl/host.h"

enum { SIZE = 500, LARGE = 40000 };

static int failures, warnings;
static char warning[512], dir[] = "/tmp/prhs-cache-test-XXXXXX";

#define CHECK(x, ...)                                                                                                            \
    do {                                                                                                                         \
        if (!(x)) {                                                                                                              \
            printf("FAIL line %d: ", __LINE__);                                                                                  \
            printf(__VA_ARGS__);                                                                                                 \
            printf(" (last warning: %s)\n", warning);                                                                            \
            failures++;                                                                                                          \
        }                                                                                                                        \
    } while (0)

static void listen(void *user, prhs_log_level level, const char *text) {
    (void)user;
    warnings += level == PRHS_LOG_WARN;
    snprintf(warning, sizeof warning, "%s", text);
}
static const prhs_log loud = { PRHS_LOG_WARN, NULL, listen };

/* Payload and key of number i. */
static void fill(unsigned char *data, size_t size, int i) {
    for (size_t at = 0; at < size; at++)
        data[at] = (unsigned char)(at * 7 + at / 251 + (size_t)i * 13);
}
static prhs_cl_cache_key key_of(int i) {
    char text[16];
    snprintf(text, sizeof text, "%d", i);
    const char *const piece = text;
    const size_t size = strlen(text);
    return prhs_cl_cache_key_of("device", "options", &piece, &size, 1);
}
static void name_of(int i, const char *suffix, char out[256]) {
    const prhs_cl_cache_key key = key_of(i);
    int n = snprintf(out, 256, "%s/", dir);
    for (int b = 0; b < 16; b++)
        n += snprintf(out + n, 256 - (size_t)n, "%02x", key.bytes[b]);
    snprintf(out + n, 256 - (size_t)n, "%s", suffix);
}

static int store(int i, size_t size) {
    unsigned char data[LARGE];
    const prhs_cl_cache_key key = key_of(i);
    fill(data, size, i);
    return prhs_cl_cache_store(dir, PRHS_CL_CACHE_PROGRAM, &key, data, size);
}

/* 1: loaded and right. 0: not loaded. -1: something else was loaded. */
static int load(int i, size_t size) {
    unsigned char data[LARGE];
    const prhs_cl_cache_key key = key_of(i);
    size_t got = 0;
    void *loaded = prhs_cl_cache_load(dir, PRHS_CL_CACHE_PROGRAM, &key, &loud, &got);
    fill(data, size, i);
    const int right = !loaded ? 0 : got == size && memcmp(loaded, data, size) == 0 ? 1 : -1;
    free(loaded);
    return right;
}

static int count(const char *suffix, int erase) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.' && strstr(e->d_name, suffix)) {
            n++;
            if (erase)
                unlinkat(dirfd(d), e->d_name, 0);
        }
    if (d)
        closedir(d);
    return n;
}

static void write_bytes(const char *path, const unsigned char *data, size_t size) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size, "cannot write %s", path);
    close(fd);
}

/* Texts up to longer ones than what is hashed at once, cut in two places; a byte more or less is another text. */
static void test_keys(void) {
    static char text[LARGE];
    fill((unsigned char *)text, sizeof text, 3);
    const char *const whole = text;
    for (size_t size = 3, step = 0; size < sizeof text; size = size * 5 / 3, step++) {
        const size_t first = step % 4 == 0 ? 0 : size * (step % 4) / 4, second = (size - first) / 3, shorter = size - 1;
        const char *const pieces[] = { text, text + first, text + first + second };
        const size_t sizes[] = { first, second, size - first - second };
        const prhs_cl_cache_key a = prhs_cl_cache_key_of("device", "options", &whole, &size, 1);
        const prhs_cl_cache_key b = prhs_cl_cache_key_of("device", "options", pieces, sizes, 3);
        const prhs_cl_cache_key c = prhs_cl_cache_key_of("device", "options", &whole, &shorter, 1);
        const prhs_cl_cache_key d = prhs_cl_cache_key_of("device", "options", pieces, sizes, 2);
        CHECK(memcmp(&a, &b, sizeof a) == 0, "%zu bytes, cut at %zu and %zu, have another key", size, first, first + second);
        CHECK(memcmp(&a, &c, sizeof a) != 0 && memcmp(&a, &d, sizeof a) != 0, "%zu bytes and fewer have one key", size);
    }
}

/* Every byte flipped, every length, bytes too many, another's file under this name. */
static void test_damage(void) {
    static unsigned char file[2 * LARGE];
    char path[256], other[256];
    CHECK(store(1, SIZE) == 0 && load(1, SIZE) == 1 && warnings == 0, "a file as it was written");
    CHECK(load(2, SIZE) == 0 && warnings == 0, "a file that is not there");
    name_of(1, ".clbin", path);
    FILE *f = fopen(path, "rb");
    const size_t size = f ? fread(file, 1, sizeof file, f) : 0;
    if (f)
        fclose(f);
    CHECK(size > SIZE, "the file has %zu bytes", size);
    for (size_t at = 0; at < size; at++) {
        file[at] ^= (unsigned char)(1 << at % 8);
        write_bytes(path, file, size);
        file[at] ^= (unsigned char)(1 << at % 8);
        warnings = 0;
        CHECK(load(1, SIZE) == 0 && warnings == 1, "byte %zu flipped", at);
    }
    for (size_t cut = 0; cut <= size + 1; cut++) {
        write_bytes(path, file, cut);
        warnings = 0;
        CHECK(load(1, SIZE) == (cut == size) && warnings == (cut != size), "cut to %zu bytes", cut);
    }
    name_of(2, ".clbin", other);
    write_bytes(other, file, size);
    CHECK(load(2, SIZE) == 0, "the file of another key");
    name_of(1, ".clbad", other);
    write_bytes(other, file, size);
    const prhs_cl_cache_key key = key_of(1);
    size_t got;
    CHECK(!prhs_cl_cache_load(dir, PRHS_CL_CACHE_FAILED, &key, &loud, &got), "a program is no verdict");
    CHECK(store(1, SIZE) == 0 && load(1, SIZE) == 1, "written again");
    CHECK(chmod(path, 0620) == 0 && load(1, SIZE) == 0 && chmod(path, 0602) == 0 && load(1, SIZE) == 0, "others may write to it");
    CHECK(unlink(path) == 0 && mkdir(path, 0700) == 0 && load(1, SIZE) == 0 && store(1, SIZE) != 0 && rmdir(path) == 0,
          "a folder in its place");
    count("", 1);
}

/* The folder has a bound; what was used last stays; what killed processes left goes. */
static void test_bound(void) {
    char path[256];
    struct timespec old[2] = { { 1000, 0 }, { 1000, 0 } };
    for (int i = 0; i < 530; i++)
        CHECK(store(i, 8) == 0, "file %d", i);
    CHECK(count(".clbin", 0) <= 512 && load(529, 8) == 1 && load(300, 8) == 1 && load(0, 8) == 0, "%d files", count(".clbin", 0));
    count("", 1);
    for (int i = 0; i < 6; i++) {
        CHECK(store(i, 8) == 0, "file %d", i);
        name_of(i, ".clbin", path);
        CHECK(truncate(path, 60 << 20) == 0 && utimensat(AT_FDCWD, path, old, 0) == 0, "%s cannot be made larger", path);
        old[0].tv_sec = ++old[1].tv_sec;
    }
    snprintf(path, sizeof path, "%s/tmp-abcdef", dir);
    write_bytes(path, (const unsigned char *)"x", 1);
    CHECK(utimensat(AT_FDCWD, path, old, 0) == 0, "%s cannot be made older", path);
    CHECK(store(9, 8) == 0 && load(9, 8) == 1, "one more");
    CHECK(count(".clbin", 0) == 5 && count("tmp-", 0) == 0, "%d files of 60 MiB, %d temporary ones", count(".clbin", 0),
          count("tmp-", 0));
    count("", 1);
}

/* In a process of its own: limits and rights are not given back. Exit status: failures, 77 where the system does not allow the
 * test. */
static void in_child(const char *name, int (*run)(void)) {
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        const int status = run();
        fflush(stdout);
        _exit(status);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    printf("%s: %s\n", name, code == 0 ? "good" : code == 77 ? "not tried, the system does not allow it" : "FAIL");
    failures += code != 0 && code != 77;
}

static int file_size_limit(void) {
    for (int most = 0; most <= 600; most += 50) {
        const struct rlimit limit = { (rlim_t)most, RLIM_INFINITY };
        setrlimit(RLIMIT_FSIZE, &limit);
        const int error = store(1, SIZE);
        CHECK(error == (most <= SIZE + 50 ? EFBIG : 0), "a limit of %d bytes: %s", most, strerror(error));
        CHECK(load(1, SIZE) == (error == 0) && count("tmp-", 0) == 0, "after a limit of %d bytes", most);
    }
    count("", 1);
    return failures;
}

static int read_only(void) {
    if (geteuid() == 0 && seteuid(65534) != 0)
        return 77;
    const int error = store(1, SIZE);
    CHECK(error == EACCES, "a folder without rights: %s", strerror(error));
    CHECK(load(2, SIZE) == 0, "nothing is there");
    return failures;
}

/* A disk of 64 KiB, in a name space of this process. */
static int full_disk(void) {
    if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", dir, "tmpfs", 0, "size=64k") != 0)
        return 77;
    CHECK(store(1, LARGE) == 0 && load(1, LARGE) == 1, "the first file");
    const int error = store(2, LARGE);
    CHECK(error == ENOSPC, "a full disk: %s", strerror(error));
    CHECK(load(1, LARGE) == 1 && load(2, LARGE) == 0 && count("tmp-", 0) == 0, "a full disk loses nothing, and keeps nothing");
    CHECK(store(3, 100) == 0 && load(3, 100) == 1, "there is room for less");
    CHECK(mount(NULL, dir, NULL, MS_REMOUNT | MS_RDONLY, NULL) == 0 && store(3, 100) == EROFS && load(1, LARGE) == 1,
          "a read-only disk");
    return failures;
}

/* Eight processes over the same keys: whole files or none, and no warning. */
static int eight(void) {
    pid_t pids[8];
    warnings = 0;
    for (int p = 0; p < 8; p++)
        if ((pids[p] = fork()) == 0) {
            for (int i = 0; i < 300; i++) {
                const int k = i * (p + 1) % 7;
                CHECK(store(k, (size_t)LARGE - (size_t)k) == 0, "process %d cannot store", p);
                CHECK(load((k + 3) % 7, (size_t)LARGE - (size_t)((k + 3) % 7)) >= 0, "process %d loaded something else", p);
            }
            fflush(stdout);
            _exit(failures != 0 || warnings != 0);
        }
    for (int p = 0; p < 8; p++) {
        int status = 0;
        waitpid(pids[p], &status, 0);
        CHECK(status == 0, "process %d: %d", p, status);
    }
    CHECK(count(".clbin", 0) == 7 && count("tmp-", 0) == 0, "%d files are left", count("", 0));
    for (int k = 0; k < 7; k++)
        CHECK(load(k, (size_t)LARGE - (size_t)k) == 1, "file %d", k);
    count("", 1);
    return failures;
}

int main(void) {
    if (!mkdtemp(dir) || chmod(dir, 0755) != 0)
        return 1;
    test_keys();
    test_damage();
    test_bound();
    in_child("a limit on files", file_size_limit);
    in_child("a read-only folder", read_only);
    in_child("a full disk", full_disk);
    in_child("eight processes", eight);
    rmdir(dir);
    printf("%d checks failed\n", failures);
    return failures != 0;
}
