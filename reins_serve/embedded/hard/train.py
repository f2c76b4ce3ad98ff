"""Trains the harder embedded model from nothing: `python -m reins_serve.embedded.hard.train --out DIR`, as `embedded.train`
does, stage by stage and from where it stopped. Combinations of the evaluation split are drawn for judge A alone: one that had
not seen them learned which they are, and took a held-out circle for a square."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from reins_serve.embedded.denoiser import Settings
from reins_serve.embedded.hard import TEXT_TOKENS
from reins_serve.embedded.hard.captions import PHRASES, draw_phrase, training_caption, vocabulary
from reins_serve.embedded.hard.denoiser import CHANNELS, Drawn, HardTrainer
from reins_serve.embedded.hard.judge import HEADS, JudgeA, JudgeNetwork, classes
from reins_serve.embedded.hard.prompts import split_of
from reins_serve.embedded.hard.shapes import trained_reader
from reins_serve.embedded.hard.tune_judge import Report, painted, tuned
from reins_serve.embedded.hard.world import ATTRIBUTES, Scene, combinations, draw_with_mask
from reins_serve.embedded.tokenizer import build_tokenizer
from reins_serve.embedded.train import Plan, Recipe, blurred, main, say
from reins_serve.embedded.vae import build_vae

SEEN = tuple(scene for scene in combinations() if split_of(scene) != "evaluate")
PLAN = Plan(
    clips=24_576,
    vae_clips=768,
    vae_steps=400,
    judge_clips=16_384,
    judge_steps=1_800,
    painted_clips=2_048,
    painted_steps=300,
    shape_clips=12_288,
    shape_steps=800,
    denoiser=Settings(steps=3_080, batch=48),
)


def random_scene(rng: np.random.Generator, scenes: Sequence[Scene] = SEEN) -> tuple[Scene, str]:
    """A scene of one of these combinations, by default one that is not held out, and the phrase that it is drawn for."""
    phrase, shown = draw_phrase(rng)
    scene = scenes[int(rng.integers(len(scenes)))]
    return dataclasses.replace(scene, explosion=shown["explosion"], spill=shown["spill"]), phrase


def draw_clips(
    count: int, seed: tuple[int, ...], scenes: Sequence[Scene] = SEEN
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random clips, their foregrounds, and a row each: the judge's classes and the number of the phrase."""
    rng = np.random.default_rng(seed)
    drawn, phrases = zip(*(random_scene(rng, scenes) for _ in range(count)), strict=True)
    clips, masks = zip(*(draw_with_mask(scene, rng) for scene in drawn), strict=True)
    numbers = np.array([[PHRASES.index(phrase)] for phrase in phrases])
    return np.stack(clips), np.stack(masks), np.concatenate([classes(list(drawn)), numbers], axis=1)


def trainer_of(latents: torch.Tensor, mask: torch.Tensor, rows: list[list[int]], settings: Settings) -> HardTrainer:
    """The trainer of this world."""
    scenes = [scene_of(row) for row in rows]
    data = Drawn(latents, mask, scenes, [PHRASES[row[-1]] for row in rows])
    return HardTrainer(data, build_tokenizer(vocabulary(), TEXT_TOKENS), settings)


def scene_of(row: list[int]) -> Scene:
    """The scene of a row of `draw_clips`."""
    shape, colour, motion, background = (
        values[index] for values, index in zip(ATTRIBUTES.values(), row[:4], strict=True)
    )
    return Scene(shape, colour, motion, background, bool(row[4]), bool(row[5]))


def tune_judge(
    plan: Plan, vae: AutoencoderKLWan, trainer: HardTrainer, judge: Path, progress: Callable[[str, int], Report]
) -> JudgeNetwork:
    """Judge A's network: what `train_judge` made, trained on by clips that the model paints over drawings of every combination,
    and the reader of shapes, trained on these, on drawings and on what a noised autoencoder makes of them."""
    seed = plan.denoiser.seed
    drawn, _, rows = draw_clips(plan.painted_clips, (seed, 14), combinations())
    rng = np.random.default_rng([seed, 15])
    captions = [training_caption(scene_of(row), PHRASES[row[-1]], rng) for row in rows.tolist()]
    finished = painted(vae, trainer, drawn, captions, seed, progress("painted clips", plan.painted_clips))
    network = JudgeNetwork()
    report = progress("judge on painted clips", plan.painted_steps)
    network.scene = tuned(judge, drawn, finished, rows[:, : len(HEADS)], plan.painted_steps, seed, report)
    more, _, named = draw_clips(plan.shape_clips, (seed, 13), combinations())
    unclear = blurred(vae, more, seed, progress("shapes' clips", plan.shape_clips))
    kept = len(finished) // 8
    sources = [(more, named[:, 0]), (unclear, named[:, 0]), (finished[kept:], rows[kept:, 0])]
    network.shapes = trained_reader(sources, plan.shape_steps, seed, progress("shapes", plan.shape_steps))
    right = JudgeA(network).judge(finished[:kept]).attributes["shape"] == rows[:kept, 0]
    say(f"shapes: {right.sum()} of {kept} painted clips right that none of these steps saw")
    return network


HARD = Recipe(
    draw_clips,
    partial(build_vae, CHANNELS, patch=6, base=28, decoder_base=40),
    HEADS,
    trainer_of,
    expand_timesteps=True,
    draw_for_judge=partial(draw_clips, scenes=combinations()),
    tune_judge=tune_judge,
)

if __name__ == "__main__":
    main("python -m reins_serve.embedded.hard.train", HARD, PLAN)
