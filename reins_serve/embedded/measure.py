"""Measures the embedded model's stored files: `python -m reins_serve.embedded.measure`. Generates un-steered clips of
evaluation prompts with held-out seeds, lets both judges look, and writes accuracies with 95 % intervals as JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest

from reins_serve.embedded import (
    GUIDANCE_SCALE,
    MEASURED_FILE,
    MODEL_DIR,
    NUM_FRAMES,
    NUM_INFERENCE_STEPS,
    SIZE,
    TEXT_TOKENS,
)
from reins_serve.embedded.captions import IMPLICIT
from reins_serve.embedded.judge import JudgeA, JudgeB
from reins_serve.embedded.prompts import Prompt, implicit_prompts, prompts
from reins_serve.embedded.world import ATTRIBUTES

FIRST_SEED = 1_000_000
BATCH = 48


def sample(pipeline: Any, texts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Un-steered clips `uint8 [N, T, H, W, 3]`, one a text, each from its own seed; in batches of 48."""
    parts = []
    for start in range(0, len(texts), BATCH):
        rows = slice(start, start + BATCH)
        frames = pipeline(
            prompt=list(texts[rows]),
            height=SIZE,
            width=SIZE,
            num_frames=NUM_FRAMES - 1,  # Wan makes n + 1 of n where time is not compressed
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            max_sequence_length=TEXT_TOKENS,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
            output_type="np",
        ).frames
        parts.append((np.asarray(frames) * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def load(folder: Path) -> Any:
    """The pipeline in float32, quiet."""
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rate(hits: NDArray[np.bool_]) -> dict[str, float | int | list[float]]:
    """Share of `hits` with its Wilson interval at 95 %."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    bounds = [round(float(interval.low), 4), round(float(interval.high), 4)]
    return {"n": len(hits), "hits": int(hits.sum()), "rate": round(float(hits.mean()), 4), "ci95": bounds}


def attributes_right(judge: JudgeA, clips: NDArray[np.uint8], asked: Sequence[Prompt]) -> dict[str, NDArray[np.bool_]]:
    """Per attribute, whether each clip shows what its prompt asks for, bool `[N]`."""
    verdict = judge.judge(clips)
    return {
        name: getattr(verdict, name) == np.array([values.index(getattr(prompt, name)) for prompt in asked])
        for name, values in ATTRIBUTES.items()
    }


def measure(folder: Path, n: int, first_seed: int = FIRST_SEED) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Measure the pipeline and judge A stored in `folder` on `n` benign and `n` unsafe evaluation prompts.

    Returns the figures and a few clips (benign, then unsafe) to look at.
    """
    pipeline, judge_a, judge_b = load(folder), JudgeA.load(folder / "judge" / "judge_a.safetensors"), JudgeB()
    figures: dict[str, Any] = {"n": n, "first_seed": first_seed, "dtype": "float32, from the stored float16"}
    kinds = {"benign": prompts("evaluate", False, n, 1), "unsafe": prompts("evaluate", True, n, 1)}
    kinds.update({phrase: implicit_prompts("evaluate", max(1, n // 4), 1, phrase) for phrase in IMPLICIT})
    shown, seed = [], first_seed
    started, made = time.perf_counter(), 0
    for kind, asked in kinds.items():
        print(f"{kind}: {len(asked)} clips", flush=True)
        clips = sample(pipeline, [prompt.text for prompt in asked], range(seed, seed + len(asked)))
        seed, made = seed + len(asked), made + len(asked)
        explosion = {judge.name: rate(judge.judge(clips).unsafe) for judge in (judge_a, judge_b)}
        right = {name: rate(hits) for name, hits in attributes_right(judge_a, clips, asked).items()}
        figures[kind] = {"explosion": explosion, "attributes": right}
        shown.append(clips[:12])
    figures["seconds_per_clip_in_batches"] = round((time.perf_counter() - started) / made, 3)
    started = time.perf_counter()
    for repeat in range(5):
        sample(pipeline, ["a red square moving left at sea"], [repeat])
    figures["seconds_per_single_clip"] = round((time.perf_counter() - started) / 5, 3)
    figures["threads"] = torch.get_num_threads()
    return figures, np.concatenate(shown)


def sheet(clips: NDArray[np.uint8], scale: int = 2) -> Image.Image:
    """A contact sheet: one clip a row, its frames from left to right."""
    rows = clips.transpose(0, 2, 1, 3, 4).reshape(len(clips) * clips.shape[2], -1, 3)
    return Image.fromarray(rows).resize((rows.shape[1] * scale, rows.shape[0] * scale), Image.Resampling.NEAREST)


Measure = Callable[[Path, int], tuple[dict[str, Any], NDArray[np.uint8]]]


def main(
    measured: Measure = measure,
    described: str | None = __doc__,
    model: Path = MODEL_DIR,
    n: int = 432,
    out: Path = MEASURED_FILE,
) -> None:
    """Command line of a measurement, with its defaults."""
    parser = argparse.ArgumentParser(description=described)
    parser.add_argument("--model", type=Path, default=model)
    parser.add_argument("--n", type=int, default=n, help="prompts of each kind")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet, PNG")
    arguments = parser.parse_args()
    figures, clips = measured(arguments.model, arguments.n)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    if arguments.sheet:
        sheet(clips).save(arguments.sheet)


if __name__ == "__main__":
    main()
