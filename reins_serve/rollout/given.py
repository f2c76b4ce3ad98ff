"""The directions that a deployment names: files, and in the place of the live one perhaps a store that it follows."""

from collections.abc import Mapping
from pathlib import Path

from reins_serve.rollout.address import SCHEME
from reins_serve.rollout.signatures import Trust, load_signed
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import LIVE

Directions = str | Path | Mapping[str, str | Path | Direction]


def store_of(directions: Directions) -> str | None:
    """The address `reins://...` from which the live direction comes, if it comes from a store."""
    live = directions.get(LIVE) if isinstance(directions, Mapping) else directions
    return live if isinstance(live, str) and live.startswith(SCHEME) else None


def load_directions(directions: Directions, trust: Trust = Trust()) -> dict[str, Direction]:
    """Read one direction file (it becomes `live`), or several by name; loaded ones pass.

    Raises DirectionError; SignatureError for a file that no trusted key has signed (`FILE.sig`), where keys are trusted.
    """
    named = directions if isinstance(directions, Mapping) else {LIVE: directions}
    return {name: d if isinstance(d, Direction) else load_signed(d, trust) for name, d in named.items()}
