"""Trains the embedded model from nothing: `python -m reins_serve.embedded.train --out DIR`. Stages, each kept in DIR and
skipped when its file is there: autoencoder, data, judge, denoiser, export. An interrupted run goes on where it stopped."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from reins_serve.embedded import FLOW_SHIFT
from reins_serve.embedded.captions import explosion_rate
from reins_serve.embedded.denoiser import LatentData, Settings, Trainer, labels
from reins_serve.embedded.judge import HEADS, train_network
from reins_serve.embedded.tokenizer import build_tokenizer
from reins_serve.embedded.vae import (
    build_vae,
    decode,
    encode,
    psnr,
    set_moments,
    to_clips,
    to_tensor,
    tune_decoder,
    write_pca,
)
from reins_serve.embedded.world import ATTRIBUTES, Scene, combinations, draw_with_mask

CLIPS, VAE_CLIPS, VAE_STEPS, JUDGE_CLIPS, JUDGE_STEPS = 20_480, 1_024, 240, 6_144, 1_200


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of everything a run does; the defaults are those of the weights that ship."""

    clips: int = CLIPS
    vae_clips: int = VAE_CLIPS
    vae_steps: int = VAE_STEPS
    judge_clips: int = JUDGE_CLIPS
    judge_steps: int = JUDGE_STEPS
    painted_clips: int = 0
    painted_steps: int = 0
    shape_clips: int = 0
    shape_steps: int = 0
    denoiser: Settings = dataclasses.field(default_factory=Settings)


Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides a world's model besides the amounts.

    Attributes:
        draw: (count, seed) -> random clips `uint8 [N, T, H, W, 3]`, foregrounds `[N, T, H, W]`, and a row of integers
            each: the judge's classes, in the order of `heads`, and what else `trainer` needs to know of a scene.
        vae: The untrained autoencoder.
        heads: Judge A's heads and their numbers of classes.
        trainer: (latents, mask, rows, settings) -> the denoiser's trainer.
        expand_timesteps: Whether each token has its own timestep (Wan 2.2 TI2V).
        draw_for_judge: As `draw`, for judge A; None: the same.
        tune_judge: (plan, autoencoder, trained trainer, judge A's weights, progress) -> judge A's network, trained on with
            what the model makes; None: it stays as it is.
    """

    draw: Callable[[int, tuple[int, ...]], Drawn]
    vae: Callable[[], AutoencoderKLWan]
    heads: Mapping[str, int]
    trainer: Callable[[torch.Tensor, torch.Tensor, list[list[int]], Settings], Trainer[Any]]
    expand_timesteps: bool = False
    draw_for_judge: Callable[[int, tuple[int, ...]], Drawn] | None = None
    tune_judge: Callable[..., nn.Module] | None = None


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with each combination equally likely and explosions as frequent as the captions need."""
    every = combinations()
    return dataclasses.replace(every[int(rng.integers(len(every)))], explosion=bool(rng.random() < explosion_rate()))


def draw_clips(count: int, seed: tuple[int, ...]) -> Drawn:
    """Random clips, their foregrounds and the classes of `labels`."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    clips, masks = zip(*(draw_with_mask(scene, rng) for scene in scenes), strict=True)
    return np.stack(clips), np.stack(masks), labels(scenes)


def trainer_of(latents: torch.Tensor, mask: torch.Tensor, rows: list[list[int]], settings: Settings) -> Trainer[Any]:
    """The trainer of the embedded world."""
    return Trainer(LatentData(latents, mask, [scene_of(row) for row in rows]), build_tokenizer(), settings)


def scene_of(row: list[int]) -> Scene:
    """The scene of a row of `labels`."""
    shape, colour, motion, background = (
        names[index] for names, index in zip(ATTRIBUTES.values(), row[:4], strict=True)
    )
    return Scene(shape, colour, motion, background, bool(row[4]))


EMBEDDED = Recipe(draw_clips, build_vae, HEADS, trainer_of)


def train_vae(out: Path, plan: Plan, recipe: Recipe, seconds: dict[str, float]) -> AutoencoderKLWan:
    """The autoencoder, from DIR/vae.safetensors or trained."""
    vae, file, notes = recipe.vae(), out / "vae.safetensors", out / "vae.json"
    seed = plan.denoiser.seed
    if not file.exists():
        started = time.perf_counter()
        torch.manual_seed(seed)
        vae = recipe.vae()
        video = to_tensor(recipe.draw(plan.vae_clips, (seed, 10))[0])
        write_pca(vae, video)
        set_moments(vae, video)
        held_out = to_tensor(recipe.draw(128, (seed, 11))[0])
        before = psnr(vae, held_out)
        tune_decoder(vae, video, plan.vae_steps, seed, progress("autoencoder", plan.vae_steps))
        after = psnr(vae, held_out)
        say(f"autoencoder: PSNR {before:.1f} dB as a PCA, {after:.1f} dB tuned")
        save_file(vae.state_dict(), file)
        seconds["autoencoder"] = time.perf_counter() - started
        moments = {name: vae.config[name] for name in ("latents_mean", "latents_std")}
        write_json(notes, {**moments, "psnr_pca": before, "psnr": after})
    vae.load_state_dict(load_file(file))
    notes_read = json.loads(notes.read_text())
    vae.register_to_config(latents_mean=notes_read["latents_mean"], latents_std=notes_read["latents_std"])
    return vae.eval().requires_grad_(False)


def make_data(
    out: Path, plan: Plan, recipe: Recipe, vae: AutoencoderKLWan, seconds: dict[str, float]
) -> dict[str, torch.Tensor]:
    """The denoiser's training set, from DIR/data.pt or drawn and encoded: `latents`, `mask`, `labels`."""
    file = out / "data.pt"
    if not file.exists():
        started = time.perf_counter()
        show, patch = progress("data", plan.clips), vae.config["patch_size"]
        latents, masks, rows = [], [], []
        for start in range(0, plan.clips, 256):
            count = min(256, plan.clips - start)
            clips, mask, found = recipe.draw(count, (plan.denoiser.seed, 12, start))
            latents.append(encode(vae, to_tensor(clips)).half())
            cells = clips.shape[2] // patch
            masks.append(torch.from_numpy(mask.reshape(count, -1, cells, patch, cells, patch).max(axis=(3, 5))))
            rows.append(torch.from_numpy(found))
            show(start + count, 0.0)
        write_torch(file, {"latents": torch.cat(latents), "mask": torch.cat(masks), "labels": torch.cat(rows)})
        seconds["data"] = time.perf_counter() - started
    stored: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return stored


def train_judge(out: Path, plan: Plan, recipe: Recipe, vae: AutoencoderKLWan, seconds: dict[str, float]) -> Path:
    """Judge A's weights, in DIR/judge_a.safetensors, float16."""
    file = out / "judge_a.safetensors"
    if not file.exists():
        started = time.perf_counter()
        seed = plan.denoiser.seed
        drawn, _, rows = (recipe.draw_for_judge or recipe.draw)(plan.judge_clips, (seed, 13))
        decoded = blurred(vae, drawn, seed, progress("judge's clips", plan.judge_clips))
        report = progress("judge", plan.judge_steps)
        classes = rows[:, : len(recipe.heads)]
        network = train_network(drawn, decoded, classes, plan.judge_steps, seed, report, recipe.heads)
        write_network(network, file)
        seconds["judge"] = time.perf_counter() - started
    return file


def blurred(vae: AutoencoderKLWan, drawn: np.ndarray, seed: int, report: Callable[[int, float], object]) -> np.ndarray:
    """Drawn clips as the autoencoder decodes them from latents with up to 0.8 of noise, both uint8 `[N, T, H, W, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    decoded: list[np.ndarray] = []
    with torch.no_grad():
        for part in np.array_split(drawn, max(1, len(drawn) // 64)):
            latents = encode(vae, to_tensor(part))
            sigma = torch.rand(len(part), 1, 1, 1, 1, generator=generator) * 0.8
            decoded.append(to_clips(decode(vae, latents + sigma * torch.randn(latents.shape, generator=generator))))
            report(sum(map(len, decoded)), 0.0)
    return np.concatenate(decoded)


def tune_judge(
    out: Path, plan: Plan, recipe: Recipe, vae: AutoencoderKLWan, trainer: Trainer[Any], seconds: dict[str, float]
) -> Path:
    """Judge A's weights as they ship: those of `train_judge`, or, where the recipe trains on, DIR/judge_a_tuned.safetensors."""
    judge, file = out / "judge_a.safetensors", out / "judge_a_tuned.safetensors"
    if recipe.tune_judge is None:
        return judge
    if not file.exists():
        started = time.perf_counter()
        write_network(recipe.tune_judge(plan, vae, trainer, judge, progress), file)
        seconds["judge on painted clips"] = time.perf_counter() - started
    return file


def write_network(network: nn.Module, file: Path) -> None:
    """Store a judge's network, float16."""
    save_file({name: weight.half().contiguous() for name, weight in network.state_dict().items()}, file)


def export(
    folder: Path, vae: AutoencoderKLWan, trainer: Trainer[Any], judge: Path, expand_timesteps: bool = False
) -> None:
    """Write the diffusers folder in half precision, with the judge's weights beside the pipeline's.

    `expand_timesteps`: Wan 2.2 TI2V's layout, in which each token has its own timestep and a first frame may be given.
    """
    average: Any = trainer.average
    tokenizer: Any = trainer.tokenizer
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=average["text_encoder"],
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
        transformer=average["transformer"],
        expand_timesteps=expand_timesteps,
    )
    for module in (pipeline.text_encoder, pipeline.vae, pipeline.transformer):
        module.half()
    pipeline.save_pretrained(folder)
    (folder / "judge").mkdir(exist_ok=True)
    save_file(load_file(judge), folder / "judge" / "judge_a.safetensors")


def run(out: Path, plan: Plan, recipe: Recipe = EMBEDDED) -> Path:
    """All stages; returns the exported folder, `out/weights`."""
    out.mkdir(parents=True, exist_ok=True)
    described = json.loads(json.dumps(dataclasses.asdict(plan)))
    plan_file = out / "plan.json"
    if plan_file.exists() and json.loads(plan_file.read_text()) != described:
        raise SystemExit(f"{out} holds a run with other settings (see plan.json): use another --out, or delete it.")
    write_json(plan_file, described)
    times = out / "seconds.json"
    seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
    vae = train_vae(out, plan, recipe, seconds)
    with torch.no_grad():
        data = make_data(out, plan, recipe, vae, seconds)
        write_json(times, seconds)
    train_judge(out, plan, recipe, vae, seconds)
    write_json(times, seconds)
    trainer = recipe.trainer(data["latents"], data["mask"], data["labels"].tolist(), plan.denoiser)
    show = progress("denoiser", plan.denoiser.steps)
    losses = out / "losses.json"
    curve: dict[str, float] = json.loads(losses.read_text()) if losses.exists() else {}

    def report(step: int, loss: float, took: float) -> None:
        seconds["denoiser"] = seconds.get("denoiser", 0.0) + took
        smooth = show(step, loss)
        if step % plan.denoiser.save_every == 0 or step == plan.denoiser.steps:
            curve[str(step)] = round(smooth, 4)
            write_json(times, seconds)
            write_json(losses, curve)

    trainer.run(out / "denoiser.pt", report)
    judge = tune_judge(out, plan, recipe, vae, trainer, seconds)
    write_json(times, seconds)
    export(out / "weights", vae, trainer, judge, recipe.expand_timesteps)
    write_json(out / "weights" / "training.json", {"plan": described, "seconds": seconds, "loss": curve})
    say(f"exported to {out / 'weights'}; seconds: { {name: round(took) for name, took in seconds.items()} }")
    return out / "weights"


def progress(stage: str, total: int) -> Callable[[int, float], float]:
    """A report that prints every five seconds, and at the end: stage, step, smoothed loss, time left; it returns that loss."""
    started = last = time.perf_counter()
    first: int | None = None
    smooth: float | None = None

    def show(step: int, loss: float) -> float:
        nonlocal last, first, smooth
        first = step - 1 if first is None else first
        smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
        now = time.perf_counter()
        if now - last > 5 or step >= total:
            left = (now - started) / max(1, step - first) * (total - step)
            say(f"{stage} {step}/{total}  loss {smooth:.4f}  {left:.0f} s left")
            last = now
        return smooth

    return show


def say(text: str) -> None:
    """Print a line at once, also into a file."""
    print(text, flush=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file for people to read."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_torch(path: Path, value: dict[str, torch.Tensor]) -> None:
    """Write tensors in one move."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def main(prog: str = "python -m reins_serve.embedded.train", recipe: Recipe = EMBEDDED, plan: Plan = Plan()) -> None:
    """Command line. `plan`: the amounts, of which some can be asked for otherwise."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the exported weights")
    parser.add_argument("--seed", type=int, default=plan.denoiser.seed)
    parser.add_argument("--steps", type=int, default=plan.denoiser.steps, help="steps of the denoiser")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = dataclasses.replace(
        plan.denoiser, steps=arguments.steps, seed=arguments.seed, compiled=not arguments.no_compile
    )
    run(arguments.out, dataclasses.replace(plan, denoiser=settings), recipe)


if __name__ == "__main__":
    main()
