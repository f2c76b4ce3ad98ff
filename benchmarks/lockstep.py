"""Pipelines' calls in lockstep: a denoising step of one, the same step of the next, and so on, in an order drawn anew for each.

Whole calls stand seconds apart, and a shared machine is now fast, now slow, for seconds at a time: paired calls then differ by
more than what is looked for. Paired steps stand some hundredths of a second apart. All calls run in one thread, which hands over
between them where a step ends, in the pipeline's callback: the same threads of torch's serve them all.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from greenlet import getcurrent, greenlet
from scipy.stats import trim_mean

StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""A pipeline's `callback_on_step_end`."""
Call = Callable[[StepEnd], object]


@dataclass(frozen=True)
class Stepped:
    """Seconds of one series' calls, `[rounds, parts]`: up to the end of the first step, each further step, and what follows."""

    parts: np.ndarray

    def calls(self) -> list[float]:
        """Of whole calls."""
        return self.parts.sum(1).tolist()

    @property
    def first_half(self) -> slice:
        """Of the steps after the first, those in the first half of all steps."""
        return slice(0, (self.parts.shape[1] - 1) // 2 - 1)

    def to(self, base: "Stepped", steps: slice = slice(None)) -> list[float]:
        """For each round the ratio of steps to another series' (midmean of the paired ratios: of the middle half of them).

        Args:
            steps: Which of the steps after the first.
        """
        return trim_mean(self.parts[:, 1:-1][:, steps] / base.parts[:, 1:-1][:, steps], 0.25, axis=1).tolist()


def in_step(calls: Mapping[str, Call], rounds: int) -> dict[str, Stepped]:
    """Run every call once a round, all in lockstep, after a round that does not count. Calls must have equally many steps."""
    here, rng = getcurrent(), np.random.default_rng(0)

    def step_end(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        here.switch()
        return tensors

    found: dict[str, list[list[float]]] = {name: [] for name in calls}
    with torch.inference_mode():  # what each call switches off stays off in the others
        for number in range(1 + rounds):
            running = {name: greenlet(partial(call, step_end)) for name, call in calls.items()}
            parts: dict[str, list[float]] = {name: [] for name in calls}
            while not all(one.dead for one in running.values()):
                for name in rng.permutation(list(running)).tolist():
                    began = time.perf_counter()
                    running[name].switch()
                    parts[name].append(time.perf_counter() - began)
            if number:
                for name, of in parts.items():
                    found[name].append(of)
    return {name: Stepped(np.array(of)) for name, of in found.items()}
