"""The harder model's denoiser and its training: text to video and image to video at once, in Wan 2.2 TI2V's layout, where each
token has its own timestep and a first frame that is given has timestep 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor

from reins_serve.embedded.denoiser import (
    FOREGROUND_WEIGHT,
    LatentData,
    Trainer,
    build_transformer,
    draw_sigma,
    embed_text,
    falling,
)
from reins_serve.embedded.hard import TEXT_TOKENS
from reins_serve.embedded.hard.captions import training_caption
from reins_serve.embedded.hard.world import Scene

CHANNELS = 12
PATCH = (1, 2, 2)  # Wan's image-to-video pipeline takes a timestep for every 2 x 2 cells of a frame
FIRST_FRAME_SHARE = 0.25  # the frame gives shape, colour and landscape away: there is less to learn
LENGTHS = (20, 32, 48)
"""Other text lengths, on 15 % of the batches: zero padding is attended to, so the length must not decide anything."""
OTHER_LENGTH_SHARE = 0.15
POLISHED = 0.156
"""Share of the steps, the last ones, that polish the shapes."""
POLISH_RATE = 0.2
"""Of the learning rates."""
SHAPE_WEIGHT = 8.0
MORE_STILL = 1 / 6
"""Share of a batch that is drawn anew from the clips whose shape stands still; one in five of the others does, too."""


@dataclass(frozen=True)
class Drawn(LatentData[Scene]):
    """The training set. `mask` is 0 where there is only landscape, 1 where a cell touches something unsafe, 2 where it touches
    the shape; `phrases` are what each scene was drawn for."""

    phrases: list[str]


class HardTrainer(Trainer[Drawn]):
    """As `Trainer`, with a first frame given to a part of each batch, and with steps at the end that polish the shapes.

    Without these all shapes that came out wrong stood still: they may stand further off the middle than the others come by, and
    no word says where. An explosion, which has more cells than the shape before it, made it worse.
    """

    def build(self) -> WanTransformer3DModel:
        """8 blocks over 192 tokens a clip."""
        return build_transformer(CHANNELS, PATCH)

    @property
    def main_steps(self) -> int:
        """Those before the polish."""
        return self.settings.steps - round(POLISHED * self.settings.steps)

    def schedule(self, step: int) -> float:
        """One cosine after the other."""
        first = self.main_steps
        if step < first:
            return super().schedule(step)
        return POLISH_RATE * falling((step - first) / (self.settings.steps - first))

    @cached_property
    def _still(self) -> NDArray[np.intp]:
        return np.flatnonzero([scene.motion == "still" for scene in self.data.scenes])

    def rows(self, step: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Numbers of the clips in a step's batch."""
        found = rng.integers(len(self.data.scenes), size=self.settings.batch)
        if step >= self.main_steps:
            still = int(MORE_STILL * len(found))
            found[:still] = rng.choice(self._still, still)
        return found

    def loss(self, step: int) -> Tensor:
        """The loss of one step; its batch depends on the seed and the step alone."""
        data, rng = self.data, np.random.default_rng([self.settings.seed, 2, step])
        rows = self.rows(step, rng)
        captions = [training_caption(data.scenes[row], data.phrases[row], rng) for row in rows]
        length = int(rng.choice(LENGTHS)) if rng.random() < OTHER_LENGTH_SHARE else TEXT_TOKENS
        clean = data.latents[rows].float()  # [B, z, T, h, w]
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        sigma = draw_sigma(len(rows), rng)
        given = torch.from_numpy(rng.random(len(rows)) < FIRST_FRAME_SHARE)
        level = sigma[:, None].repeat(1, clean.shape[2])  # [B, T]
        level[given, 0] = 0
        mix = level[:, None, :, None, None]
        timesteps = (level * 1000).repeat_interleave(clean.shape[3] * clean.shape[4] // (PATCH[1] * PATCH[2]), dim=1)
        text = embed_text(self.text_encoder, self.tokenizer, captions, length)
        transformer: Any = self.transformer
        velocity = transformer((1 - mix) * clean + mix * noise, timesteps, text, return_dict=False)[0]
        mask = data.mask[rows].unsqueeze(1)
        weight = 1 + FOREGROUND_WEIGHT * (mask > 0).float()
        if step >= self.main_steps:
            weight = weight + SHAPE_WEIGHT * (mask == 2).float()
        weight = weight * (mix > 0)
        return (weight * (velocity - (noise - clean)).pow(2)).sum() / (weight.sum() * clean.shape[1])
