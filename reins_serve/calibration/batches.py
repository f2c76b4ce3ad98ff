"""Many clips in batches, un-steered or with a direction a row."""

from collections.abc import Callable, Sequence

import numpy as np

from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import ClipRequest, generate
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.plan import GenerationRecord
from reins_serve.steering.policy import SteeringRow

BATCH = 48
Progress = Callable[[int], None]  # called with the number of clips just finished


def steered(
    middleware: SteeringMiddleware,
    entry: CatalogEntry,
    requests: Sequence[ClipRequest],
    choices: Sequence[SteeringRow],
    batch: int = BATCH,
    progress: Progress = lambda n: None,
) -> tuple[np.ndarray, list[GenerationRecord]]:
    """Clips `uint8 [N, T, H, W, 3]` of an attached pipeline, row i by `choices[i]`, and their proved records."""
    frames, records = [], []
    for start in range(0, len(requests), batch):
        rows = slice(start, start + batch)
        with middleware.generation(rows=choices[rows]) as generation:
            frames.append(generate(middleware.pipeline, entry, requests[rows], generation.arguments))
        records += generation.records
        progress(len(requests[rows]))
    return np.concatenate(frames), records
