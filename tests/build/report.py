#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`prhs report` from outside: report.py PRHS

The pages of the recorded documents: well-formed, nothing fetched, nothing that runs, every number in a table, marks where the axes say; text of
an input is never markup; documents that are damaged, foreign or absurd end in a sentence or in a sound page.
"""
import copy
import json
import math
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

ROOT = pathlib.Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
bad = 0


def check(good, what):
    global bad
    bad += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}")


class Tool:
    def __init__(self, prhs, folder):
        self.prhs, self.folder, self.out = prhs, pathlib.Path(folder), pathlib.Path(folder) / "page.html"

    def run(self, *words):
        return subprocess.run([self.prhs, "report", *map(str, words)], text=True, capture_output=True, check=False, timeout=60)

    def page(self, *documents, title=None):
        """The page's text and tree; documents are paths or what JSON is to hold."""
        paths = []
        for i, d in enumerate(documents):
            if not isinstance(d, pathlib.Path):
                path = self.folder / f"d{i}.json"
                path.write_text(json.dumps(d), encoding="utf-8")
                d = path
            paths.append(d)
        done = self.run("--out", self.out, *(["--title", title] if title else []), *paths)
        if done.returncode or done.stderr:
            raise RuntimeError(f"status {done.returncode}: {done.stderr}")
        text = self.out.read_text(encoding="utf-8")
        return text, ET.fromstring(text.split("\n", 1)[1])

    def refused(self, data):
        """One sentence that names the file, status 1 and no page; None: it was taken."""
        path = self.folder / "bad.json"
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        self.out.unlink(missing_ok=True)
        done = self.run("--out", self.out, path)
        if done.returncode == 0:
            return None
        return done.returncode == 1 and str(path) in done.stderr and done.stderr.count("\n") == 1 and not self.out.exists()


def numbers(x):
    if isinstance(x, dict):
        for value in x.values():
            yield from numbers(value)
    elif isinstance(x, list):
        for value in x:
            yield from numbers(value)
    elif isinstance(x, (int, float)) and not isinstance(x, bool):
        yield x


def shown(x):
    return f"{x:.0f}" if x == math.floor(x) and abs(x) < 1e9 else f"{x:.5g}"


def cells(tree):
    return {part for td in tree.iter("td") for part in "".join(td.itertext()).split(", ")}


def missing(tree, *documents):
    there = cells(tree)
    return [shown(x) for d in documents for x in numbers(d) if shown(x) not in there]


def structure(what, text, tree):
    """Laws of every page."""
    check(not [m for m in re.finditer("http", text) if not text.startswith('http://www.w3.org/2000/svg"', m.start())
               and not text.startswith('http-equiv="Content-Security-Policy"', m.start())], f"{what}: no address but the SVG namespace")
    tags = {element.tag for element in tree.iter()}
    check(not tags & {"script", "img", "iframe", "object", "embed", "form", SVG + "script", SVG + "image", SVG + "use"},
          f"{what}: nothing that runs or loads")
    attributes = [(k, v) for element in tree.iter() for k, v in element.attrib.items()]
    check(not [k for k, v in attributes if k.lower().startswith("on") or (k in ("href", "src") and not v.startswith("#") and v != "data:,")],
          f"{what}: no handlers, no references outward")
    ids = [v for k, v in attributes if k == "id"]
    wanted = {i for k, v in attributes if k == "aria-labelledby" for i in v.split()} | {v[1:] for k, v in attributes if k == "href" and v[0] == "#"}
    check(len(ids) == len(set(ids)) and wanted <= set(ids), f"{what}: ids are unique and lead somewhere")
    figures = list(tree.iter("figure"))
    good = all(f.find(".//table") is not None and f.find("figcaption") is not None and f.find(f".//{SVG}svg") is not None for f in figures)
    check(good, f"{what}: {len(figures)} figures with caption, drawing and table")
    for svg in (s for f in figures for s in f.iter(SVG + "svg") if "role" in s.attrib):
        if svg.get("role") != "img" or not svg.find(SVG + "title").text or not svg.find(SVG + "desc").text:
            check(False, f"{what}: a drawing without title or description")
    numbers_out = [v for k, v in attributes if k in ("d", "transform", "x", "y", "viewBox")]
    check(not [v for v in numbers_out if re.search("nan|inf", v)], f"{what}: no coordinate is NaN or infinite")
    return figures


def scale_of(ticks):
    """A function from values to places: linear or logarithmic, whichever the ticks are."""
    (v0, p0), (v1, p1) = ticks[0], ticks[-1]
    if len(ticks) == 1:
        return lambda v: p0 if v == v0 else math.nan
    for f in (lambda v: v, lambda v: math.log10(v) if v > 0 else math.nan):
        place = lambda v, f=f: p0 + (p1 - p0) * (f(v) - f(v0)) / (f(v1) - f(v0))
        if all(abs(place(v) - p) < 0.2 for v, p in ticks):
            return place
    return None


def marks(what, figure):
    """Marks stand where the axes' labels say, within the frame."""
    svg = next(s for s in figure.iter(SVG + "svg") if "role" in s.attrib)
    texts = [t for t in svg.iter(SVG + "text") if t.text and re.fullmatch(r"-?[\d.]+(e[-+]\d+)?", t.text)]
    across = [(float(t.text), float(t.get("x"))) for t in texts if t.get("class") == "middle"]
    up = [(float(t.text), float(t.get("y")) - 4) for t in texts if t.get("class") == "end"]
    x, y = scale_of(across), scale_of(up)
    points = [p for p in svg.iter(SVG + "path") if p.get("transform")]
    good = bool(x and y) and len(up) > 1
    for p in points:
        at = [float(n) for n in re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", p.get("transform")).groups()]
        values = [float(n) for n in p.find(SVG + "title").text.rsplit(": ", 1)[1].split(", ")]
        good = good and abs(x(values[0]) - at[0]) < 0.3 and abs(y(values[1]) - at[1]) < 0.3 and 0 <= at[0] <= 600 and 0 <= at[1] <= 380
    check(good, f"{what}: {len(points)} marks where the axes say")
    return len(points)


def contrast(text):
    def light(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(w * (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), parts))

    def ratio(a, b):
        high, low = sorted((light(a), light(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", text, re.S)]
    check(len(themes) == 2 and "prefers-color-scheme: dark" in text, "a light and a dark theme")
    for name, theme in zip(("light", "dark"), themes):
        words = min(ratio(theme[k], theme[b]) for k in ("fg", "soft", "c0") for b in ("bg", "panel"))
        series = min(ratio(theme[f"c{i}"], theme["bg"]) for i in range(9))
        fields = min(ratio(theme[f"h{i}"], theme["fg" if i < 4 else "heat-text"]) for i in range(7))
        check(words >= 4.5 and series >= 3 and fields >= 4.5, f"{name}: contrast of text {words:.1f}, marks {series:.1f}, fields {fields:.1f}")


def perplexity():
    """What prhs-llama writes, of two layers with three heads; the first one is dense."""
    def layer(i, delta):
        heads = [round(delta * (1 + 0.37 * h), 6) if delta else None for h in range(6)]
        return {"layer": i, "rho": 0.21 if delta else None, "delta": delta, "estimator": {"grade": "stale", "n": 17, "mean": 0.031, "exact_mean": 0.029},
                "head_delta": heads, "head_estimate": [h and h * 1.09 for h in heads], "head_exact": [h and h * 0.93 for h in heads]}

    def policy(name, k):
        return {"policy": name, "kept": 200 + k, "rho": 1 / (2 + k), "loss": 0.0313 / (1 + k), "nll": 2.5 + k / 7, "top1": 0.95, "delta": 0.041 + k / 99,
                "grade": "exact", "estimator": {"grade": "estimate", "n": 1234 + k, "mean": 0.04 + k / 97, "exact_mean": 0.043 + k / 96},
                "bytes_per_step": 1.2345e7 * (1 + k), "bytes_of_dense": 0.1 + k / 31, "documents": [{"nll": 2.125 + k, "loss": 0.0625 + k / 64}] * 2,
                "layers": [layer(0, None), layer(1, 0.0123 + k / 1000)]}
    dense = {"policy": "dense", "kept": None, "rho": None, "loss": 0, "nll": 2.5, "bytes_per_step": 5e7, "bytes_of_dense": 1}
    return {"kind": "perplexity", "format": 1, "backend": "cpu", "device": "host", "kv": "f16", "context": 3584, "decode": 512,
            "policies": [dense] + [policy(n, k) for k, n in enumerate(("topk", "cis,tau=0.6", "cis,tau=0.4", "cis-mass", "a-new-one,x=1"))]}


def replay():
    """What prhs replay writes: summaries instead of numbers, an object a head, and a sweep."""
    def summary(x):
        return {"n": 512, "mean": x, "p99": 3.25 * x, "max": 7.5 * x}

    def policy(name, k):
        heads = [{"delta": summary(0.011 * (h + k)), "error": summary(0.0031 * (h + k))} for h in range(1, 5)]
        return {"policy": name, "rho": 0.13 * k, "kept": 128 * k, "bytes_per_step": 98765 * k, "bytes_of_dense": 0.07 * k, "delta": summary(0.021 * k),
                "error": summary(0.0047 * k), "estimator": {"grade": "estimate", "n": 99, "mean": 0.0123 * k, "exact_mean": 0.0117 * k, "median_ratio": 1.03, "within_1.25": 0.61},
                "layers": [{"layer": 10 + i, "delta": summary(0.02 * k), "estimator": {"mean": 0.0241 * (k + i), "exact_mean": 0.0229 * (k + i)},
                            "heads": heads} for i in range(2)],
                "time": {"median_s": 1.7e-4 * k, "p99_s": 3.3e-4 * k}}
    points = [{"policy": f"cis-mass,k={64 << i}", "bytes_per_step": 54321 << i, "bytes_of_dense": 0.0413 * 2 ** i, "error": 0.083 / 3 ** i,
               "delta": 0.11 / 2 ** i, "rho": 0.12, "kept": 64 << i, "front": i != 1} for i in range(4)]
    return {"trace": {"file": "run.trace", "layers": 2, "sequences": [{"context": 3584, "steps": 512}]}, "backend": "cpu", "device": "host",
            "policies": [policy("cis", 1), policy("cis-mass", 2), policy("topk", 3)], "sweep": {"points": points, "recommended": "cis-mass,k=128"}}


def rooflines(figures, files, documents):
    """Bytes over the memory's speed, in µs, in the tables and as marks."""
    titles = {t.text.rsplit(", ", 1)[1] for f in figures for t in f.iter(SVG + "title") if t.text.startswith("roofline of: ")}
    inside = {"".join(td.itertext()) for f in figures for td in f.iter("td")}
    for path, d in zip(files, documents):
        steps = [r for r in d.get("rows", []) if r["section"] == "decode steps, by layer" and "bytes" in r]
        wanted = {shown(1e6 * r["bytes"] / d["read_bytes_per_second"]) for r in steps}
        if steps:
            check(wanted <= titles and wanted <= inside, f"{path.name}: {len(wanted)} rooflines")


def numbered(figure):
    """Every mark of a short plot has its number, and it is the table's."""
    rows = {"".join(r[1].itertext()): r[0].text for r in figure.iter("tr") if r[0].tag == "td"}
    names = {p.find(SVG + "title").text.rsplit(": ", 1)[0] for p in figure.iter(SVG + "path") if p.get("transform")}
    texts = sorted(t.text for t in figure.iter(SVG + "text") if t.get("class") == "middle small halo")
    check(names and texts == sorted(rows[n] for n in names), f"'{figure.find('figcaption').text}': {len(texts)} numbers beside marks")


def apart(figure):
    """No number lies on another one where text is largest (14 units high in a narrow page, a digit 9 wide), nor beside the drawing."""
    at = [(t.text, float(t.get("x")), float(t.get("y"))) for t in figure.iter(SVG + "text") if t.get("class") == "middle small halo"]
    width, name = 9, figure.find("figcaption").text
    for i, (a, x, y) in enumerate(at):
        if x - width * len(a) / 2 < 0 or x + width * len(a) / 2 > 600:
            check(False, f"'{name}': {a} is cut off")
        for b, u, v in at[i + 1:]:
            across, down = width * (len(a) + len(b)) / 2 - abs(x - u), 14 - abs(y - v)
            if across > 3 and down > 6:
                check(False, f"'{name}': {a} lies on {b}")
    for t in figure.iter(SVG + "text"):
        if t.get("class") == "middle" and t.get("x") and t.text.replace(".", "").isdigit(): # along the axis, 16 high
            if float(t.get("x")) + sum(5.1 if c == "." else 10.2 for c in t.text) / 2 > 600:
                check(False, f"'{name}': {t.text} is cut off")
    return len(at)


def recorded(tool):
    files = sorted((ROOT / "bench").glob("fidelity/*.json")) + sorted((ROOT / "bench").glob("performance/**/*.json"))
    documents = [json.loads(f.read_text(encoding="utf-8")) for f in files]
    text, tree = tool.page(*files, title="All that is recorded")
    figures = structure("recorded documents", text, tree)
    check(len(figures) >= 15 and tree.find(".//h1").text == "All that is recorded", f"{len(files)} documents in one page")
    check(sum("Loss against ρ" in f.find("figcaption").text for f in figures) >= 4, "loss against ρ of each document of perplexity")
    check(sum("Decode step" in f.find("figcaption").text for f in figures) >= 9, "latency by context length, a figure a shape")
    rooflines(figures, files, documents)
    for f in figures:
        if "against ρ" in f.find("figcaption").text:
            numbered(f)
    placed = sum(apart(f) for f in figures if f.find("figcaption").text.startswith(("Loss", "Estimated", "Output error against", "Time against")))
    check(placed > 150, f"{placed} numbers beside marks, apart")
    lost = missing(tree, *documents)
    check(not lost, f"{sum(1 for d in documents for _ in numbers(d))} numbers are in tables {lost[:5]}")
    count = sum(marks("recorded documents", f) for f in figures if not f.find("figcaption").text.startswith(("δ by", "Output error by")))
    check(count > 150, f"{count} marks")
    contrast(text)
    for width in re.findall(r"<svg[^>]*viewBox=\"0 0 (\d+)", text):
        if width != "600":
            check(False, "a drawing of another width")


def made(tool):
    for name, document, titles in (("perplexity", perplexity(), ("Loss against ρ", "Loss against bytes read", "Estimated against exact", "δ by layer and query",
                                                                 "δ̂ against δ by layer")),
                                   ("replay", replay(), ("Output error against ρ", "Output error against bytes", "Time against bytes", "Median of estimated",
                                                         "Estimated against exact", "Sweep:", "δ by layer and query",
                                                         "Output error by layer and query", "δ̂ against δ by layer: "))):
        text, tree = tool.page(document)
        figures = structure(name, text, tree)
        for title in titles:
            check(any(f.find("figcaption").text.startswith(title) for f in figures), f"{name}: '{title}'")
        lost = missing(tree, document)
        check(not lost, f"{name}: every number is in a table {lost[:5]}")
        for f in figures:
            if "by layer and query head: " not in f.find("figcaption").text or "against" in f.find("figcaption").text:
                marks(f"{name}, {f.find('figcaption').text}", f)
        maps = [f for f in figures if f.find("figcaption").text.startswith("δ by")]
        fields = [r for f in maps for r in f.iter(SVG + "rect") if r.find(SVG + "title") is not None]
        steps = {r.get("class"): float(r.find(SVG + "title").text.rsplit(": ", 1)[1]) for r in fields if r.get("class") != "none"}
        order = sorted(steps, key=lambda c: steps[c])
        check(len(order) > 2 and order == sorted(order), f"{name}: {len(maps)} heat maps of {len(fields)} fields, stronger colours for larger masses")
    check("cis-mass,k=128" in text and "Recommended" in text, "the recommended policy is named")


HOSTILE = "<script>alert(1)</script>\"'&amp;]]>--><svg onload=x>"


def hostile(tool):
    def poison(x):
        if isinstance(x, dict):
            return {k: poison(v) for k, v in x.items()} | {HOSTILE: HOSTILE}
        if isinstance(x, list):
            return [poison(v) for v in x]
        return HOSTILE + x if isinstance(x, str) and x not in ("perplexity", "decode steps, by layer") else x

    bench = json.loads((ROOT / "bench/performance/pocl-epyc.json").read_text(encoding="utf-8"))
    text, tree = tool.page(poison(perplexity()), poison(replay()), poison(bench), title=HOSTILE)
    structure("hostile names", text, tree)
    check("<script" not in text and "<svg onload" not in text and tree.find(".//h1").text == HOSTILE, "hostile names are text")
    check(HOSTILE in cells(tree) or any(HOSTILE in "".join(td.itertext()) for td in tree.iter("td")), "hostile names are shown as they are")
    path = tool.folder / "bytes.json"
    document = perplexity()
    document["policies"][1]["policy"] = "NAME"
    for raw, what in ((b"\xff\xfe", "bytes that are no UTF-8"), (b"\xc0\xbc", "an overlong '<'"), (b"\xed\xa0\x80", "half a surrogate pair"),
                      (rb"\u0001\u001b", "control characters"), (rb"\uffff", "a code point that is no character"), (b"\xf4\x90\x80\x80", "too large"),
                      (b"\xe2\x82", "a sequence that is cut off")):
        path.write_bytes(json.dumps(document).encode().replace(b"NAME", raw))
        text, tree = tool.page(path)
        check("\ufffd" in text, f"{what}: replaced")


def damaged(tool):
    whole = json.dumps(perplexity()).encode()
    cuts = [tool.refused(whole[:n]) for n in range(0, len(whole) - 1, 61)]
    check(all(cuts), f"{len(cuts)} truncations")
    for what, data in (("an empty file", b""), ("no JSON", b"policy,loss\n1,2\n"), ("two documents", whole + whole), ("bytes after a NUL", whole + b"\0x"),
                       ("a number", 7), ("a list", [1]), ("null", None), ("another document", {"name": "x"}), ("another kind", {"kind": "lunch"}),
                       ("a kind that is no word", {"kind": 5}), ("a later format", {"kind": "bench", "format": 2, "rows": []}),
                       ("a format that is no number", {"kind": "bench", "format": "1"}), ("policies that are no list", {"kind": "perplexity", "policies": {}}),
                       ("a policy without a name", {"kind": "perplexity", "policies": [{"loss": 1}]}),
                       ("a policy that is no object", {"kind": "replay", "policies": [3]}), ("a row without a name", {"kind": "bench", "rows": [{}]}),
                       ("a text without a name", {"kind": "perplexity", "texts": [{}]}),
                       ("a point without a name", {"kind": "replay", "sweep": {"points": [{}]}}), ("deep nesting", b"[" * 100000)):
        check(tool.refused(data), what)
    for path in (tool.folder / "none.json", tool.folder):
        done = tool.run("--out", tool.out, path)
        check(done.returncode == 1 and str(path) in done.stderr, f"{path.name}: cannot be read")
    done = tool.run("--out", tool.folder / "none" / "page.html", ROOT / "bench/fidelity/handbook-cpu.json")
    check(done.returncode == 1 and "cannot be written" in done.stderr, "a page that cannot be written")


def absurd(tool):
    """Values nobody measured, and random damage: a sound page, or a sentence."""
    for value in (1e308, -1e308, 1e-320, -1, 0, 1e999, "x", None, [], {}, True):
        for document in (perplexity(), replay(), json.loads((ROOT / "bench/performance/pocl-epyc.json").read_text(encoding="utf-8"))):
            for key in ("rho", "loss", "error", "bytes_per_step", "delta", "kept", "mean_s", "bytes", "shape", "head_delta", "layer", "estimator", "layers",
                        "heads", "documents", "read_bytes_per_second", "context"):
                spoil(document, key, value)
            data = json.dumps(document).replace("Infinity", "1e999").encode()
            path = tool.folder / "absurd.json"
            path.write_bytes(data)
            try:
                text, tree = tool.page(path)
                good = not re.search(r'(d|transform|x|y|width|viewBox)="[^"]*(nan|inf)', text) and tree is not None
            except RuntimeError as error:
                good, text = "status 1" in str(error), str(error)
            if not good:
                check(False, f"{value!r} everywhere: {text[:200]}")
    check(True, "absurd values")
    seed = 20
    dice, whole, taken = random.Random(seed), json.dumps(replay()).encode(), 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        verdict = tool.refused(bytes(data))
        if verdict is None:
            taken += 1
            ET.fromstring(tool.out.read_text(encoding="utf-8").split("\n", 1)[1])
        elif not verdict:
            check(False, "random damage ends in something else than a sentence")
    check(0 < taken < 150, f"random damage (seed {seed}): {taken} of 150 documents are still sound")


def spoil(x, key, value):
    if isinstance(x, list):
        for item in x:
            spoil(item, key, value)
    elif isinstance(x, dict):
        for k in x:
            if k == key:
                x[k] = copy.copy(value)
            else:
                spoil(x[k], key, value)


def usage(tool):
    for words, status, text in (([], 2, "--out is needed"), (["--out", "x"], 2, "a document is needed"), (["--help"], 0, "usage: prhs report"),
                                (["--colour", "x"], 2, "prhs report --help")):
        done = tool.run(*words)
        check(done.returncode == status and text in done.stdout + done.stderr, f"prhs report {' '.join(words)}: {status}, {text}")
    done = tool.run("--out", "-", ROOT / "bench/fidelity/handbook-twin.json")
    check(done.returncode == 0 and done.stdout.startswith("<!DOCTYPE html>"), "a page on standard output")


def main():
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(sys.argv[1], folder)
        for part in (usage, recorded, made, hostile, damaged, absurd):
            part(tool)
    return 1 if bad else 0


sys.exit(main())
