"""Direction files changed at random, in every way that somebody thought of: a few of them are still valid."""

import gzip
import io
import json
import math
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Marker:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


NASTY: list[Any] = [
    None, True, "", "0.5", "x" * 3000, -1, 0, -0.5, 10**30, 10**4200, float("nan"), float("inf"), -float("inf"), 1e-320, [], {},
    [1, 1], ["a"], {"a": 1}, "steer", "control", "../../etc", "\x00", "\ud800", "é", [[[[[]]]]], 16.0, 1.5, [0], [3, 0], 1e308,
]  # fmt: skip


class Mutator:
    """Mutations of one valid file, by turns of every kind; equal seeds give equal files.

    Args:
        marker: Where a pickle that is loaded would leave a file.
    """

    def __init__(self, valid: bytes, seed: int, marker: Path) -> None:
        self._data, self._dice, self._marker = valid, random.Random(seed), marker
        (length,) = struct.unpack("<Q", valid[:8])
        self._body = valid[8 + length :]
        self._header = json.loads(valid[8 : 8 + length])
        self._meta = json.loads(self._header["__metadata__"]["reins"])
        self.kinds: list[Callable[[], bytes]] = [
            self.flipped, self.flipped_header, self.cut, self.longer, self.spliced, self.edited, self.edited, self.edited,
            self.edited, self.tensors, self.tensors, self.vectors, self.vectors, self.strength, self.other_base,
            self.pickled, self.packed, self.long_header, self.twice, self.deep, self.not_text, self.huge_numbers, self.shape,
        ]  # fmt: skip

    def file(self, number: int) -> bytes:
        """The mutated file of a number."""
        return self.kinds[number % len(self.kinds)]()

    def _file(self, header: bytes, body: bytes | None = None) -> bytes:
        return struct.pack("<Q", len(header)) + header + (self._body if body is None else body)

    def _with(self, meta: Any, body: bytes | None = None, **tensors: Any) -> bytes:
        text = meta if isinstance(meta, str) else json.dumps(meta)
        header = {"__metadata__": {"reins": text}, "vectors": self._header["vectors"]} | tensors
        return self._file(json.dumps(header).encode(), body)

    def _copy(self) -> dict[str, Any]:
        return json.loads(json.dumps(self._meta))

    def _flip(self, data: bytearray, end: int) -> bytes:
        for _ in range(self._dice.randint(1, 8)):
            data[self._dice.randrange(end)] ^= 1 << self._dice.randrange(8)
        return bytes(data)

    def flipped(self) -> bytes:
        return self._flip(bytearray(self._data), len(self._data))

    def flipped_header(self) -> bytes:
        return self._flip(bytearray(self._data), len(self._data) - len(self._body))

    def cut(self) -> bytes:
        return self._data[: self._dice.randrange(len(self._data))]

    def longer(self) -> bytes:
        return self._data + self._dice.randbytes(self._dice.randint(1, 5000))

    def spliced(self) -> bytes:
        first, second = sorted(self._dice.sample(range(len(self._data)), 2))
        piece = self._data[first:second]
        return self._dice.choice(
            [self._data[:first] + self._data[second:], self._data[:second] + piece + self._data[second:]]
        )

    def edited(self) -> bytes:
        """Valid JSON with one value replaced, removed or added, anywhere."""
        meta = self._copy()
        places = [(meta, key) for key in meta]
        for parent, key in places:  # grows while it is walked
            child = parent[key]
            if isinstance(child, dict | list):
                places += [(child, k) for k in (child if isinstance(child, dict) else range(len(child)))]
        parent, key = self._dice.choice(places)
        how = self._dice.choice(["replace", "replace", "replace", "remove", "add"])
        if how == "replace":
            parent[key] = self._dice.choice(NASTY)
        elif how == "remove":
            del parent[key]
        elif isinstance(parent, dict):
            parent[self._dice.choice(["alpha", "x" * 5000, "", "Name", "strength "])] = self._dice.choice(NASTY)
        else:
            parent.append(self._dice.choice(NASTY))
        return self._with(meta)

    def tensors(self) -> bytes:
        """Another name, type, shape or place of the tensor, or a second one."""
        shape, size = self._header["vectors"]["shape"], len(self._body)
        whole = self._header["vectors"]
        kind = self._dice.choice(["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "float32", 32, None])
        changes: list[dict[str, Any]] = [
            {"vectors": whole | {"dtype": kind}},
            {"vectors": whole | {"shape": self._dice.choice([shape[::-1], [size // 4], [1, *shape], [], [0, 16], [-1, 16],
                                                            [2**62, 4], [1, 2**64], [1.0, 16.0], "x", None])}},
            {"vectors": whole | {"data_offsets": self._dice.choice([[0, size * 2], [size, 0], [4, size + 4], [0, 2**63],
                                                                   [0, 2**64], [-size, 0], [0, size - 4], [0], None,
                                                                   [0.0, float(size)]])}},
            {"another": whole},
            {"another": {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}},
            {"another": {"dtype": "F32", "shape": [1], "data_offsets": [size, size + 4]}},
            {"vectors": whole | {"alpha": 1}},
            {"x" * 4000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
            {"vectors": None},
        ]  # fmt: skip
        return self._with(self._meta, None, **self._dice.choice(changes))

    def vectors(self) -> bytes:
        values = list(struct.unpack(f"<{len(self._body) // 4}f", self._body))
        place = self._dice.randrange(len(values))
        kind = self._dice.choice(["nan", "inf", "zero", "long", "short", "one", "swapped", "negated"])
        values[place] = {"nan": math.nan, "inf": math.inf, "one": 1.0}.get(kind, values[place])
        scale = {"zero": 0.0, "long": 1.0 + self._dice.random(), "short": 0.999, "negated": -1.0}.get(kind, 1.0)
        values = [value * scale for value in values]
        if kind == "swapped":
            self._dice.shuffle(values)
        return self._with(self._meta, struct.pack(f"<{len(values)}f", *values))

    def strength(self) -> bytes:
        meta = self._copy()
        meta["strength"] |= self._dice.choice([{"serving": -0.5}, {"serving": 0}, {"max": -1.0}, {"serving": 9.0},
                                               {"serving": float("nan")}, {"max": float("inf")}, {"unit": "deficit"},
                                               {"serving": -0.5, "max": -0.1}, {"serving": 0.25}])  # fmt: skip
        return self._with(meta)

    def other_base(self) -> bytes:
        meta, body, blocks = self._copy(), self._body, self._dice.choice([1, 2, 8])
        kind = self._dice.choice(["width", "fingerprint", "model", "num_blocks", "denoiser", "denoiser_class"])
        if kind == "model":
            meta["model"] = self._dice.choice(["another", "../tiny", "Tiny", ""])
        elif kind == "width":
            body = struct.pack(f"<{blocks}f", 1.0, *[0.0] * (blocks - 1))
            meta["base"]["width"] = blocks
            tensor = {"dtype": "F32", "shape": [1, blocks], "data_offsets": [0, len(body)]}
            return self._with(meta, body, vectors=tensor)
        else:
            meta["base"][kind] = 7 if kind == "num_blocks" else "another one"
        return self._with(meta, body)

    def pickled(self) -> bytes:
        loaded = {"vectors": Marker(self._marker)}
        return self._dice.choice([pickle.dumps(loaded, self._dice.randint(0, 5)), self._file(pickle.dumps(loaded)),
                                  self._zip("archive/data.pkl", pickle.dumps(loaded))])  # fmt: skip

    def _zip(self, name: str, data: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
        return file.getvalue()

    def packed(self) -> bytes:
        zeros = bytes(10**6)
        return self._dice.choice([lambda: self._zip("vectors", zeros), lambda: gzip.compress(self._data),
                                  lambda: self._file(gzip.compress(zeros))])()  # fmt: skip

    def long_header(self) -> bytes:
        padding = self._dice.choice([10, 10**5])
        return self._dice.choice([
            lambda: struct.pack("<Q", self._dice.choice([2**64 - 1, 2**63, 2**32, 10**8, len(self._data)])) + self._data[8:],
            lambda: struct.pack("<Q", 2**40),
            lambda: self._file(json.dumps(self._header).encode() + b" " * padding),
            lambda: self._file(b" " * padding + json.dumps(self._header).encode()),
            lambda: self._with(self._meta | {"bomb": [[]] * padding}),
            lambda: self._with(self._meta | {"blocks": ["a"] * padding}),
        ])()  # fmt: skip

    def twice(self) -> bytes:
        """A key that is there twice: two readers may read two things."""
        inner, outer = json.dumps(self._meta), json.dumps(self._header)
        name = self._dice.choice(["strength", "blocks", "role", "gates", "name"])
        other = f'{{"{name}": {json.dumps(self._meta[name])}, '
        tensor = json.dumps(self._header["vectors"])
        return self._dice.choice([
            lambda: self._with(other + inner[1:]),
            lambda: self._with(inner.replace('"serving":', '"serving": 0.25, "serving":')),
            lambda: self._file(f'{{"__metadata__": {{"reins": ""}}, {outer[1:]}'.encode()),
            lambda: self._file(f'{{"vectors": {tensor}, {outer[1:]}'.encode()),
            lambda: self._file(outer.replace('"dtype":', '"dtype": "F16", "dtype":').encode()),
        ])()  # fmt: skip

    def deep(self) -> bytes:
        depth = self._dice.choice([150, 5000, 200_000])
        nested = "[" * depth + "]" * depth
        objects = '{"a":' * depth + "1" + "}" * depth
        text = json.dumps(self._meta)
        return self._dice.choice([
            lambda: self._file(nested.encode()),
            lambda: self._with(nested),
            lambda: self._with(text[:-1] + f', "parent": {nested}}}'),
            lambda: self._with(text[:-1] + f', "alpha": {objects}}}'),
            lambda: self._file(json.dumps(self._header)[:-1].encode() + f', "alpha": {objects}}}'.encode()),
        ])()  # fmt: skip

    def not_text(self) -> bytes:
        header = json.dumps(self._header).encode()
        return self._dice.choice([
            lambda: self._file(header.replace(b"steer", b"st\xffer")),
            lambda: self._file(header.decode().encode("utf-16")),
            lambda: self._file(b"\xef\xbb\xbf" + header),
            lambda: self._with(json.dumps(self._meta).replace("none", "\ud800")),
            lambda: self._with(json.dumps(self._meta | {"parent": "\udfff"})),
            lambda: self._file(header.replace(b"none", b"no\x00ne")),
        ])()  # fmt: skip

    def huge_numbers(self) -> bytes:
        text = json.dumps(self._meta)
        number = self._dice.choice(["1" * 400, "1" * 5000, "-" + "9" * 4299, "1e999", "1e-999", "9" * 100 + ".5"])
        field = self._dice.choice(["width", "num_blocks", "seed", "clips", "serving", "safe_mean"])
        changed = text.replace(f'"{field}": ', f'"{field}": {number}, "{field}_": ')
        outer = json.dumps(self._header).replace('"data_offsets": [0', f'"data_offsets": [{number}')
        only = text.replace(f'"{field}": {json.dumps(self._found(field))}', f'"{field}": {number}')
        return self._dice.choice(
            [lambda: self._with(changed), lambda: self._with(only), lambda: self._file(outer.encode())]
        )()

    def _found(self, field: str) -> Any:
        return next(part[field] for part in (self._meta["base"], self._meta["fit"], self._meta["strength"],
                                             self._meta["statistics"][0]) if field in part)  # fmt: skip

    def shape(self) -> bytes:
        """A header of another shape."""
        return self._dice.choice([
            lambda: self._file(self._dice.choice([b"[]", b"null", b"1", b'"reins"', b"{}", b'{"__metadata__": null}'])),
            lambda: self._file(json.dumps(self._header | {"__metadata__": {"reins": self._meta}}).encode()),
            lambda: self._file(json.dumps(self._header | {"__metadata__": {"reins": 5}}).encode()),
            lambda: self._file(json.dumps(self._header | {"__metadata__": {"alpha": "1"}}).encode()),
            lambda: self._file(json.dumps(self._header | {"__metadata__": ["reins"]}).encode()),
            lambda: self._with(self._dice.choice(["[]", "null", "1", "", "{}", '"x"'])),
            lambda: self._with(self._meta),
            lambda: self._with(dict(reversed(self._meta.items()))),
        ])()  # fmt: skip
