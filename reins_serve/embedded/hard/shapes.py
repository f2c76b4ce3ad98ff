"""The training of judge A's reader of shapes, on three sources at once: drawings, the same through a noised autoencoder, and clips
that the model painted over drawings. All carry a drawing's label."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from reins_serve.embedded.hard import NUM_FRAMES
from reins_serve.embedded.hard.judge import ShapeReader
from reins_serve.embedded.judge import stack

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
    optimiser = torch.optim.AdamW(reader.parameters(), lr=PEAK_LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=PEAK_LR, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        frames = rng.choice(NUM_FRAMES, FRAMES, replace=False)
        rows = [rng.integers(len(clips), size=share) for (clips, _), share in zip(sources, SHARES, strict=True)]
        pairs = list(zip(sources, rows, strict=True))
        video = stack(np.concatenate([clips[chosen][:, frames] for (clips, _), chosen in pairs]))
        target = torch.from_numpy(np.concatenate([shapes[chosen] for (_, shapes), chosen in pairs]))
        video = video + torch.randn(video.shape) * torch.rand(len(video), 1, 1, 1) * 0.1
        loss = nn.functional.cross_entropy(reader(video), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        report(step + 1, float(loss.detach()))
    return reader
