"""A second reader of direction files, for the fuzzer: made after the format's description, sharing no code with `Direction`."""

import json
import math
import struct
from typing import Any

TEXT = {"format": "reins.direction/1", "role": ("steer", "control"), "operation": ("add", "setpoint"),
        "norm": ("token", "channel", "none"), "branches": ("both", "cond")}  # fmt: skip
FLOAT32 = 3.4e38  # the push is made of such numbers


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _strict(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=_pairs)


def read(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """What a valid file says, and the bytes of its vectors; None of one that is not valid."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header, body = _strict(data[8 : 8 + length].decode()), data[8 + length :]
        meta = _strict(header["__metadata__"]["reins"])
        _check_vectors(header, body, len(meta["blocks"]), meta["base"]["width"])
        _check_meta(meta)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ):
        return None
    return meta, body


def _check_vectors(header: dict[str, Any], body: bytes, blocks: int, width: int) -> None:
    assert set(header) == {"__metadata__", "vectors"}
    size = 4 * blocks * width
    vectors = header["vectors"]
    assert (vectors["dtype"], vectors["shape"], vectors["data_offsets"]) == ("F32", [blocks, width], [0, size])
    values = struct.unpack(f"<{blocks * width}f", body)
    for block in range(blocks):
        assert abs(math.hypot(*values[block * width : (block + 1) * width]) - 1) < 1.2e-4


def _check_guard(meta: dict[str, Any]) -> None:
    guard = meta.get("guard")
    if guard is None:
        return
    assert set(guard) == {"blocks", "shortfall"}
    assert meta["operation"] == "setpoint"
    assert 0 < _number(guard["shortfall"]) <= 0.5
    blocks = {_whole(block) for block in guard["blocks"]}
    assert blocks and blocks <= set(meta["blocks"])


def _check_meta(meta: dict[str, Any]) -> None:
    assert set(meta) - {"parent", "margin", "guard"} == {"format", "name", "model", "version", "role", "base", "blocks",
                                      "operation", "norm", "branches", "window", "strength", "statistics", "fit",
                                      "gates"}  # fmt: skip
    assert all(meta[name] in allowed and type(meta[name]) is str for name, allowed in TEXT.items())
    base, window, strength, fit = meta["base"], meta["window"], meta["strength"], meta["fit"]
    assert set(base) == {"fingerprint", "denoiser", "denoiser_class", "width", "num_blocks"}
    assert _whole(base["width"]) > 0 < _whole(base["num_blocks"])
    assert len(base["fingerprint"]) >= 8
    words = (meta["model"], base["fingerprint"], base["denoiser"], base["denoiser_class"])
    assert all(len(word) <= 200 for word in words)
    _check_window(window)
    assert set(strength) == {"unit", "serving", "max"}
    assert 0 < _number(strength["serving"]) <= _number(strength["max"])
    margin = _number(meta.get("margin", 0.0))
    assert 0 <= margin < 1 and (meta["operation"] == "setpoint" or not margin)
    _check_guard(meta)
    assert strength["unit"] in (("deficit",) if meta["operation"] == "setpoint" else ("gap", "ref_norm"))
    assert len(set(meta["blocks"])) == len(meta["blocks"]) == len(meta["statistics"]) > 0
    assert all(0 <= _whole(block) < base["num_blocks"] for block in meta["blocks"])
    for one in meta["statistics"]:
        assert set(one) == {"safe_mean", "unsafe_mean", "ref_norm"}
        assert _number(one["ref_norm"]) > 0
        gap = _number(one["safe_mean"]) - _number(one["unsafe_mean"])
        assert gap > 0 or meta["role"] == "control"
        unit = {"gap": gap, "ref_norm": one["ref_norm"], "deficit": 1.0}[strength["unit"]]
        assert abs(unit * strength["max"]) < FLOAT32
        assert not gap or 1 / abs(gap) < FLOAT32
    assert set(fit) - {"auc", "captured", "sources"} == {"method", "created", "tool", "prompts_safe", "prompts_unsafe",
                                                         "clips", "judge", "seed"}  # fmt: skip
    assert min(_whole(fit[name]) for name in ("prompts_safe", "prompts_unsafe", "clips")) >= 0
    _whole(fit["seed"])
    if fit.get("captured") is not None:
        _check_window(fit["captured"])
    for gate in meta["gates"].values():
        assert set(gate) == {"value", "limit", "passed"}
        assert gate["value"] is None or _number(gate["value"]) is not None
        assert type(gate["passed"]) is bool
    texts = [meta["name"], meta["model"], meta["version"], base["denoiser"], base["denoiser_class"],
             base["fingerprint"], fit["method"], fit["created"], fit["tool"], fit["judge"], *fit.get("sources", ()),
             *(gate["limit"] for gate in meta["gates"].values())]  # fmt: skip
    assert all(type(text) is str and text.encode() is not None for text in texts)


def _check_window(window: dict[str, Any]) -> None:
    assert set(window) <= {"start", "end"}
    assert 0 <= _number(window.get("start", 0.0)) < _number(window.get("end", 0.5)) <= 1


def _number(value: Any) -> float:
    assert type(value) in (int, float) and abs(value) < FLOAT32
    return value


def _whole(value: Any) -> int:
    assert type(value) is int
    return value
