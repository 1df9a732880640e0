#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each public header compiles alone, twice over, as C11 and as C++11, without a warning: headers.py INCLUDE-DIR CC CXX HEADER..."""
import os
import subprocess
import sys


def main():
    include, cc, cxx, headers = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I", include, "-x"]
    languages = [[cc, "-std=c11", "-Wstrict-prototypes", "-Wmissing-prototypes"] + warnings + ["c", "-"],
                 [cxx, "-std=c++11"] + warnings + ["c++", "-"]]
    bad = 0
    for header in sorted(os.path.basename(h) for h in headers):
        text = f"#include <prhs/{header}>\n" * 2
        for command in languages:
            run = subprocess.run(command, input=text, text=True, capture_output=True)
            print(f"{'ok  ' if run.returncode == 0 else 'FAIL'} {header} {command[1]}")
            if run.returncode:
                bad += 1
                print(run.stderr)
    sys.exit(1 if bad or not headers else 0)


main()
