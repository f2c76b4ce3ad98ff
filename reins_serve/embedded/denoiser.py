"""The embedded model's denoiser and text encoder, and their training by flow matching: Muon on the matrices of the blocks,
AdamW on the rest, an exponential moving average, and checkpoints from which an interrupted run goes on bit for bit."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from reins_serve.embedded import TEXT_TOKENS
from reins_serve.embedded.captions import training_caption
from reins_serve.embedded.muon import Muon
from reins_serve.embedded.vae import LATENT_CHANNELS
from reins_serve.embedded.world import Scene

TEXT_WIDTH = 64
PATCH = (2, 2, 2)
FOREGROUND_WEIGHT = 4.0
EMA_DECAY = 0.998
WARM_UP = 80


def build_transformer(channels: int = LATENT_CHANNELS, patch: tuple[int, int, int] = PATCH) -> WanTransformer3DModel:
    """8 blocks, 4 heads of 32, 1.8 M parameters; a token takes in `patch` cells (frames, rows, columns) of the latents."""
    return WanTransformer3DModel(
        patch_size=patch,
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=channels,
        out_channels=channels,
        text_dim=TEXT_WIDTH,
        freq_dim=256,
        ffn_dim=256,
        num_layers=8,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def build_text_encoder(tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    """Two layers of width 64 over the tokenizer's words."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


SceneT = TypeVar("SceneT")


@dataclass(frozen=True)
class LatentData(Generic[SceneT]):
    """The training set: normalised latents `float16 [N, z, T, h, w]`, whether a cell touches the foreground
    `bool [N, T, h, w]`, and the scenes, for captions are drawn anew each time."""

    latents: Tensor
    mask: Tensor
    scenes: list[SceneT]


DataT = TypeVar("DataT", bound=LatentData[Any])


@dataclass(frozen=True)
class Settings:
    """What decides a run, together with the data. Equal settings give equal weights on the same machine."""

    steps: int = 1819
    seed: int = 0
    batch: int = 64
    muon_lr: float = 3e-3
    adamw_lr: float = 2e-3
    save_every: int = 100
    compiled: bool = True


def embed_text(
    text_encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, captions: list[str], length: int = TEXT_TOKENS
) -> Tensor:
    """Text states `[B, length, 64]`, zero behind the last token: just what `WanPipeline` makes of a prompt."""
    tokens = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    states = text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return states * tokens.attention_mask[..., None]


def draw_sigma(count: int, rng: np.random.Generator) -> Tensor:
    """Noise levels `[count]` in (0, 1), more often high ones, which decide what a clip shows."""
    return torch.sigmoid(torch.from_numpy(rng.standard_normal(count, dtype=np.float32)) * 1.2 + math.log(3))


def falling(done: float) -> float:
    """Half a cosine, from 1 to 0 while `done` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


class Trainer(Generic[DataT]):
    """Trains a transformer and its text encoder. State: weights, their average, both optimisers, the step."""

    def __init__(self, data: DataT, tokenizer: PreTrainedTokenizerFast, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.data, self.tokenizer, self.settings = data, tokenizer, settings
        self.transformer: Any = self.build()
        self.text_encoder = build_text_encoder(tokenizer)
        nn.init.zeros_(self.transformer.proj_out.weight)
        self.model = nn.ModuleDict({"transformer": self.transformer, "text_encoder": self.text_encoder})
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            in_block = name.startswith("transformer.blocks.") and parameter.ndim == 2
            (matrices if in_block else rest).append(parameter)
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=settings.muon_lr),
            torch.optim.AdamW(rest, lr=settings.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._peaks = [settings.muon_lr, settings.adamw_lr]
        self.step = 0

    def build(self) -> WanTransformer3DModel:
        """The untrained transformer."""
        return build_transformer()

    def _compile(self) -> None:
        """Compile the blocks (one graph serves all eight), or go on without if there is no working compiler."""
        self.transformer.compile_repeated_blocks(dynamic=False)
        try:
            self.loss(0).backward()
        except Exception as error:  # whatever the compiler's failure: it is an optimisation, not a need
            print(f"torch.compile does not work here ({type(error).__name__}); training without it.", flush=True)
            for block in self.transformer.blocks:
                block._compiled_call_impl = None
        self.model.zero_grad(set_to_none=True)

    def loss(self, step: int) -> Tensor:
        """The loss of one step. Its batch depends on the seed and the step alone, so a resumed run sees the same."""
        rng = np.random.default_rng([self.settings.seed, 2, step])
        rows = rng.integers(len(self.data.scenes), size=self.settings.batch)
        captions = [training_caption(self.data.scenes[row], rng) for row in rows]
        clean = self.data.latents[rows].float()  # [B, 8, T, h, w]
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        sigma = draw_sigma(len(rows), rng)
        mix = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - mix) * clean + mix * noise
        text = embed_text(self.text_encoder, self.tokenizer, captions)
        velocity = self.transformer(noisy, sigma * 1000, text, return_dict=False)[0]
        weight = 1 + FOREGROUND_WEIGHT * self.data.mask[rows].unsqueeze(1).float()
        return (weight * (velocity - (noise - clean)).pow(2)).mean() / weight.mean()

    def run(self, checkpoint: Path, report: Callable[[int, float, float], None]) -> nn.ModuleDict:
        """Train up to the last step and return the average; `report(step, loss, seconds)` is called after each.
        Goes on from `checkpoint` if that file is there, and rewrites it as it goes."""
        if checkpoint.exists():
            self.restore(checkpoint)
        if self.settings.compiled and self.step < self.settings.steps:
            self._compile()
        while self.step < self.settings.steps:
            started = time.perf_counter()
            for optimiser, peak in zip(self.optimisers, self._peaks, strict=True):
                optimiser.param_groups[0]["lr"] = peak * self.schedule(self.step)
            loss = self.loss(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
            self.model.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(EMA_DECAY, self.step / (self.step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
            if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                self.save(checkpoint)
            report(self.step, float(loss.detach()), time.perf_counter() - started)
        return self.average

    @property
    def main_steps(self) -> int:
        """Steps of the first cosine."""
        return self.settings.steps

    def schedule(self, step: int) -> float:
        """What a step multiplies the learning rates with."""
        return min(1.0, (step + 1) / WARM_UP) * falling(step / self.main_steps)

    def save(self, path: Path) -> None:
        """Write a checkpoint in one move, so that an interruption never leaves half of one."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Go back to a checkpoint that `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def labels(scenes: list[Scene]) -> NDArray[np.int64]:
    """The judge's classes of scenes, `[N, 5]`."""
    return np.array([(*scene.indices(), int(scene.explosion)) for scene in scenes], dtype=np.int64)
