#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The library with all three backends, without symbols and debugging information, is of at most 4 MiB: size.py STRIP SHARED-LIB"""
import os
import subprocess
import sys
import tempfile

MOST = 4 << 20


def main():
    strip, library = sys.argv[1:]
    with tempfile.TemporaryDirectory() as work:
        out = os.path.join(work, "stripped.so")
        subprocess.run([strip, "--strip-all", "-o", out, library], check=True)
        size = os.path.getsize(out)
    print(f"{'FAIL ' if size > MOST else ''}{size} bytes of at most {MOST}")
    return 1 if size > MOST else 0


sys.exit(main())
