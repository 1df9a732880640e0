#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The installed library as an outside user meets it: install.py SOURCE-ROOT BUILD-ROOT VERSION CC

Installs into a scratch folder, builds examples/decode.c against it through pkg-config (shared and static) and through CMake, with
no path into this tree, and runs what came out. Exit status 77: no pkg-config or no CMake on this machine.
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

CMAKE = """cmake_minimum_required(VERSION 3.13)
project(outside C)
find_package(prhs %s REQUIRED)
add_executable(shared decode.c)
target_link_libraries(shared PRIVATE prhs::prhs)
add_executable(static decode.c)
target_link_libraries(static PRIVATE prhs::prhs-static)
"""
VERSION_C = """#include <stdio.h>
#include <prhs/prhs.h>
int main(void) { unsigned v = (unsigned)prhs_version(); printf("%u.%u.%u\\n", v / 10000, v / 100 % 100, v % 100); return 0; }
"""


def run(*command, **more):
    done = subprocess.run(command, text=True, capture_output=True, **more)
    if done.returncode:
        sys.exit(f"FAIL {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def only(pattern):
    found = glob.glob(pattern, recursive=True)
    if len(found) != 1:
        sys.exit(f"FAIL {pattern}: {len(found)} files instead of one")
    return found[0]


def check_tree(root, prefix, lib, version):
    want = {os.path.basename(h) for h in glob.glob(os.path.join(root, "include/prhs/*.h"))}
    have = {os.path.basename(h) for h in glob.glob(prefix + "/include/prhs/*.h")}
    if want - have - {"cuda.h", "opencl.h"} or have - want:
        sys.exit(f"FAIL headers installed: {sorted(have)}, in the tree: {sorted(want)}")
    soname = "libprhs.so." + version.split(".", maxsplit=1)[0]
    for name in ("libprhs.a", "libprhs.so", soname, "libprhs.so." + version):
        only(f"{lib}/{name}")
    dynamic = run("readelf", "-d", f"{lib}/libprhs.so")
    if f"soname: [{soname}]" not in dynamic:
        sys.exit(f"FAIL the shared library's soname is not {soname}")
    alien = [n for n in re.findall(r"NEEDED.*\[(.*)\]", dynamic) if not re.match(r"lib(c|m|dl|pthread|gcc_s|atomic)\.so|ld-linux", n)]
    if alien:
        sys.exit(f"FAIL the shared library is linked to {alien}")


def by_pkg_config(work, prefix, lib, version, cc):
    env = dict(os.environ, PKG_CONFIG_PATH=lib + "/pkgconfig", PKG_CONFIG_LIBDIR=lib + "/pkgconfig")
    ask = ["pkg-config", "--define-variable=prefix=" + prefix]
    if run(*ask, "--modversion", "prhs", env=env) != version:
        sys.exit("FAIL pkg-config's version is another one")
    shared = run(*ask, "--cflags", "--libs", "prhs", env=env).split()
    static = run(*ask, "--cflags", "--libs", "--static", "prhs", env=env).split()
    static = [lib + "/libprhs.a" if f == "-lprhs" else f for f in static]
    with open(work + "/version.c", "w", encoding="utf-8") as f:
        f.write(VERSION_C)
    programs = [work + "/pc-shared", work + "/pc-static", work + "/pc-version"]
    for source, flags, program in (("decode.c", shared, programs[0]), ("decode.c", static, programs[1]), ("version.c", shared, programs[2])):
        run(cc, "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", f"{work}/{source}", "-o", program, *flags)
    answer = run(programs.pop(), env=dict(os.environ, LD_LIBRARY_PATH=lib))
    if answer != version:
        sys.exit(f"FAIL prhs_version() answers {answer}")
    return programs


def by_cmake(work, prefix, lib, version):
    # On Debian CMake does not look into lib64, where Meson installs if dpkg-dev is missing.
    where = ["-DCMAKE_PREFIX_PATH=" + prefix] + (["-Dprhs_DIR=" + lib + "/cmake/prhs"] if os.path.basename(lib) == "lib64" else [])
    configure = ["cmake", "-G", "Ninja", "-S", work, *where, "-B"]
    with open(work + "/CMakeLists.txt", "w", encoding="utf-8") as f:
        f.write(CMAKE % version)
    run(*configure, work + "/cmake")
    run("cmake", "--build", work + "/cmake")
    newer = str(int(version.split(".", maxsplit=1)[0]) + 1) + ".0"
    with open(work + "/CMakeLists.txt", "w", encoding="utf-8") as f:
        f.write(CMAKE % newer)
    if subprocess.run([*configure, work + "/cmake-newer"], capture_output=True).returncode == 0:
        sys.exit(f"FAIL find_package(prhs {newer}) is content with {version}")
    return [work + "/cmake/shared", work + "/cmake/static"]


def main():
    root, build, version, cc = sys.argv[1:]
    if not shutil.which("pkg-config") or not shutil.which("cmake"):
        print("no pkg-config or no cmake")
        return 77
    with tempfile.TemporaryDirectory() as work:
        run("meson", "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", work + "/root")
        lib = os.path.dirname(only(work + "/root/**/libprhs.so"))
        prefix = os.path.dirname(only(work + "/root/**/include"))
        check_tree(root, prefix, lib, version)
        shutil.copy(os.path.join(root, "examples/decode.c"), work)
        answers = set()
        for program in by_pkg_config(work, prefix, lib, version, cc) + by_cmake(work, prefix, lib, version):
            answers.add(run(program, env=dict(os.environ, LD_LIBRARY_PATH=lib)))
            print(f"ok {os.path.relpath(program, work)}")
        print("\n".join(answers))
        if len(answers) != 1:
            sys.exit("FAIL the same program gives different answers")
    return 0


sys.exit(main())
