"""The last stage of the harder model's training: judge A learns from clips that the model itself painted.

A judge that has seen only drawings takes what is peculiar to this model's paint for another shape. But the model may also paint
another shape than it was asked for, and the judge must not learn to forgive that. So each clip is a drawing, noised to a level at
which it still shows what it is, which the model then finishes with its caption: its paint, the drawing's label.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from reins_serve.embedded.denoiser import embed_text
from reins_serve.embedded.hard import FLOW_SHIFT, GUIDANCE_SCALE, NUM_FRAMES, NUM_INFERENCE_STEPS, SIZE, TEXT_TOKENS
from reins_serve.embedded.hard.denoiser import PATCH, HardTrainer
from reins_serve.embedded.hard.judge import HEADS
from reins_serve.embedded.judge import build_network, restored, train_network
from reins_serve.embedded.vae import decode, encode, to_clips, to_tensor

STEPS_LEFT = (3, 4, 5)
"""Denoising steps that the model makes of its usual ones; with more of them less of the drawing is left."""
BATCH = 32
PEAK_LR = 5e-4

Report = Callable[[int, float], object]


def painted(
    vae: AutoencoderKLWan,
    trainer: HardTrainer,
    clips: np.ndarray,
    captions: Sequence[str],
    seed: int,
    report: Report = lambda *_: None,
) -> np.ndarray:
    """Drawn clips as the model finishes them, both uint8 `[N, T, H, W, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)
    scheduler.set_timesteps(NUM_INFERENCE_STEPS)
    sigmas = scheduler.sigmas  # [steps + 1], the last one 0
    made = []
    with torch.inference_mode():
        for number, start in enumerate(range(0, len(clips), BATCH)):
            clean = encode(vae, to_tensor(clips[start : start + BATCH]))
            left = sigmas[-1 - STEPS_LEFT[number % len(STEPS_LEFT)] :]
            latents = (1 - left[0]) * clean + left[0] * torch.randn(clean.shape, generator=generator)
            for sigma, following in itertools.pairwise(left):
                velocity = _velocity(trainer, latents, sigma, captions[start : start + BATCH])
                latents = latents + (following - sigma) * velocity
            made.append(to_clips(decode(vae, latents)))
            report(sum(map(len, made)), 0.0)
    return np.concatenate(made)


def _velocity(trainer: HardTrainer, latents: Tensor, sigma: Tensor, captions: Sequence[str]) -> Tensor:
    """The guided velocity, by the averaged weights that ship."""
    average: Any = trainer.average
    text = embed_text(average["text_encoder"], trainer.tokenizer, [*captions, *[""] * len(captions)], TEXT_TOKENS)
    tokens = latents[0, 0].numel() // (PATCH[1] * PATCH[2])
    timesteps = (sigma * 1000).expand(2 * len(latents), tokens)
    both = average["transformer"](torch.cat([latents, latents]), timesteps, text, return_dict=False)[0]
    asked, plain = both.chunk(2)
    return plain + GUIDANCE_SCALE * (asked - plain)


def tuned(
    judge: Path, drawn: np.ndarray, finished: np.ndarray, labels: np.ndarray, steps: int, seed: int, report: Report
) -> nn.Sequential:
    """Judge A's network after more steps on drawings and on what became of them; `labels` as `train_network`'s."""
    network = restored(build_network(NUM_FRAMES, SIZE, HEADS), judge)
    return train_network(drawn, finished, labels, steps, seed, report, HEADS, network, PEAK_LR)
