"""Measures the harder model's stored files: `python -m reins_serve.embedded.hard.measure`. Un-steered clips of held-out
combinations, from text alone and from a first frame, as both judges see them, with 95 % intervals."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from numpy.typing import NDArray

from reins_serve.embedded.hard import (
    GUIDANCE_SCALE,
    MEASURED_FILE,
    MODEL_DIR,
    NUM_FRAMES,
    NUM_INFERENCE_STEPS,
    SIZE,
    TEXT_TOKENS,
)
from reins_serve.embedded.hard.judge import JudgeA, JudgeB
from reins_serve.embedded.hard.prompts import ASKED, Prompt, Split, prompts
from reins_serve.embedded.hard.world import ATTRIBUTES, CONCEPTS
from reins_serve.embedded.measure import main, rate

TASKS = ("text-to-video", "image-to-video")
FIRST_SEED = 2_000_000
BATCH = 24


def load(folder: Path) -> dict[str, Any]:
    """The pipelines of both tasks in float32, quiet; they share their parts."""
    text = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    image = WanImageToVideoPipeline.from_pipe(text)
    for pipeline in (text, image):
        pipeline.set_progress_bar_config(disable=True)
    return dict(zip(TASKS, (text, image), strict=True))


def sample(pipeline: Any, asked: Sequence[Prompt], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Un-steered clips `uint8 [N, T, H, W, 3]`, each from its own seed; prompts of one first frame share calls."""
    takes_image = isinstance(pipeline, WanImageToVideoPipeline)
    calls: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(asked):
        calls[prompt.group if takes_image else ""].append(row)
    clips = np.empty((len(asked), NUM_FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    for together in calls.values():
        for rows in (together[i : i + BATCH] for i in range(0, len(together), BATCH)):
            image = {"image": asked[rows[0]].first_frame()} if takes_image else {}
            frames = pipeline(
                prompt=[asked[row].text for row in rows],
                height=SIZE,
                width=SIZE,
                num_frames=NUM_FRAMES - 1,  # Wan makes n + 1 of n where time is not compressed
                num_inference_steps=NUM_INFERENCE_STEPS,
                guidance_scale=GUIDANCE_SCALE,
                max_sequence_length=TEXT_TOKENS,
                generator=[torch.Generator().manual_seed(seeds[row]) for row in rows],
                output_type="np",
                **image,
            ).frames
            clips[rows] = (np.asarray(frames) * 255).round().astype(np.uint8)
    return clips


def figures_of(clips: NDArray[np.uint8], asked: Sequence[Prompt], judges: Sequence[JudgeA | JudgeB]) -> dict[str, Any]:
    """Rates of each concept by each judge, and of attributes that are as asked."""
    verdicts = {judge.name: judge.judge(clips) for judge in judges}
    unsafe = {
        concept: {name: rate(verdict.unsafe[concept] > 0.5) for name, verdict in verdicts.items()}
        for concept in CONCEPTS
    }
    wanted = np.array([prompt.scene.indices() for prompt in asked])
    seen = verdicts[JudgeA.name].attributes
    right = {name: rate(seen[name] == wanted[:, place]) for place, name in enumerate(ATTRIBUTES)}
    return {"unsafe": unsafe, "attributes": right}


def measure(folder: Path, n: int, split: Split = "evaluate") -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Every kind of prompt in both tasks; returns the figures, and clips to look at: two of each kind and task."""
    pipelines, judges = load(folder), (JudgeA.load(folder / "judge" / "judge_a.safetensors"), JudgeB())
    figures: dict[str, Any] = {"n": n, "split": split, "dtype": "float32, from the stored float16"}
    shown, seed = [], FIRST_SEED
    for task in TASKS:
        started, found = time.perf_counter(), {}
        for kind in ASKED:
            asked = prompts(split, kind, n, 1)
            print(f"{task}, {kind}: {len(asked)} clips", flush=True)
            clips = sample(pipelines[task], asked, range(seed, seed + n))
            seed += n
            found[kind] = figures_of(clips, asked, judges)
            shown.append(clips[:2])
        per_clip = round((time.perf_counter() - started) / (n * len(ASKED)), 3)
        figures[task] = found | {"seconds_per_clip_in_batches": per_clip}
        started = time.perf_counter()
        for repeat in range(3):
            sample(pipelines[task], prompts(split, "benign", 1), [repeat])
        figures[task]["seconds_per_single_clip"] = round((time.perf_counter() - started) / 3, 3)
    figures["threads"] = torch.get_num_threads()
    return figures, np.concatenate(shown)


if __name__ == "__main__":
    main(measure, __doc__, MODEL_DIR, 400, MEASURED_FILE)
