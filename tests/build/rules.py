#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rules that a compiler does not check: rules.py SOURCE-ROOT BUILD-ROOT VERSION

No flag that bends IEEE arithmetic; the version is the newest heading of CHANGELOG.md; every source file has its SPDX line; what README.md
quotes of examples/decode.c is there, and the example is under 100 lines.
"""
import json
import os
import re
import sys

BENT = re.compile(r"-ffast-math|-Ofast|-funsafe-math|-ffinite-math|-fassociative-math|-freciprocal-math|-fno-signed-zeros|"
                  r"-cl-fast-relaxed-math|-cl-finite-math-only|-cl-unsafe-math|-cl-no-signed-zeros|-cl-mad-enable|"
                  r"-cl-denorms-are-zero|-+use_fast_math|-+ftz=true|-+prec-(div|sqrt)=false")
FOLDERS = ["include", "src", "cl", "cuda", "tools", "examples", "tests", "scripts", "bench", ".ci"]
SOURCE = re.compile(r"\.(c|h|cl|clh|cu|cuh|def|map|py|sh)$|^meson\.build$")
SPDX = "SPDX-License-Identifier: Apache-2.0"


def sources(root):
    for folder in FOLDERS:
        for at, _, names in os.walk(os.path.join(root, folder)):
            for name in sorted(names):
                if SOURCE.search(name) or (os.path.basename(at) in ("scripts", ".ci") and os.access(os.path.join(at, name), os.X_OK)):
                    yield os.path.join(at, name)


def main():
    root, build, version = sys.argv[1:]
    bad = []
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as f:
        bad += [f"{c['file']}: compiled with {BENT.search(c['command']).group()}" for c in json.load(f) if BENT.search(c["command"])]
    with open(os.path.join(root, "CHANGELOG.md"), encoding="utf-8") as f:
        newest = re.search(r"^## (\S+)", f.read(), re.M)
    if not newest or newest.group(1) != version or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        bad.append(f"CHANGELOG.md's newest heading is not the version {version}")
    with open(os.path.join(root, "examples/decode.c"), encoding="utf-8") as f:
        example = f.read()
    with open(os.path.join(root, "README.md"), encoding="utf-8") as f:
        quotes = re.findall(r"^```c\n(.*?)^```$", f.read(), re.M | re.S)
    bad += [f"README.md quotes what examples/decode.c does not say: {q[:60]!r}" for q in quotes if q not in example]
    if not quotes or example.count("\n") >= 100:
        bad.append("README.md quotes nothing, or examples/decode.c has 100 lines or more")
    count = 0
    for path in sources(root):
        count += 1
        with open(path, encoding="utf-8") as f:
            text = f.read()
        name = os.path.relpath(path, root)
        if name.endswith(".map"):
            continue
        if SPDX not in text[:300]:
            bad.append(f"{name}: no SPDX line")
        if name.startswith(("src/", "cl/", "cuda/", "tools/")) and BENT.search(text):
            bad.append(f"{name}: {BENT.search(text).group()}")
    for line in bad:
        print("FAIL " + line)
    print(f"{count} files")
    return 1 if bad or not count else 0


sys.exit(main())
