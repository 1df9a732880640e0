#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the NULL tests from the public headers: for each pointer argument (and each prhs_mem) of each public call, the call with
everything valid but that one NULL. A new function or parameter without an entry below fails the build.

usage: gen_null.py OUTPUT HEADER..."""
import re
import sys

# Where NULL is allowed, and what the call must then return ('void': nothing to return; otherwise a C expression).
ALLOWED = {
    ("prhs_enumerate", "log"): "PRHS_OK",
    ("prhs_device_open", "log"): "PRHS_OK",
    ("prhs_device_close", "device"): "PRHS_OK",
    ("prhs_policy_name", "what"): "any",
    ("prhs_policy_check", "why"): "PRHS_OK",
    ("prhs_kv_strides_nhd", "kv"): "void",
    ("prhs_kv_strides_hnd", "kv"): "void",
    ("prhs_buffer_destroy", "buffer"): "void",
    ("prhs_queue_destroy", "queue"): "void",
    ("prhs_event_destroy", "event"): "void",
    ("prhs_ops_destroy", "ops"): "void",
    ("prhs_session_destroy", "session"): "void",
    ("prhs_stats_request_destroy", "request"): "void",
    ("prhs_buffer_size", "buffer"): "0",
    ("prhs_buffer_host", "buffer"): "NULL",
    ("prhs_session_units", "session"): "0",
    ("prhs_psaw_start", "policy"): "0",
    ("prhs_etf_frozen", "policy"): "0",
    ("prhs_op_append", "state"): "PRHS_OK",       # no value sums
    ("prhs_op_attend", "lse"): "PRHS_OK",         # not wanted
    ("prhs_op_prefill", "policy"): "PRHS_OK",     # all tokens, all rows
    ("prhs_op_prefill", "lse"): "PRHS_OK",        # not wanted
}

# Calls that have no log to send a sentence through.
SILENT = {"prhs_policy_preset", "prhs_policy_check", "prhs_event_query", "prhs_mean_bound"}

# A valid argument for every parameter: by "function.param", by "type param", by type. `e` is a t_env.
VALUES = {
    "prhs_enumerate.count": "&e->count", "prhs_enumerate.infos": "e->infos",
    "prhs_device_close.device": "NULL", "prhs_device_open.params": "&e->device_params",
    "prhs_buffer_create.device": "e->dev", "prhs_buffer_wrap_host.host": "e->space",
    "prhs_queue_write.dst": "e->mem", "prhs_queue_write.src": "e->space",
    "prhs_queue_read.dst": "e->space", "prhs_queue_read.src": "e->mem",
    "prhs_queue_copy.dst": "e->dst", "prhs_queue_copy.src": "e->mem",
    "prhs_queue_fill.dst": "e->mem", "prhs_queue_fill.word": "0",
    "prhs_session_create.state": "e->state", "prhs_session_create.workspace": "e->ws",
    "prhs_session_export.dst": "e->blob_mem", "prhs_session_import.src": "e->blob_mem",
    "prhs_op_prefill.policy": "&e->policy",
    "prhs_session_fork.dst": "e->slot2", "prhs_session_fork.src": "e->slot",
    "prhs_session_move.dst": "e->slot2", "prhs_session_move.src": "e->slot",
    "prhs_ops_get_layout.params": "&e->ops_params", "prhs_ops_create.params": "&e->ops_params",
    "prhs_ops_get_paths.params": "&e->ops_params", "prhs_ops_get_paths.paths": "e->paths", "prhs_ops_get_paths.count": "&e->count",
    "prhs_op_select.params": "&e->select", "prhs_op_gate.params": "&e->gate", "prhs_op_merge.params": "&e->merge",
    "prhs_session_get_sizes.params": "&e->session_params", "prhs_session_create.params": "&e->session_params",
    "prhs_policy_preset.policy": "&e->policy", "prhs_policy_check.policy": "&e->policy",
    "prhs_psaw_start.policy": "&e->policy", "prhs_etf_frozen.policy": "&e->policy",
    "prhs_op_score.full": "0", "prhs_op_score.moments": "0", "prhs_op_moments.values": "0",
    "prhs_event_elapsed.begin": "e->event", "prhs_event_elapsed.end": "e->event",
    "const prhs_log *": "&e->log", "prhs_device *": "e->dev", "const prhs_device *": "e->dev", "prhs_queue *": "e->queue",
    "prhs_buffer *": "e->buf", "const prhs_buffer *": "e->buf", "prhs_event *": "e->event",
    "prhs_ops *": "e->ops", "prhs_session *": "e->session", "const prhs_session *": "e->session",
    "prhs_stats_request *": "e->request", "const prhs_batch *": "&e->batch", "const prhs_kv *": "&e->kv", "prhs_kv *": "&e->kv",
    "const prhs_rows *q": "&e->q", "const prhs_rows *k": "&e->k", "const prhs_rows *v": "&e->v", "const prhs_rows *out": "&e->out",
    "const prhs_step *": "&e->step", "const prhs_merge_params *": "&e->merge", "const prhs_gate_params *": "&e->gate",
    "const prhs_select_params *": "&e->select", "prhs_device **": "&e->new_dev", "prhs_buffer **": "&e->new_buf",
    "prhs_queue **": "&e->new_queue", "prhs_event **": "&e->new_event", "prhs_ops **": "&e->new_ops",
    "prhs_session **": "&e->new_session", "prhs_stats_request **": "&e->new_request", "prhs_device_info *": "&e->info",
    "prhs_counters *": "&e->counters", "prhs_ops_layout *": "&e->layout", "prhs_session_sizes *": "&e->sizes",
    "prhs_stats *": "&e->stats", "prhs_head_stats *": "&e->head_stats", "prhs_audit_report *": "&e->audit", "prhs_unit_view *": "&e->view",
    "double *": "&e->elapsed", "const char *name": "e->name",
    "const char **": "&e->why", "const void *blob": "e->blob", "prhs_mem state": "e->ops_state", "prhs_mem ws": "e->ops_ws",
    "prhs_mem lse": "e->lse", "size_t size": "e->size", "size_t i": "0", "int sign": "e->sign",
    "uint32_t layers": "e->layers", "uint32_t layer": "e->layer", "uint32_t slot": "e->slot", "uint32_t unit": "e->unit",
    "uint32_t head": "e->head", "uint64_t population": "10", "uint64_t count": "5", "double mean": "0.5", "double square": "0.3",
    "double confidence": "0.9",
    "uint32_t kv_heads": "2", "uint32_t dim": "32", "uint32_t t": "9", "uint32_t n": "9",
    "prhs_status status": "PRHS_OK", "prhs_dtype dtype": "PRHS_F16", "prhs_backend_kind kind": "PRHS_BACKEND_CPU",
}


def prototypes(text):
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    for match in re.finditer(r"PRHS_API\s+([^;]*?)(prhs_\w+)\s*\(([^;]*?)\)\s*;", text, flags=re.S):
        result, name, params = (" ".join(part.split()) for part in match.groups())
        split = []
        for param in params.split(","):
            param = param.strip()
            if param != "void":
                kind, label = re.fullmatch(r"(.*?)(\w+)", param).groups()
                split.append((kind.strip(), label))
        yield result.strip(), name, split


def valid(name, kind, label):
    for key in (f"{name}.{label}", f"{kind}{label}" if kind.endswith("*") else f"{kind} {label}", kind):
        if key in VALUES:
            return VALUES[key]
    sys.exit(f"gen_null.py: no valid value for parameter `{kind} {label}` of {name}(): add one to VALUES")


def case(out, index, proto, at):
    result, name, params = proto
    args = [valid(name, kind, label) for kind, label in params]
    args[at] = "t_none()" if params[at][0] == "prhs_mem" else "NULL"
    call = f"{name}({', '.join(args)})"
    want = ALLOWED.get((name, params[at][1]))
    out.append(f"static void null_{index}(t_ctx *t, t_env *e)\n{{\n    (void)t;\n    (void)e;")
    if want == "void":
        out.append(f"    {call};")
    elif want == "any":
        out.append(f"    (void){call};")
    elif want is None or want == "PRHS_OK":
        if result != "prhs_status":
            sys.exit(f"gen_null.py: {name}({params[at][1]} NULL) returns {result}: say in ALLOWED what it must be")
        out.append(f"    T_STATUS(t, {want or 'PRHS_ERR_ARGUMENT'}, {call});")
        if want is None and name not in SILENT and (at > 0 or len(params) == 0):
            out.append(f'    T_CHECK(t, t->sentences == 1 && strstr(t->sentence, "{name}"), "%u sentences: %s", t->sentences, t->sentence);')
    else:
        out.append(f'    T_CHECK(t, {call} == {want}, "{name} with {params[at][1]} NULL");')
    out.append("}\n")


def main():
    protos = []
    for header in sys.argv[2:]:
        with open(header, encoding="utf-8") as file:
            protos += prototypes(file.read())
    if len(protos) < 50:
        sys.exit(f"gen_null.py: only {len(protos)} public calls found in the headers")
    out = ["/* Made by gen_null.py from the public headers. */", "#include <string.h>", "", '#include "null.h"', ""]
    rows = []
    for proto in protos:
        for at, (kind, label) in enumerate(proto[2]):
            if kind.endswith("*") or kind == "prhs_mem":
                case(out, len(rows), proto, at)
                rows.append(f'    {{ "{proto[1]} {label}", null_{len(rows)} }},')
    out += ["const t_null_case t_null_cases[] = {"] + rows + ["};", f"const int t_null_count = {len(rows)};", ""]
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write("\n".join(out))


main()
