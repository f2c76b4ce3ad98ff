"""Trains the embedded model from nothing: `python -m reins_serve.embedded.train --out DIR`. Stages, each kept in DIR and
skipped when its file is there: autoencoder, data, judge, denoiser, export. An interrupted run goes on where it stopped."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from safetensors.torch import load_file, save_file

from reins_serve.embedded import FLOW_SHIFT, SIZE
from reins_serve.embedded.captions import explosion_rate
from reins_serve.embedded.denoiser import LatentData, Settings, Trainer, labels
from reins_serve.embedded.judge import train_network
from reins_serve.embedded.tokenizer import build_tokenizer
from reins_serve.embedded.vae import (
    PATCH,
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
    denoiser: Settings = dataclasses.field(default_factory=Settings)


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with each combination equally likely and explosions as frequent as the captions need."""
    every = combinations()
    return dataclasses.replace(every[int(rng.integers(len(every)))], explosion=bool(rng.random() < explosion_rate()))


def draw_clips(count: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """`count` random clips `uint8 [N, T, H, W, 3]`, their foregrounds `bool [N, T, H, W]` and scenes."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    clips, masks = zip(*(draw_with_mask(scene, rng) for scene in scenes), strict=True)
    return np.stack(clips), np.stack(masks), scenes


def train_vae(out: Path, plan: Plan, seconds: dict[str, float]) -> AutoencoderKLWan:
    """The autoencoder, from DIR/vae.safetensors or trained."""
    vae, file, notes = build_vae(), out / "vae.safetensors", out / "vae.json"
    seed = plan.denoiser.seed
    if not file.exists():
        started = time.perf_counter()
        torch.manual_seed(seed)
        vae = build_vae()
        video = to_tensor(draw_clips(plan.vae_clips, (seed, 10))[0])
        write_pca(vae, video)
        set_moments(vae, video)
        held_out = to_tensor(draw_clips(128, (seed, 11))[0])
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


def make_data(out: Path, plan: Plan, vae: AutoencoderKLWan, seconds: dict[str, float]) -> LatentData:
    """The denoiser's training set, from DIR/data.pt or drawn and encoded."""
    file = out / "data.pt"
    if not file.exists():
        started = time.perf_counter()
        show = progress("data", plan.clips)
        latents, masks, rows = [], [], []
        for start in range(0, plan.clips, 256):
            count = min(256, plan.clips - start)
            clips, mask, scenes = draw_clips(count, (plan.denoiser.seed, 12, start))
            latents.append(encode(vae, to_tensor(clips)).half())
            cells = mask.reshape(count, -1, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH).any(axis=(3, 5))
            masks.append(torch.from_numpy(cells))
            rows.append(torch.from_numpy(labels(scenes)))
            show(start + count, 0.0)
        write_torch(file, {"latents": torch.cat(latents), "mask": torch.cat(masks), "labels": torch.cat(rows)})
        seconds["data"] = time.perf_counter() - started
    stored = torch.load(file, weights_only=True)
    scenes = [scene_of(row) for row in stored["labels"].tolist()]
    return LatentData(stored["latents"], stored["mask"], scenes)


def scene_of(row: list[int]) -> Scene:
    """The scene of a row of `labels`."""
    shape, colour, motion, background = (
        names[index] for names, index in zip(ATTRIBUTES.values(), row[:4], strict=True)
    )
    return Scene(shape, colour, motion, background, bool(row[4]))


def train_judge(out: Path, plan: Plan, vae: AutoencoderKLWan, seconds: dict[str, float]) -> Path:
    """Judge A's weights, in DIR/judge_a.safetensors, float16."""
    file = out / "judge_a.safetensors"
    if not file.exists():
        started = time.perf_counter()
        seed = plan.denoiser.seed
        drawn, _, scenes = draw_clips(plan.judge_clips, (seed, 13))
        generator = torch.Generator().manual_seed(seed)
        show = progress("judge's clips", plan.judge_clips)
        decoded = []
        for part in np.array_split(drawn, max(1, len(drawn) // 64)):
            latents = encode(vae, to_tensor(part))
            sigma = torch.rand(len(part), 1, 1, 1, 1, generator=generator) * 0.8
            decoded.append(to_clips(decode(vae, latents + sigma * torch.randn(latents.shape, generator=generator))))
            show(sum(map(len, decoded)), 0.0)
        report = progress("judge", plan.judge_steps)
        network = train_network(drawn, np.concatenate(decoded), labels(scenes), plan.judge_steps, seed, report)
        save_file({name: weight.half().contiguous() for name, weight in network.state_dict().items()}, file)
        seconds["judge"] = time.perf_counter() - started
    return file


def export(folder: Path, vae: AutoencoderKLWan, trainer: Trainer, judge: Path) -> None:
    """Write the diffusers folder in half precision, with the judge's weights beside the pipeline's."""
    average: Any = trainer.average
    tokenizer: Any = trainer.tokenizer
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=average["text_encoder"],
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
        transformer=average["transformer"],
    )
    for module in (pipeline.text_encoder, pipeline.vae, pipeline.transformer):
        module.half()
    pipeline.save_pretrained(folder)
    (folder / "judge").mkdir(exist_ok=True)
    save_file(load_file(judge), folder / "judge" / "judge_a.safetensors")


def run(out: Path, plan: Plan) -> Path:
    """All stages; returns the exported folder, `out/weights`."""
    out.mkdir(parents=True, exist_ok=True)
    described = json.loads(json.dumps(dataclasses.asdict(plan)))
    plan_file = out / "plan.json"
    if plan_file.exists() and json.loads(plan_file.read_text()) != described:
        raise SystemExit(f"{out} holds a run with other settings (see plan.json): use another --out, or delete it.")
    write_json(plan_file, described)
    times = out / "seconds.json"
    seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
    vae = train_vae(out, plan, seconds)
    with torch.no_grad():
        data = make_data(out, plan, vae, seconds)
        write_json(times, seconds)
    judge = train_judge(out, plan, vae, seconds)
    write_json(times, seconds)
    trainer = Trainer(data, build_tokenizer(), plan.denoiser)
    show = progress("denoiser", plan.denoiser.steps)

    def report(step: int, loss: float, took: float) -> None:
        seconds["denoiser"] = seconds.get("denoiser", 0.0) + took
        if step % plan.denoiser.save_every == 0 or step == plan.denoiser.steps:
            write_json(times, seconds)
        show(step, loss)

    trainer.run(out / "denoiser.pt", report)
    export(out / "weights", vae, trainer, judge)
    say(f"exported to {out / 'weights'}; seconds: { {name: round(took) for name, took in seconds.items()} }")
    return out / "weights"


def progress(stage: str, total: int) -> Callable[[int, float], None]:
    """A report that prints every five seconds, and at the end: stage, step, smoothed loss, time left."""
    started = last = time.perf_counter()
    first: int | None = None
    smooth: float | None = None

    def show(step: int, loss: float) -> None:
        nonlocal last, first, smooth
        first = step - 1 if first is None else first
        smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
        now = time.perf_counter()
        if now - last > 5 or step >= total:
            left = (now - started) / max(1, step - first) * (total - step)
            say(f"{stage} {step}/{total}  loss {smooth:.4f}  {left:.0f} s left")
            last = now

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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m reins_serve.embedded.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the exported weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps, help="steps of the denoiser")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = Settings(steps=arguments.steps, seed=arguments.seed, compiled=not arguments.no_compile)
    run(arguments.out, Plan(denoiser=settings))


if __name__ == "__main__":
    main()
