"""Random directions for trying a pipeline's steering where no fitted one exists: they prove the path, and mean nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from reins_serve.models.spec import Pipeline, middle_blocks
from reins_serve.steering.direction import BlockStatistics, Direction, DirectionMeta, Fit, Guard, Strength, Window
from reins_serve.steering.fit import base_of

# Every operation, norm rule and set of branches at least once, and a guard.
KINDS: dict[str, dict[str, Any]] = {
    "live": {},
    "cond-token": {"branches": "cond", "norm": "token"},
    "setpoint": {"branches": "cond", "operation": "setpoint"},
    "channel": {"norm": "channel"},
    "guard": {"branches": "cond", "operation": "setpoint", "guarded": True},
}
SHORTFALL = 0.4  # a clip half-way between the classes is pushed in part


def trial_direction(
    pipeline: Pipeline,
    seed: int = 0,
    ref_norms: Sequence[float] | None = None,
    guarded: bool = False,
    **changes: Any,
) -> Direction:
    """A random unit direction at half the depth of each denoiser.

    Args:
        ref_norms: Norm of a token at each of its blocks, which is the length of its push; None: 1.
        guarded: Whether its blocks push only clips that are unsafe there.
        changes: Fields of the metadata to replace.
    """
    blocks = changes.get("blocks", middle_blocks(pipeline))
    norms = ref_norms or (1.0,) * len(blocks)
    setpoint = changes.get("operation") == "setpoint"
    values: dict[str, Any] = {
        "format": "reins.direction/1",
        "name": "random",
        "model": "trial",
        "version": "1",
        "role": "steer",
        "base": base_of(pipeline),
        "blocks": blocks,
        "operation": "add",
        "norm": "none",
        "branches": "both",
        "window": Window(start=0, end=0.5),
        "strength": Strength(unit="deficit" if setpoint else "ref_norm", serving=1.0, max=2.0),
        "statistics": [BlockStatistics(safe_mean=0.5 * n, unsafe_mean=-0.5 * n, ref_norm=n) for n in norms],
        "fit": Fit(
            method="random",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tool="reins-serve models check",
            prompts_safe=0,
            prompts_unsafe=0,
            clips=0,
            judge="none",
            seed=seed,
        ),
        "gates": {},
        "guard": Guard(blocks=blocks, shortfall=SHORTFALL) if guarded else None,
    }
    meta = DirectionMeta.model_validate(values | changes)
    vectors = torch.randn(len(blocks), meta.base.width, generator=torch.Generator().manual_seed(seed))
    return Direction.create(meta, torch.nn.functional.normalize(vectors, dim=1))


def trial_directions(pipeline: Pipeline, ref_norms: Sequence[float] | None = None) -> dict[str, Direction]:
    """One trial direction of each kind in KINDS, by its name there."""
    return {
        name: trial_direction(pipeline, seed, ref_norms, name=name, **changes)
        for seed, (name, changes) in enumerate(KINDS.items())
    }
