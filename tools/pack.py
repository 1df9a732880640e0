# SPDX-License-Identifier: Apache-2.0
"""Packs images of kernels as src/cuda/lzma.c unpacks them."""
import lzma

TEXT = {"lc": 4, "lp": 0, "pb": 0}
CODE = {"lc": 0, "lp": 4, "pb": 4}  # instructions are 16 bytes


def write_packed(path, data, kind):
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24, **kind}]
    packed = lzma.compress(data, format=lzma.FORMAT_ALONE, filters=filters)
    with open(path, "wb") as f:
        f.write(packed[:5] + len(data).to_bytes(8, "little") + packed[13:])  # with the size that Python leaves open
