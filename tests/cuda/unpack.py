#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Packed kernels come out whole: unpack.py UNPACK BUILD [--seed N]

Bytes of several kinds, packed as the build packs machine code and PTX; made-up PTX; and every image in BUILD (*.lzma), with every kernel of its
PTX: beside what Python makes of it.
"""
import glob
import lzma
import os
import random
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools"))
from pack import CODE, TEXT, write_packed
from ptx import distances, mark, number, numbers


def samples(draw):
    yield "nothing", b""
    yield "a byte", b"x"
    yield "one byte often", b"\0" * 70000
    yield "noise", draw.randbytes(3000)
    words = [draw.randbytes(draw.randint(1, 40)) for _ in range(60)]
    yield "words", b"".join(draw.choice(words) for _ in range(400))
    yield "far words", b"".join(draw.choice(words) if draw.random() < 0.2 else draw.randbytes(9) for _ in range(40000))
    yield "instructions", b"".join(draw.randbytes(3) + words[0][:1] * 9 + draw.choice(words).ljust(4, b"\1")[:4] for _ in range(9000))


def ptx(draw):
    """Functions whose registers and labels come in any order, some of them often; short ones in every other text."""
    most_lines = draw.choice((5, 400))

    def body():
        classes = {name: draw.randint(1, most) for name, most in (("r", 3000), ("f", 200), ("rd", 20), ("p", 3))}
        lines = [f"\t.reg .b32 \t%{name}<{n}>;\n" for name, n in classes.items()]
        for _ in range(draw.randint(1, most_lines)):
            a, b, c = (f"%{k}{int(classes[k] * draw.random() ** draw.randint(1, 5))}" for k in draw.choices(list(classes), k=3))
            lines.append(draw.choice([f"\tadd.s32 \t{a}, {b}, {c};\n", f"$L__BB0_{draw.randint(1, 30)}:\n", f"\t@{a} bra \t$L__BB0_{draw.randint(1, 30)};\n",
                                      f"\tmov.u32 \t{a}, %tid.x;\n", f"\t{{ .reg .b64 %tmp; mov.b64 {{{a},{b}}}, %tmp; }}\n"]))
        return "{\n" + "".join(lines) + "}\n"

    parts = [".version 7.7\n.address_size 64\n", ".func declared(\n\t.param .b64 a\n)\n;\n", f".func first(\n\t.param .b64 a\n)\n{body()}"]
    for i in range(4):
        parts += [f".visible .entry kernel{i}(\n\t.param .b64 a\n)\n{body()}", f".global .b32 between{i};\n"]
    return mark("".join(parts + [f".visible .entry kernel(\n)\n{body()}"]))


def main():
    unpack, build = sys.argv[1:3]
    seed = int(sys.argv[4]) if sys.argv[3:4] == ["--seed"] else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    draw, bad, images = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as work:
        whole, packed = work + "/whole", work + "/packed"

        def check(what, path, data, *kernel):
            with open(whole, "wb") as f:
                f.write(data)
            done = subprocess.run([unpack, path, whole, *kernel], text=True, capture_output=True)
            if done.returncode:
                print(f"FAIL {what}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
            return done.returncode != 0

        def check_kernels(what, text):
            with open(packed, "w", encoding="utf-8") as f:
                f.write(text)
            text, fails = numbers(text), 0
            for kernel in re.findall(r"^//:(\w+)$", text, re.M):
                alone = re.sub(r"\n//:(\w+)\n.*?\n//\.", lambda m: m.group() if m.group(1) == kernel else "", text, flags=re.S)
                fails += check(what, packed, alone.encode(), kernel)
            return fails

        for _ in range(20):
            text = ptx(draw)
            if numbers(distances(number(text))) != number(text):
                print("FAIL Python's own numbers")
                bad += 1
            bad += check_kernels("made-up PTX", distances(number(text)))
        for what, data in samples(draw):
            for kind in (CODE, TEXT):
                write_packed(packed, data, kind)
                bad += check(what, packed, data)
        for path in sorted(glob.glob(os.path.join(build, "src", "cuda", "*.lzma"))):
            with open(path, "rb") as f:
                data = lzma.decompress(f.read())
            bad += check(path, path, data)
            if path.endswith(".ptx.lzma"):
                bad += check_kernels(path, data.decode())
            images += 1
    print(f"{images} images, {bad} failed")
    return 1 if bad or images == 0 else 0


sys.exit(main())
