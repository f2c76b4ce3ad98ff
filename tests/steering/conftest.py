"""A tiny pipeline with directions of every kind on disk, attached afresh for each test that changes it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reins_serve.plugin import SteeringMiddleware, attach
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Direction files `add`, `setpoint` (conditional branch), `guard`, `token` (two blocks) and `channel` for a tiny pipeline."""
    made = tiny.pipeline()
    kinds: dict[str, dict[str, object]] = {
        "add": {},
        "setpoint": {"operation": "setpoint", "branches": "cond", "blocks": (2,)},
        "token": {"norm": "token", "blocks": (1, 3)},
        "channel": {"norm": "channel", "blocks": (0,), "branches": "cond"},
        "guard": {
            "operation": "setpoint",
            "blocks": (1, 2),
            "margin": 0.5,
            "guard": {"blocks": (2,), "shortfall": 0.25},
        },
    }
    for seed, (name, changes) in enumerate(kinds.items()):
        tiny.direction(made, seed, name=name, **changes).save(tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.fixture
def steer(folder: Path) -> Callable[..., SteeringMiddleware]:
    """Attach steering to a fresh tiny pipeline: `steer("add")`, or `steer(live="add", other="token")`."""

    def attached(live: str = "add", **others: str) -> SteeringMiddleware:
        files = {name: folder / f"{kind}.safetensors" for name, kind in {"live": live, **others}.items()}
        return attach(tiny.pipeline(), model="tiny", directions=files)

    return attached
