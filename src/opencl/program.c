/* SPDX-License-Identifier: Apache-2.0 */
/* Programs: from the disk cache, else from the embedded source. */
#include "host.h"

#include <stdlib.h>
#include <string.h>

/* The compiler's words from its first error on, in one line. */
static void build_log(const prhs_cl_device *dev, cl_program program, char *text, size_t size) {
    size_t all = 0;
    text[0] = '\0';
    if (prhs_cl.GetProgramBuildInfo(program, dev->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &all) != CL_SUCCESS || all < 2)
        return;
    char *log = malloc(all + 1);
    if (!log)
        return;
    log[all] = '\0';
    if (prhs_cl.GetProgramBuildInfo(program, dev->id, CL_PROGRAM_BUILD_LOG, all, log, NULL) == CL_SUCCESS) {
        const char *from = strstr(log, "error:");
        while (from && from > log && from[-1] != '\n')
            from--;
        strncat(text, from ? from : log, size - 1);
        for (char *c = text; *c; c++)
            if ((unsigned char)*c < ' ')
                *c = ' ';
    }
    free(log);
}

static prhs_status build(prhs_cl_device *dev, cl_program program, const char *name, const char *options) {
    char words[800];
    cl_int error = prhs_cl.BuildProgram(program, 1, &dev->id, options, NULL, NULL);
    build_log(dev, program, words, sizeof words);
    if (error != CL_SUCCESS && error != CL_BUILD_PROGRAM_FAILURE && error != CL_INVALID_BUILD_OPTIONS)
        return prhs_cl_fail(&dev->head.log, "clBuildProgram", error);
    if (error != CL_SUCCESS)
        return prhs_fail(&dev->unfit_log, PRHS_ERR_COMPILE, "opencl: cl/%s.cl did not build with %s: %s", name, options, words);
    if (words[strspn(words, " ")])
        prhs_logf(&dev->head.log, PRHS_LOG_DEBUG, "opencl: the compiler on cl/%s.cl: %s", name, words);
    return PRHS_OK;
}

prhs_cl_cache_key prhs_cl_program_key(const prhs_cl_device *dev, const struct prhs_cl_source *source, const char *options) {
    return prhs_cl_cache_key_of(dev->identity, options, source->text, source->size, source->pieces);
}

/* NULL where the cache has none, or one that the driver no longer takes. */
static cl_program from_cache(prhs_cl_device *dev, const struct prhs_cl_source *source, const char *options) {
    if (!dev->cache_dir)
        return NULL;
    const prhs_cl_cache_key key = prhs_cl_program_key(dev, source, options);
    const prhs_log *log = &dev->head.log;
    size_t size = 0;
    void *data = prhs_cl_cache_load(dev->cache_dir, PRHS_CL_CACHE_PROGRAM, &key, log, &size);
    if (!data)
        return NULL;
    const unsigned char *binary = data;
    cl_int error = CL_SUCCESS, state = CL_SUCCESS;
    cl_program program = prhs_cl.CreateProgramWithBinary(dev->context, 1, &dev->id, &size, &binary, &state, &error);
    free(data);
    if (program && error == CL_SUCCESS && state == CL_SUCCESS &&
        (error = prhs_cl.BuildProgram(program, 1, &dev->id, options, NULL, NULL)) == CL_SUCCESS)
        return program;
    if (program)
        prhs_cl.ReleaseProgram(program);
    prhs_logf(log, PRHS_LOG_WARN, "opencl: the driver refused the cached program of cl/%s.cl (%s), it is built again", source->name,
              prhs_cl_error_name(error != CL_SUCCESS ? error : state));
    return NULL;
}

prhs_status prhs_cl_program_create(prhs_cl_device *dev, const struct prhs_cl_source *source, const char *options, cl_program *program,
                                   bool *cached) {
    prhs_count(&dev->head.counters.compiles);
    *program = from_cache(dev, source, options);
    *cached = *program != NULL;
    if (*program)
        return PRHS_OK;
    cl_int error = CL_SUCCESS;
    *program = prhs_cl.CreateProgramWithSource(dev->context, source->pieces, (const char **)(uintptr_t)source->text, source->size, &error);
    if (!*program)
        return prhs_cl_fail(&dev->head.log, "clCreateProgramWithSource", error);
    prhs_status status = build(dev, *program, source->name, options);
    if (status != PRHS_OK) {
        prhs_cl.ReleaseProgram(*program);
        *program = NULL;
    }
    return status;
}

void prhs_cl_program_save(prhs_cl_device *dev, const struct prhs_cl_source *source, const char *options, cl_program program) {
    cl_uint devices = 0;
    if (!dev->cache_dir)
        return;
    /* A caller's context may span devices; then the program has a binary for each, and we would need only ours: no cache. */
    if (prhs_cl.GetProgramInfo(program, CL_PROGRAM_NUM_DEVICES, sizeof devices, &devices, NULL) != CL_SUCCESS || devices != 1)
        return;
    size_t size = 0;
    if (prhs_cl.GetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) != CL_SUCCESS || size == 0)
        return;
    unsigned char *binary = malloc(size);
    if (!binary)
        return;
    if (prhs_cl.GetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL) == CL_SUCCESS) {
        const prhs_cl_cache_key key = prhs_cl_program_key(dev, source, options);
        const int error = prhs_cl_cache_store(dev->cache_dir, PRHS_CL_CACHE_PROGRAM, &key, binary, size);
        if (error)
            prhs_logf(&dev->head.log, dev->unsaved ? PRHS_LOG_DEBUG : PRHS_LOG_WARN,
                      "opencl: compiled programs cannot be saved in %s, every start will compile: %s", dev->cache_dir,
                      strerror(error));
        dev->unsaved |= error != 0;
    }
    free(binary);
}
