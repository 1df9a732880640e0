#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Packed kernels come out whole: unpack.py UNPACK BUILD [--seed N]

Bytes of several kinds, packed as the build packs machine code and PTX, and every image in BUILD (*.lzma), beside what Python makes of it.
"""
import glob
import lzma
import os
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools"))
from pack import CODE, TEXT, write_packed


def samples(draw):
    yield "nothing", b""
    yield "a byte", b"x"
    yield "one byte often", b"\0" * 70000
    yield "noise", draw.randbytes(3000)
    words = [draw.randbytes(draw.randint(1, 40)) for _ in range(60)]
    yield "words", b"".join(draw.choice(words) for _ in range(400))
    yield "far words", b"".join(draw.choice(words) if draw.random() < 0.2 else draw.randbytes(9) for _ in range(40000))
    yield "instructions", b"".join(draw.randbytes(3) + words[0][:1] * 9 + draw.choice(words).ljust(4, b"\1")[:4] for _ in range(9000))


def main():
    unpack, build = sys.argv[1:3]
    seed = int(sys.argv[4]) if sys.argv[3:4] == ["--seed"] else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    draw, bad, images = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as work:
        whole, packed = work + "/whole", work + "/packed"

        def check(what, path, data):
            with open(whole, "wb") as f:
                f.write(data)
            done = subprocess.run([unpack, path, whole], text=True, capture_output=True)
            if done.returncode:
                print(f"FAIL {what}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
            return done.returncode != 0

        for what, data in samples(draw):
            for kind in (CODE, TEXT):
                write_packed(packed, data, kind)
                bad += check(what, packed, data)
        for path in sorted(glob.glob(os.path.join(build, "src", "cuda", "*.lzma"))):
            with open(path, "rb") as f:
                bad += check(path, path, lzma.decompress(f.read()))
            images += 1
    print(f"{images} images, {bad} failed")
    return 1 if bad or images == 0 else 0


sys.exit(main())
