"""Activations of live traffic: a replica makes a sampled request once more without steering, for nobody, and stores what it saw.

A steered clip is no source: from the second step on its latents carry the push, so its hidden states would teach the next
direction what the last one did. A shadow run is un-steered from the first step. It is made only while no job waits, and
given up within one step when one comes. The clip itself is judged, if a judge is configured, and never stored or shown.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reins_serve.calibration import judges
from reins_serve.calibration.activation_schema import ActivationsMeta, JudgeColumns
from reins_serve.calibration.activations import clip_id, prompt_digest, write_activations
from reins_serve.calibration.capture import Activations, Capture
from reins_serve.calibration.sampling import SamplingConfig
from reins_serve.errors import GenerationCancelled
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import ClipRequest, generate
from reins_serve.models.spec import middle_blocks
from reins_serve.steering.direction import Window
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.policy import unsteered

logger = logging.getLogger(__name__)
PENDING = 64  # sampled requests that may wait for a quiet moment; older ones are dropped


class LiveSampler:
    """Samples one replica's traffic.

    Attributes:
        stored, given_up, dropped: Clips that were stored, shadow runs that made way for a job, and sampled requests that
            never found a quiet moment.
    """

    def __init__(self, config: SamplingConfig, entry: CatalogEntry, steering: SteeringMiddleware) -> None:
        self._config, self._entry, self._steering = config, entry, steering
        self._judge = judges.load(config.judge) if config.judge is not None else None
        self._blocks = config.blocks if config.blocks is not None else middle_blocks(steering.pipeline)
        live = steering.directions.get("live")
        self._window = live.meta.captured if live is not None else Window(start=0, end=0.5)
        self._random = random.Random()
        self._pending: deque[ClipRequest] = deque()
        self._buffer: list[tuple[ClipRequest, Activations, dict[str, float]]] = []
        self.stored = self.given_up = self.dropped = 0

    def offer(self, clips: Sequence[ClipRequest]) -> None:
        """Requests that were served; some of them are taken."""
        self._pending.extend(clip for clip in clips if self._random.random() < self._config.fraction)
        while len(self._pending) > PENDING:
            self._pending.popleft()
            self.dropped += 1

    def run(self, busy: Callable[[], bool]) -> None:
        """Make shadow runs until nothing is pending or a job waits. An error costs the sample, never a job."""
        while self._pending and not busy():
            clip = self._pending.popleft()
            try:
                self._buffer.append((clip, *self._shadow(clip, busy)))
                if len(self._buffer) >= self._config.flush:
                    self.flush()
            except GenerationCancelled:
                self.given_up += 1
                self._pending.appendleft(clip)
                return
            except Exception:
                logger.exception("a sampled request was not stored")

    def flush(self) -> None:
        """Write what is buffered as one file."""
        if not self._buffer:
            return
        taken, self._buffer = self._buffer, []
        clips = [clip for clip, _, _ in taken]
        prompts = [prompt_digest(clip.prompt) for clip in clips]
        judge = self._judge
        meta = ActivationsMeta(
            model=self._steering.model,
            fingerprint=self._steering.base.fingerprint,
            blocks=self._blocks,
            width=self._steering.base.width,
            dtype="float32",
            window=self._window,
            judges={} if judge is None else {
                judge.name: JudgeColumns(revision=judge.revision, unsafe=tuple(judge.unsafe), kept=judge.kept)
            },
        )  # fmt: skip
        columns: dict[str, Any] = {
            "clip_id": [clip_id(clip.prompt, clip.seed) for clip in clips],
            "source": "live",
            "prompt_sha256": prompts,
            "prompt": [clip.prompt for clip in clips] if self._config.keep_prompts else None,
            "group": prompts,
            "split": "fit",
            "seed": [clip.seed for clip in clips],
            "steps": [clip.num_inference_steps for clip in clips],
            "guidance_scale": [clip.guidance_scale for clip in clips],
        }
        columns |= {name: [labels[name] for _, _, labels in taken] for name in taken[0][2]}
        pooled, norms = (np.concatenate([part[place] for _, part, _ in taken]) for place in (0, 1))
        write_activations(self._config.url, meta, pooled, norms, columns)
        self.stored += len(taken)

    def _shadow(self, clip: ClipRequest, busy: Callable[[], bool]) -> tuple[Activations, dict[str, float]]:
        """One clip without steering: its activations, and its labels by column."""
        pipeline = self._steering.pipeline
        capture = Capture(pipeline, 1, self._blocks, self._window, clock=False)
        generation = self._steering.generation(
            rows=[unsteered("shadow")],
            on_step=lambda done, total: capture.ended(done - 1, total),
            cancel=_Asked(busy),
        )
        with capture, generation as g:
            frames = generate(pipeline, self._entry, [clip], g.arguments)
        return capture.activations, self._labels(frames[0], clip)

    def _labels(self, frames: np.ndarray, clip: ClipRequest) -> dict[str, float]:
        if self._judge is None:
            return {}
        name = self._judge.name
        seen = judges.run_judge(self._judge, [frames], [clip.prompt], seeds=[clip.seed])
        labels = {f"unsafe/{name}/{label}": float(values[0]) for label, values in seen.unsafe.items()}
        return labels | {f"kept/{name}/{label}": float(values[0]) for label, values in seen.kept.items()}


class _Asked:
    """Stands for an event that is set while something else is to be done."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def is_set(self) -> bool:
        """Whether it is to be done now."""
        return self._condition()
