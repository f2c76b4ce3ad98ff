"""The harder model's denoiser and its training: text to video and image to video at once, in Wan 2.2 TI2V's layout, where each
token has its own timestep and a first frame that is given has timestep 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from reins_serve.embedded.denoiser import (
    FOREGROUND_WEIGHT,
    LatentData,
    Trainer,
    build_transformer,
    draw_sigma,
    embed_text,
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


@dataclass(frozen=True)
class Drawn(LatentData[Scene]):
    """The training set; `phrases` are what each scene was drawn for."""

    phrases: list[str]


class HardTrainer(Trainer[Drawn]):
    """As `Trainer`, with a first frame given to a part of each batch."""

    def build(self) -> WanTransformer3DModel:
        """8 blocks over 192 tokens a clip."""
        return build_transformer(CHANNELS, PATCH)

    def loss(self, step: int) -> Tensor:
        """The loss of one step; its batch depends on the seed and the step alone."""
        data, rng = self.data, np.random.default_rng([self.settings.seed, 2, step])
        rows = rng.integers(len(data.scenes), size=self.settings.batch)
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
        weight = (1 + FOREGROUND_WEIGHT * data.mask[rows].unsqueeze(1).float()) * (mix > 0)
        return (weight * (velocity - (noise - clean)).pow(2)).sum() / (weight.sum() * clean.shape[1])
