"""Mergeable moments in float64: of vectors, and of vectors with the labels beside them (Chan, Golub, LeVeque 1983).

One pass over float16, float32 or float64 vectors in pieces that fit the processor's cache; no float64 copy of a batch is
made. Clips that share a prompt are not independent, so prompts are counted, not clips.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch

from reins_serve.errors import ReinsError

PIECE = 32  # prompts converted to float64 at a time: 800 KB at D = 3,072
INVALID = "moments_invalid"
Vectors = np.ndarray | tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Moments:
    """Weighted moments of vectors x `[..., D]` and labels y `[K]`; K is 0 where a class is described by itself.

    Attributes:
        prompts: How many prompts were seen, whatever their weights.
        n: Sum of the weights.
        squares: Sum of the squared weights; `n**2 / squares` is the effective number of prompts.
        mean, m2: `[..., D]`, mean of x and sum of its squared deviations.
        label_mean: `[K]`. label_m2: `[K, K]`, sums of products of the deviations of y.
        cross: `[..., D, K]`, sums of products of the deviations of x and y (the C of supervised PCA).
    """

    prompts: int
    n: float
    squares: float
    mean: np.ndarray
    m2: np.ndarray
    label_mean: np.ndarray
    label_m2: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(
        cls,
        vectors: Vectors,
        labels: np.ndarray | None = None,
        prompts: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        chosen: np.ndarray | None = None,
    ) -> "Moments":
        """Moments over the first axis of `[N, ..., D]`.

        Args:
            vectors: Such an array, or a tuple of L arrays `[N, D]`, which stands for `[N, L, D]`.
            labels: `[N, K]`, or None for K = 0.
            prompts: `[N]` names; clips of equal prompt and labels are averaged, and rows of one prompt with different
                labels share its weight. None: each row is a prompt of its own.
            weights: `[N]`, positive; a prompt weighs the mean of its clips' weights. 1 by default.
            chosen: bool `[N]`, the clips that count. All by default.

        Raises:
            ReinsError: no vectors, or values that are not finite, or weights that are not positive.
        """
        if isinstance(vectors, tuple):
            layers, clips, shape = list(vectors), len(vectors[0]), (len(vectors), vectors[0].shape[1])
        else:
            clips, shape = len(vectors), vectors.shape[1:]
            layers = list(vectors.reshape(clips, -1, shape[-1]).swapaxes(0, 1))
        counted = np.arange(clips) if chosen is None else np.flatnonzero(chosen)
        if not len(counted):
            raise ReinsError("Moments need at least one vector.", code=INVALID)
        y = np.zeros((clips, 0)) if labels is None else np.asarray(labels, dtype=np.float64)
        rows = _Rows.of(counted, y, prompts, weights)
        y, w, n = y[rows.order[rows.starts[:-1]]], rows.weight, rows.weight.sum()
        label_mean = w @ y / n
        deviation = y - label_mean
        mean, m2 = (np.empty((len(layers), shape[-1])) for _ in range(2))
        cross = np.zeros((*mean.shape, y.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # shows in the result, which is checked
            for place, layer in enumerate(layers):
                mean[place], m2[place] = _one_pass(layer, rows, deviation, cross[place])
        if not (np.isfinite(mean).all() and np.isfinite(m2).all() and np.isfinite(cross).all()):
            raise ReinsError("Activations or labels hold values that are not finite: capture or judge them again.",
                             code=INVALID)  # fmt: skip
        return cls(
            rows.prompts, float(n), float(w @ w), mean.reshape(shape), m2.reshape(shape), label_mean,
            (deviation * w[:, None]).T @ deviation, cross.reshape(*shape, y.shape[1]),
        )  # fmt: skip

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together; the order does not matter. Raises ReinsError for other shapes."""
        if self.cross.shape != other.cross.shape:
            raise ReinsError(
                f"Moments of shapes {self.cross.shape} and {other.cross.shape} (.., D, K) cannot be merged: they are of "
                "other blocks, another model or other labels.",
                code=INVALID,
            )
        n = self.n + other.n
        share, product = other.n / n, self.n * other.n / n
        dx, dy = other.mean - self.mean, other.label_mean - self.label_mean
        return Moments(
            self.prompts + other.prompts, n, self.squares + other.squares,
            self.mean + dx * share,
            self.m2 + other.m2 + dx**2 * product,
            self.label_mean + dy * share,
            self.label_m2 + other.label_m2 + np.outer(dy, dy) * product,
            self.cross + other.cross + dx[..., None] * dy * product,
        )  # fmt: skip

    def scaled(self, factor: float) -> "Moments":
        """The same with every weight times `factor`; `prompts` still says how many were seen."""
        return Moments(
            self.prompts, self.n * factor, self.squares * factor**2, self.mean, self.m2 * factor,
            self.label_mean, self.label_m2 * factor, self.cross * factor,
        )  # fmt: skip

    @property
    def variance_of_mean(self) -> np.ndarray:
        """Trace over D of the covariance of the mean, `[...]`: what a refit on other prompts would move it by, squared.

        Infinite for a single prompt, of which nothing is known.
        """
        free = self.n**2 - self.squares
        total = self.m2.sum(axis=-1)
        return total * self.squares / (self.n * free) if free > 1e-9 * self.n**2 else np.full(total.shape, np.inf)

    def tensors(self) -> dict[str, np.ndarray]:
        """All attributes as float64 arrays, for a file."""
        return {field.name: np.asarray(getattr(self, field.name), dtype=np.float64) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "Moments":
        """The inverse of `tensors`."""
        scalars = {name: float(tensors[name]) for name in ("n", "squares")}
        return cls(**{**tensors, **scalars, "prompts": int(tensors["prompts"])})  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Rows:
    """Which clips make up which averaged row: `order[starts[r]:starts[r + 1]]` are the clips of row r, with their shares."""

    order: np.ndarray
    starts: np.ndarray
    share: np.ndarray  # of each clip of `order` in its row's average; sums to 1 in a row
    weight: np.ndarray  # of each row
    prompts: int

    @classmethod
    def of(
        cls, clips: np.ndarray, labels: np.ndarray, prompts: np.ndarray | None, weights: np.ndarray | None
    ) -> "_Rows":
        w = np.ones(len(clips)) if weights is None else np.asarray(weights, dtype=np.float64)[clips]
        if not (np.isfinite(w).all() and (w > 0).all()):
            raise ReinsError("Weights must be positive and finite.", code=INVALID)
        if prompts is None:
            return cls(clips, np.arange(len(clips) + 1), np.ones(len(clips)), w, len(clips))
        names, prompt = np.unique(np.asarray(prompts)[clips], return_inverse=True)
        label = np.unique(labels[clips], axis=0, return_inverse=True)[1].reshape(-1) if labels.shape[1] else 0 * prompt
        row = np.unique(prompt * (label.max() + 1) + label, return_inverse=True)[1]
        order = np.argsort(row, kind="stable")
        size = np.bincount(row)
        total = np.bincount(row, w)
        starts = np.concatenate([[0], np.cumsum(size)])
        owner = prompt[order[starts[:-1]]]  # each row's prompt
        weight = total / size / np.bincount(owner)[owner]
        return cls(clips[order], starts, (w / total[row])[order], weight, len(names))

    def averages(self, vectors: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows' averages of `[N, D]` in float64, a few at a time; the array may be written to."""
        rows, clips = len(self.weight), len(self.order)
        for start in range(0, rows, PIECE):
            piece = slice(start, min(start + PIECE, rows))
            low, high = self.starts[piece.start], self.starts[piece.stop]
            gathered = vectors[self.order[low:high]]
            if gathered.dtype == np.float16:
                gathered = torch.from_numpy(gathered).float().numpy()  # numpy converts half floats one by one
            values = gathered.astype(np.float64)
            if rows < clips:
                values *= self.share[low:high, None]
                values = np.add.reduceat(values, self.starts[piece] - low, axis=0)
            yield piece, values


def _one_pass(
    vectors: np.ndarray, rows: _Rows, deviation: np.ndarray, cross: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations `[D]` of `[N, D]`; adds to `cross` `[D, K]`.

    Values are shifted by the mean of the first few before they are squared, so the correction at the end is small beside
    the sum: means of 300 with deviations of 0.05 lose nothing. Single float16 values have 11 bits, so that their squares and
    the sums of these are exact in float64, and can be shifted afterwards. The labels' deviations sum to 0, so `cross` needs no
    correction.
    """
    exact = vectors.dtype == np.float16 and len(rows.weight) == len(rows.order)
    even, ones, width = bool((rows.weight == 1).all()), np.ones(PIECE), vectors.shape[1]
    shift, total, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    for piece, values in rows.averages(vectors):
        if not exact:
            shift = values.mean(axis=0) if piece.start == 0 else shift
            values -= shift
        weighted = values if even else values * rows.weight[piece, None]
        total += ones[: len(values)] @ weighted
        if cross.shape[1]:
            cross += weighted.T @ deviation[piece]
        squares += np.einsum("ij,ij->j", weighted, values)
    n = rows.weight.sum()
    if exact:
        shift = (total / n).astype(np.float16).astype(np.float64)  # as short as the values, so these products are exact
        squares -= shift * (2 * total - n * shift)
        total -= n * shift
    mean = total / n
    return shift + mean, np.maximum(squares - total * mean, 0.0)
