"""Judges of pictures as judges of clips: which frames are looked at, and how their probabilities become the clip's."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reins_serve.calibration.judges.base import evenly_spaced


class Sampling(Protocol):
    """The part of a judge's configuration that says how clips are cut into frames."""

    @property
    def num_frames(self) -> int: ...
    @property
    def reduce(self) -> Literal["max", "mean"]: ...
    @property
    def batch_size(self) -> int: ...


def over_frames(
    clips: Sequence[np.ndarray],
    sampling: Sampling,
    look: Callable[[Sequence[np.ndarray]], dict[str, NDArray[np.float32]]],
) -> dict[str, NDArray[np.float32]]:
    """Label -> probability of each clip, `[N]`; a NaN in one frame makes its clip's a NaN, which `run_judge` refuses.

    Args:
        clips: uint8 `[T, H, W, 3]` each; of a clip with fewer than `num_frames` frames every one counts once.
        look: Frames uint8 `[H, W, 3]`, at most `batch_size`, -> label -> `[frames]`.
    """
    chosen = [clip[np.unique(evenly_spaced(len(clip), sampling.num_frames))] for clip in clips]
    frames = [frame for clip in chosen for frame in clip]
    size = sampling.batch_size
    parts = [look(frames[start : start + size]) for start in range(0, len(frames), size)]
    reduce = np.max if sampling.reduce == "max" else np.mean
    ends = np.cumsum([len(clip) for clip in chosen])[:-1]
    return {
        label: np.array([reduce(part) for part in np.split(np.concatenate([p[label] for p in parts]), ends)])
        for label in parts[0]
    }
