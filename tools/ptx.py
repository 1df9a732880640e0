# SPDX-License-Identifier: Apache-2.0
"""PTX in the form in which src/cuda/ptx.c takes a kernel out of it.

Around every kernel stand the lines "//:name" and "//.", around every other function "//=" and "//.". Within, registers and labels are numbered in
the order of their first appearance, which the assembler does not mind. distances() writes them as how far back each is in the order in which they
were last seen: code that is alike looks alike then, and packs far better.
"""
import re

RAW = re.compile(r"(%[a-z]+|\$L)(?:__BB\d+_)?(\d+)")
NAME = re.compile(r"(%[a-z]+|\$L)(\d+)")
FUNCTION = re.compile(r"^//[:=]\w*\n.*?^//\.$", re.M | re.S)


def mark(text):
    """The lines around each function."""
    out, at = [], 0
    for m in re.finditer(r"^(?:\.visible |\.weak )?\.(?:entry (\w+)\(|func\b)", text, re.M):
        end, depth = text.index("{", m.end()), 0
        if ";" in text[m.end():end]:
            continue  # declared only
        while True:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
            if depth == 0:
                break
        out += [text[at:m.start()], f"//:{m.group(1)}\n" if m.group(1) else "//=\n", text[m.start():end], "\n//.\n"]
        at = end
    return "".join(out) + text[at:]


def number(text):
    """Numbers by first appearance, in a marked text."""

    def function(f):
        seen, declared = {}, set(re.findall(r"(%[a-z]+)<", f.group()))

        def name(m):
            if m.group(1) not in declared | {"$L"}:
                raise ValueError(f"{m.group()} is no register that it declares")
            numbers = seen.setdefault(m.group(1), {})
            return m.group(1) + str(numbers.setdefault(m.group(), len(numbers)))

        return RAW.sub(name, f.group())

    return FUNCTION.sub(function, text)


def distances(text):
    """A numbered text with distances: 0 is a new one, 1 the one that was seen last."""

    def function(f):
        seen = {}

        def name(m):
            order, n = seen.setdefault(m.group(1), []), int(m.group(2))
            if n > len(order):
                raise ValueError(f"{m.group()} comes before lower ones")
            distance = 0
            if n < len(order):
                at = order.index(n)
                distance = len(order) - at
                del order[at]
            order.append(n)
            return m.group(1) + str(distance)

        return NAME.sub(name, f.group())

    return FUNCTION.sub(function, text)


def numbers(text):
    """The numbered text again."""

    def function(f):
        seen = {}

        def name(m):
            order, distance = seen.setdefault(m.group(1), []), int(m.group(2))
            order.append(order.pop(-distance) if distance else len(order))
            return m.group(1) + str(order[-1])

        return NAME.sub(name, f.group())

    return FUNCTION.sub(function, text)
