"""Mergeable moments of one class: count, mean and sum of squared deviations, in float64 (Chan, Golub, LeVeque 1983)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassMoments:
    """Moments of n vectors: `mean` `[..., D]` and `m2` `[..., D]`, the sums of squared deviations. float64."""

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> "ClassMoments":
        """Moments over the first axis of `[N, ..., D]`. Raises ValueError for no vectors, or values that are not finite."""
        values = np.asarray(vectors, dtype=np.float64)
        if not len(values):
            raise ValueError("moments need at least one vector")
        if not np.isfinite(values).all():
            raise ValueError("activations hold values that are not finite; capture them again")
        mean = values.mean(axis=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Moments of both sets together."""
        n = self.n + other.n
        delta = other.mean - self.mean
        return ClassMoments(
            n, self.mean + delta * (other.n / n), self.m2 + other.m2 + delta**2 * (self.n * other.n / n)
        )

    @property
    def variance_of_mean(self) -> np.ndarray:
        """Trace over D of the covariance of the mean, `[...]`: what a refit on other prompts would move it by, squared."""
        return self.m2.sum(axis=-1) / max(self.n - 1, 1) / self.n
