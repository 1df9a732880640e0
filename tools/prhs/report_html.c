/* SPDX-License-Identifier: Apache-2.0 */
/* The page around the plots: escaping, style sheet, table of contents, tables. */
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "report.h"

extern const unsigned char report_css[];

void page_raw(page *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(p->f, format, args);
    va_end(args);
}

/* Bytes of the UTF-8 sequence at s if it is one that XML allows, else 0. */
static int sequence(const unsigned char *s) {
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    int n = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4 : 0;
    uint32_t code = n == 1 ? s[0] : s[0] & (0x7fu >> n);
    for (int i = 1; i < n; i++) {
        if (s[i] >> 6 != 2)
            return 0;
        code = code << 6 | (s[i] & 0x3f);
    }
    bool control = code < 0x20 && code != '\t' && code != '\n' && code != '\r';
    return n && code >= least[n] && code <= 0x10ffff && !control && !(code >= 0x7f && code < 0xa0) && !(code >= 0xd800 && code < 0xe000) &&
                   (code & 0xfffe) != 0xfffe
               ? n
               : 0;
}

static void escape(page *p, const char *text, size_t size) {
    const unsigned char *end = (const unsigned char *)text + size;
    for (const unsigned char *s = (const unsigned char *)text; s < end;) {
        const int n = sequence(s);
        switch (*s) {
        case '&': fputs("&amp;", p->f); break;
        case '<': fputs("&lt;", p->f); break;
        case '>': fputs("&gt;", p->f); break;
        case '"': fputs("&quot;", p->f); break;
        case '\'': fputs("&#39;", p->f); break;
        default:
            if (n)
                fwrite(s, 1, (size_t)n, p->f);
            else
                fputs("\xef\xbf\xbd", p->f);
        }
        s += n ? n : 1;
    }
}

void page_text(page *p, const char *text) { escape(p, text, strlen(text)); }

void page_number(page *p, double x) {
    if (!isfinite(x))
        fputs("–", p->f);
    else
        fprintf(p->f, x == floor(x) && fabs(x) < 1e9 ? "%.0f" : "%.5g", x == 0 ? 0.0 : x);
}

static const char *kind_name(report_kind kind) {
    static const char *const names[] = { "Perplexity", "Replay of a trace", "Benchmark", "Reference values" };
    return names[kind];
}

static void contents(page *p, const report_file *files, size_t count) {
    page_raw(p, "<nav aria-label=\"Contents\"><ul>\n");
    for (size_t i = 0; i < count; i++) {
        page_raw(p, "<li><a href=\"#file%u\">%s: ", files[i].number, kind_name(files[i].kind));
        page_text(p, files[i].name);
        page_raw(p, "</a></li>\n");
    }
    page_raw(p, "</ul></nav>\n");
}

/* The policy forbids every request and every script, whatever an input smuggles in. The empty icon keeps browsers from asking for one. */
static void head(page *p, const char *title) {
    page_raw(p, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
                "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"/>\n"
                "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<link rel=\"icon\" href=\"data:,\"/>\n<title>");
    page_text(p, title);
    page_raw(p, "</title>\n<style>\n%s</style>\n</head>\n", (const char *)report_css);
}

/* How long the documents of a perplexity run are. */
static void shape_line(page *p, const cJSON *root) {
    const double context = report_number(root, "context"), decode = report_number(root, "decode");
    if (isnan(context) || isnan(decode))
        return;
    page_raw(p, " · ");
    page_number(p, context);
    page_raw(p, " tokens of context, ");
    page_number(p, decode);
    page_raw(p, " decoded");
}

static void section(page *p, const report_file *file) {
    page_raw(p, "<section aria-labelledby=\"file%u\">\n<h2 id=\"file%u\">%s: ", file->number, file->number, kind_name(file->kind));
    page_text(p, file->name);
    page_raw(p, "</h2>\n<p>");
    page_text(p, report_string(file->root, "device", "no device named"));
    page_raw(p, " · ");
    page_text(p, report_string(file->root, "backend", "no backend named"));
    shape_line(p, file->root);
    page_raw(p, "</p>\n");
    if (file->kind == REPORT_BENCH)
        report_latency(p, file);
    else if (file->kind != REPORT_REFERENCE)
        report_policies(p, file);
    page_raw(p, "<details%s>\n<summary>All values of ", file->kind == REPORT_REFERENCE ? " open=\"open\"" : "");
    page_text(p, file->name);
    page_raw(p, "</summary>\n<p>Under the keys of the file: times in seconds, sizes in bytes.</p>\n");
    table_of_members(p, "Of the whole file", file->root);
    table_of_lists(p, file->root);
    page_raw(p, "</details>\n</section>\n");
}

void page_write(page *p, const char *title, const report_file *files, size_t count) {
    head(p, title);
    page_raw(p, "<body>\n<header>\n<h1>");
    page_text(p, title);
    page_raw(p, "</h1>\n<p>Made by <code>prhs report</code>. δ is dropped attention mass, ρ the share of sparse unit-steps that retrieve; "
                "loss is the rise of the mean next-token negative log-likelihood against dense attention, in nats. "
                "A dash stands for what a file does not say.</p>\n");
    contents(p, files, count);
    page_raw(p, "</header>\n<main>\n");
    for (size_t i = 0; i < count; i++)
        section(p, &files[i]);
    page_raw(p, "</main>\n</body>\n</html>\n");
}

void table_begin(page *p, const char *caption, const char *const *columns, size_t count) {
    page_raw(p, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"");
    page_text(p, caption);
    page_raw(p, "\"><table><caption>");
    page_text(p, caption);
    page_raw(p, "</caption><thead><tr>");
    for (size_t i = 0; i < count; i++) {
        const bool text = columns[i][0] == '<';
        page_raw(p, "<th scope=\"col\"%s>", text ? " class=\"t\"" : "");
        page_text(p, columns[i] + text);
        page_raw(p, "</th>");
    }
    page_raw(p, "</tr></thead><tbody>\n");
}

void table_end(page *p) { page_raw(p, "</tbody></table></div>\n"); }
void table_row(page *p) { page_raw(p, "<tr>"); }
void table_row_end(page *p) { page_raw(p, "</tr>\n"); }

/* Policies may be broken after a comma. */
void table_text(page *p, const char *text) {
    page_raw(p, "<td class=\"t\">");
    for (const char *comma; (comma = strchr(text, ',')); text = comma + 1) {
        escape(p, text, (size_t)(comma + 1 - text));
        page_raw(p, "<wbr/>");
    }
    page_text(p, text);
    page_raw(p, "</td>");
}

void table_number(page *p, double x) {
    page_raw(p, "<td>");
    page_number(p, x);
    page_raw(p, "</td>");
}
