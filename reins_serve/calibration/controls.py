"""Control directions, for measurements only: random ones, and the reverse of a direction, matched to it in displacement."""

import numpy as np
import torch

from reins_serve.calibration.batches import steered
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import ClipRequest
from reins_serve.steering.direction import BlockStatistics, Direction, Strength
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.policy import SteeringRow


def random_control(direction: Direction, seed: int, displacement: float) -> Direction:
    """Random unit vectors at the same blocks, branches and window, that add `displacement` to each token.

    Args:
        displacement: Mean effective displacement of a token per push under `direction`, in the hidden states' scale.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(direction.vectors.shape, generator=generator, dtype=torch.float64)
    return _control(direction, f"random-{seed}", torch.nn.functional.normalize(vectors, dim=1), displacement)


def reversed_control(direction: Direction, displacement: float) -> Direction:
    """The direction turned round: it adds `displacement` away from safe. A gate measures it offline; it is never served."""
    return _control(direction, "reversed", -direction.vectors, displacement)


def _control(direction: Direction, name: str, vectors: torch.Tensor, displacement: float) -> Direction:
    """An addition of the same length to every token, so that the match in mean displacement is exact; never live."""
    statistics = tuple(
        BlockStatistics(safe_mean=0.0, unsafe_mean=0.0, ref_norm=s.ref_norm) for s in direction.meta.statistics
    )
    # One strength serves all blocks, and a unit is a block's own: measure in units of the first block's token norm.
    strength = displacement / statistics[0].ref_norm
    meta = direction.meta.model_copy(
        update={
            "name": name,
            "role": "control",
            "operation": "add",
            "norm": "none",
            "statistics": statistics,
            "margin": 0.0,
            "guard": None,
            "strength": Strength(unit="ref_norm", serving=strength, max=strength),
            "gates": {},
            "parent": direction.sha256,
        }
    )
    return Direction.create(meta, vectors)


def mean_displacement(
    middleware: SteeringMiddleware, entry: CatalogEntry, requests: list[ClipRequest], name: str
) -> float:
    """Mean displacement of a token per push under a direction at its serving strength, over the clips of `requests`."""
    row = SteeringRow(name, middleware.directions[name].serving_strength)
    _, records = steered(middleware, entry, requests, [row] * len(requests))
    return float(np.mean([record.displacement for record in records]))
