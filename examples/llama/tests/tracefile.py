# SPDX-License-Identifier: Apache-2.0
"""Reads the traces that tests record (docs/trace.md), checksums apart."""
import struct


class Trace:
    """shape: (model's layers, first, count, heads, kv_heads, dim); sequences: [(context, steps)]."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read()
        magic, version, _, *shape, self.scale, seqs, blocks, index, size = struct.unpack_from("<8s8IfIQQQ", self.data)
        assert magic == b"prhstrc\n" and version == 1 and size == len(self.data), (magic, version, size, len(self.data))
        self.shape = tuple(shape)
        self.sequences = [struct.unpack_from("<2I", self.data, index + 8 * i) for i in range(seqs)]
        self.blocks = [struct.unpack_from("<QQ6I", self.data, index + 8 * seqs + 40 * i) for i in range(blocks)]

    def rows(self, layer, seq, kind):
        """(position, row) of queries (0), keys (1) or values (2)."""
        width = self.shape[3 if kind == 0 else 4] * self.shape[5]
        out = []
        for offset, _, *where, first, count, _ in self.blocks:
            if where == [layer, seq, kind]:
                out += [(first + i, struct.unpack_from(f"<{width}e", self.data, offset + 2 * width * i)) for i in range(count)]
        return out


def near(a, b, bar=4e-3):
    """Whether two lists of rows have the same positions and nearly the same values: sums of another order, rounded to float16."""
    return [p for p, _ in a] == [p for p, _ in b] and all(
        abs(x - y) <= bar * max(1.0, abs(y)) for (_, r), (_, s) in zip(a, b, strict=True) for x, y in zip(r, s, strict=True))
