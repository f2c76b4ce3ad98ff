"""Two directions compared, without their model."""

from typing import Any

from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Direction


def cosines(one: Direction, other: Direction) -> dict[int, float | None]:
    """Cosine of the two vectors by block; None for a block that one of them lacks. Raises ReinsError for unequal widths."""
    if one.meta.base.width != other.meta.base.width:
        raise ReinsError(f"Directions of width {one.meta.base.width} and {other.meta.base.width} cannot be compared.")
    rows = [dict(zip(direction.blocks, direction.vectors.double(), strict=True)) for direction in (one, other)]
    blocks = sorted(set(rows[0]) | set(rows[1]))
    return {b: float(rows[0][b] @ rows[1][b]) if b in rows[0] and b in rows[1] else None for b in blocks}


def changes(one: Direction, other: Direction) -> dict[str, list[Any]]:
    """The fields that differ, dotted, with both values."""
    before, after = (dict(_flat(direction.meta.model_dump(mode="json"))) for direction in (one, other))
    fields = dict.fromkeys([*before, *after])
    return {f: [before.get(f), after.get(f)] for f in fields if before.get(f) != after.get(f)}


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [leaf for key, item in value.items() for leaf in _flat(item, f"{path}.{key}" if path else key)]
