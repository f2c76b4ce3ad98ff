"""The training of judge A's reader of shapes, on three sources at once: drawings, the same through a noised autoencoder, and clips
that the model painted over drawings. All carry a drawing's label."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reins_serve.embedded.hard import NUM_FRAMES
from reins_serve.embedded.hard.judge import ShapeReader
from reins_serve.embedded.judge import descend, noisy

SHARES = (48, 48, 32)
"""Clips of a batch from each source."""
FRAMES = 3
"""Frames of each clip in a step: the reader looks at each alone, so a few do."""
PEAK_LR = 3e-3

Source = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Clips `[N, T, H, W, 3]` and their shapes `[N]`."""


def trained_reader(
    sources: Sequence[Source], steps: int, seed: int, report: Callable[[int, float], object]
) -> ShapeReader:
    """A reader after `steps` steps on batches of `SHARES` clips from the three sources; `report(step, loss)` follows each."""
    torch.manual_seed(seed)
    reader = ShapeReader()
    rng = np.random.default_rng([seed, 3])

    def loss_of_a_batch() -> Tensor:
        frames = rng.choice(NUM_FRAMES, FRAMES, replace=False)
        rows = [rng.integers(len(clips), size=share) for (clips, _), share in zip(sources, SHARES, strict=True)]
        pairs = list(zip(sources, rows, strict=True))
        video = noisy(np.concatenate([clips[chosen][:, frames] for (clips, _), chosen in pairs]))
        target = torch.from_numpy(np.concatenate([shapes[chosen] for (_, shapes), chosen in pairs]))
        return nn.functional.cross_entropy(reader(video), target)

    descend(reader, loss_of_a_batch, steps, PEAK_LR, report)
    return reader
