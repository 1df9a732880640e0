/* SPDX-License-Identifier: Apache-2.0 */
/* prhs report: documents of measurements as one page. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

static const char help[] =
    "usage: prhs report [--title TEXT] --out FILE DOCUMENT...\n"
    "Makes one page (HTML with SVG plots, a table beside each; nothing is fetched, nothing runs) of documents that\n"
    "'prhs-llama perplexity --json', 'prhs replay --json' and 'prhs bench --json' wrote.\n"
    "  --out FILE        the page ('-': standard output)\n"
    "  --title TEXT      its title (libprhs report)\n";

/* The page is written only when it is complete. */
static bool write_page(const char *path, const char *text, size_t size) {
    FILE *f = strcmp(path, "-") == 0 ? stdout : fopen(path, "wb");
    bool good = f && fwrite(text, 1, size, f) == size;
    if (f)
        good = (f == stdout ? fflush(f) : fclose(f)) == 0 && good;
    if (!good)
        fprintf(stderr, "prhs report: %s cannot be written\n", path);
    return good;
}

static bool make(const char *out, const char *title, const report_file *files, size_t count) {
    char *text = NULL;
    size_t size = 0;
    page p = { .f = open_memstream(&text, &size) };
    bool good = p.f != NULL;
    if (good) {
        page_write(&p, title, files, count);
        good = !ferror(p.f);
        good = fclose(p.f) == 0 && good;
    }
    if (!good)
        fprintf(stderr, "prhs report: there is no memory\n");
    good = good && write_page(out, text, size);
    free(text);
    return good;
}

int tool_report(int argc, char **argv) {
    static const struct option options[] = { { "out", 1, 0, 'o' }, { "title", 1, 0, 't' }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 } };
    const char *out = NULL, *title = "libprhs report";
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;)
        switch (c) {
        case 'o': out = optarg; break;
        case 't': title = optarg; break;
        case 'h': fputs(help, stdout); return TOOL_OK;
        default: return tool_usage("report");
        }
    if (!out || optind == argc) {
        fprintf(stderr, "prhs report: %s\n", out ? "a document is needed" : "--out is needed");
        return tool_usage("report");
    }
    const size_t count = (size_t)(argc - optind);
    report_file *files = report_alloc(count, sizeof *files);
    bool good = true;
    for (size_t i = 0; i < count; i++) {
        good = report_read(argv[optind + (int)i], &files[i]) && good;
        files[i].number = (uint32_t)i + 1;
    }
    good = good && make(out, title, files, count);
    for (size_t i = 0; i < count; i++)
        cJSON_Delete(files[i].root);
    free(files);
    return good ? TOOL_OK : TOOL_FAILED;
}
