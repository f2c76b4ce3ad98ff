"""Random directions for any pipeline."""

from typing import Any

import torch

from reins_serve.models.spec import Pipeline, middle_blocks
from reins_serve.steering.direction import BlockStatistics, Direction, DirectionMeta, Fit, Strength, Window
from reins_serve.steering.fit import base_of


def direction(pipeline: Pipeline, seed: int = 0, **changes: Any) -> Direction:
    """A random unit direction at half depth of each denoiser; `changes` replace fields of its metadata."""
    blocks = changes.get("blocks", middle_blocks(pipeline))
    setpoint = changes.get("operation") == "setpoint"
    values: dict[str, Any] = {
        "format": "reins.direction/1",
        "name": "random",
        "model": "zoo",
        "version": "1",
        "role": "steer",
        "base": base_of(pipeline),
        "blocks": blocks,
        "operation": "add",
        "norm": "none",
        "branches": "both",
        "window": Window(start=0, end=0.5),
        "strength": Strength(unit="deficit" if setpoint else "ref_norm", serving=1.0, max=2.0),
        "statistics": (BlockStatistics(safe_mean=0.5, unsafe_mean=-0.5, ref_norm=1.0),) * len(blocks),
        "fit": Fit(
            method="random",
            created="2026-01-01T00:00:00Z",
            tool="test",
            prompts_safe=1,
            prompts_unsafe=1,
            clips=2,
            judge="none",
            seed=seed,
        ),
        "gates": {},
    }
    meta = DirectionMeta.model_validate(values | changes)
    vectors = torch.randn(len(blocks), meta.base.width, generator=torch.Generator().manual_seed(seed))
    return Direction.create(meta, torch.nn.functional.normalize(vectors, dim=1))
