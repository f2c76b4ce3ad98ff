"""Many clips in batches: the same prompts and seeds un-steered, captured, or with a direction a row."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from reins_serve.calibration.capture import Activations, Capture
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import ClipRequest, generate
from reins_serve.models.spec import Pipeline
from reins_serve.steering.direction import Window
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.plan import GenerationRecord
from reins_serve.steering.policy import SteeringRow

BATCH = 48
Progress = Callable[[int], None]  # called with the number of clips just finished


def _slices(n: int, batch: int) -> Iterable[slice]:
    return (slice(start, min(start + batch, n)) for start in range(0, n, batch))


def captured(
    pipeline: Pipeline,
    entry: CatalogEntry,
    requests: Sequence[ClipRequest],
    blocks: Sequence[int],
    window: Window,
    batch: int = BATCH,
    progress: Progress = lambda n: None,
) -> tuple[np.ndarray, Activations]:
    """Un-steered clips `uint8 [N, T, H, W, 3]` of a bare pipeline, and their activations at `blocks`."""
    frames, pooled, norms = [], [], []
    for rows in _slices(len(requests), batch):
        with Capture(pipeline, len(requests[rows]), blocks, window) as capture:
            frames.append(generate(pipeline, entry, requests[rows], capture.arguments))
        pooled.append(capture.activations.pooled)
        norms.append(capture.activations.token_norm)
        progress(len(requests[rows]))
    return np.concatenate(frames), Activations(np.concatenate(pooled), np.concatenate(norms))


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
    for rows in _slices(len(requests), batch):
        with middleware.generation(rows=choices[rows]) as generation:
            frames.append(generate(middleware.pipeline, entry, requests[rows], generation.arguments))
        records += generation.records
        progress(len(requests[rows]))
    return np.concatenate(frames), records
