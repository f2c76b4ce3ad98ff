"""What a judge is, what it answers, and the one checked way to ask it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reins_serve.errors import JudgeError


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of N clips.

    Attributes:
        unsafe: Unsafe label -> its probability, float32 `[N]`; NaN exactly where `missing`.
        kept: Benign attribute -> whether the clip shows what its prompt asked for, bool `[N]`; False where `missing`.
        missing: Where the judge has no verdict, bool `[N]`; None: it has one for every clip.
    """

    unsafe: Mapping[str, NDArray[np.float32]]
    kept: Mapping[str, NDArray[np.bool_]]
    missing: NDArray[np.bool_] | None = None

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Which clips have a verdict, bool `[N]`: `verdicts.take(verdicts.judged)` are those alone."""
        n = len(next(iter(self.unsafe.values()), ()))
        return np.ones(n, dtype=bool) if self.missing is None else ~self.missing

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> "Verdicts":
        """The verdicts of some clips, by a mask, indices or a slice."""
        return Verdicts(
            {name: values[rows] for name, values in self.unsafe.items()},
            {name: values[rows] for name, values in self.kept.items()},
            None if self.missing is None else self.missing[rows],
        )

    def is_unsafe(self, thresholds: Mapping[str, float]) -> NDArray[np.bool_]:
        """Whether any label's probability is at or above its threshold, bool `[N]`.

        Raises:
            JudgeError: a label has no threshold or a threshold no label, or a clip has no verdict: missing is not safe.
        """
        if set(thresholds) != set(self.unsafe):
            raise JudgeError(
                f"Thresholds are for {_list(thresholds)}, verdicts for {_list(self.unsafe)}: give one threshold to each label."
            )
        missing = int((~self.judged).sum())
        if missing:
            raise JudgeError(
                f"{missing} clips have no verdict and are neither safe nor unsafe: take `verdicts.take(verdicts.judged)` first."
            )
        # Compared in float32, so that a probability equal to the threshold as written counts.
        hits = [values >= np.float32(thresholds[name]) for name, values in self.unsafe.items()]
        return np.logical_or.reduce(hits)


class Judge(Protocol):
    """Something that looks at clips; ask it through `run_judge`.

    Attributes:
        name: Names the judge's columns in stored activations and reports.
        revision: Changes whenever its verdicts may: a commit, a digest of its weights or of its table.
        deterministic: Whether equal clips get equal verdicts, up to rounding.
        unsafe: Unsafe label -> threshold at or above which its probability counts.
        kept: Benign attributes that it checks against the prompt; may be empty.
        may_skip: Whether it may leave clips without a verdict (`Verdicts.missing`).
    """

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def deterministic(self) -> bool: ...
    @property
    def unsafe(self) -> Mapping[str, float]: ...
    @property
    def kept(self) -> tuple[str, ...]: ...
    @property
    def may_skip(self) -> bool: ...

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Judge N >= 1 clips, uint8 `[T, H, W, 3]` each, of their prompts; `ids` and `seeds` name clips to a judge that
        looks verdicts up instead of looking at pixels."""
        ...


def run_judge(
    judge: Judge,
    clips: Sequence[np.ndarray],
    prompts: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Verdicts:
    """Ask a judge about N clips, uint8 `[T, H, W, 3]` each, and check its answer. Without clips it is not asked.

    Raises:
        JudgeError: the clips are none, the judge failed, or its answer is not what it promised: a label or attribute is
            missing or unknown, of another length, not finite, or outside 0 to 1.
    """
    _check_clips(clips)
    for what, given in (("prompts", prompts), ("ids", ids), ("seeds", seeds)):
        if given is not None and len(given) != len(clips):
            raise JudgeError(f"{len(clips)} clips came with {len(given)} {what}: give one to each clip.")
    if not len(clips):
        empty = np.zeros(0, dtype=np.float32)
        return Verdicts(dict.fromkeys(judge.unsafe, empty), {name: empty.astype(bool) for name in judge.kept})
    try:
        answer = judge.judge(clips, prompts, ids=ids, seeds=seeds)
    except JudgeError:
        raise
    except Exception as error:  # whatever a model's code raises, it is no verdict
        raise JudgeError(f"Judge {judge.name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(answer, Verdicts):
        raise JudgeError(f"Judge {judge.name} answered with a {type(answer).__name__}; it must be Verdicts.")
    return _checked(judge, answer, len(clips))


def _check_clips(clips: Sequence[np.ndarray]) -> None:
    for number, clip in enumerate(clips):
        if not isinstance(clip, np.ndarray):
            raise JudgeError(f"Clip {number} is a {type(clip).__name__}: judges read numpy arrays uint8 [T, H, W, 3].")
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or clip.size == 0:
            raise JudgeError(
                f"Clip {number} is {clip.dtype} {list(clip.shape)}: judges read uint8 [T, H, W, 3] with a frame at least."
            )


def _checked(judge: Judge, answer: Verdicts, n: int) -> Verdicts:
    """The answer in the types that `Verdicts` promises, or a JudgeError."""
    who = f"Judge {judge.name}"
    if set(answer.unsafe) != set(judge.unsafe) or not judge.unsafe:
        raise JudgeError(
            f"{who} must answer for the labels {_list(judge.unsafe)} and answered for {_list(answer.unsafe)}."
        )
    if set(answer.kept) != set(judge.kept):
        raise JudgeError(f"{who} must check the attributes {_list(judge.kept)} and checked {_list(answer.kept)}.")
    missing = None if answer.missing is None else _column(who, "its mask of missing verdicts", answer.missing, n)
    if missing is not None and missing.dtype != bool:
        raise JudgeError(f"{who}'s mask of missing verdicts is {missing.dtype}: it must be bool.")
    if missing is not None and missing.any() and not judge.may_skip:
        raise JudgeError(
            f"{who} has no verdict for {int(missing.sum())} of {n} clips, and does not say that it may skip."
        )
    there = np.ones(n, dtype=bool) if missing is None else ~missing
    unsafe = {}
    for name, raw in answer.unsafe.items():
        values = _column(who, f"label {name}", raw, n)
        if values.dtype.kind != "f":
            raise JudgeError(f"{who}: label {name} is {values.dtype}; probabilities are floats.")
        bad = there & ~((values >= 0) & (values <= 1))  # a NaN is neither
        if bad.any():
            row = int(bad.argmax())
            raise JudgeError(f"{who}: label {name} of clip {row} is {values[row]}, which is no probability.")
        unsafe[name] = np.where(there, values, np.nan).astype(np.float32)
    kept = {}
    for name, flags in answer.kept.items():
        shown = _column(who, f"attribute {name}", flags, n)
        if shown.dtype != bool:
            raise JudgeError(f"{who}: attribute {name} is {shown.dtype}; whether it was kept is bool.")
        kept[name] = shown & there
    return Verdicts(unsafe, kept, missing)


def _column(who: str, what: str, values: NDArray, n: int) -> NDArray:
    found = np.asarray(values)
    if found.shape != (n,):
        raise JudgeError(f"{who}: {what} has shape {list(found.shape)} for {n} clips; it must be [{n}].")
    return found


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def evenly_spaced(length: int, count: int) -> NDArray[np.int64]:
    """Indices of `count` evenly spaced frames of `length`, the first and the last among them (one: the middle).

    A clip with fewer frames than `count` repeats some, so the result always has `count` entries.
    """
    if count == 1:
        return np.array([length // 2])
    return np.rint(np.linspace(0, length - 1, count)).astype(np.int64)
