"""Intervals and tests for rates: what a percentage from a few hundred clips is worth."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


@dataclass(frozen=True)
class Rate:
    """A share of n clips with its 95 % interval (Wilson 1927)."""

    hits: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: np.ndarray) -> "Rate":
        """From bool `[N]`. Raises ValueError for an empty array."""
        interval = binomtest(int(np.sum(hits)), len(hits)).proportion_ci(method="wilson")
        return cls(int(np.sum(hits)), len(hits), float(interval.low), float(interval.high))

    @property
    def value(self) -> float:
        return self.hits / self.n


def paired_change(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Change of a rate on the same prompts and seeds, with a 95 % interval.

    The interval is Newcombe's (1998, method 10): a score interval for paired proportions, honest where nothing changed.

    Args:
        before, after: bool `[N]`, clip i in both made from the same prompt and seed.

    Returns:
        (after - before, lower bound, upper bound).
    """
    n = len(before)
    p, q = Rate.of(after), Rate.of(before)
    both, neither = int(np.sum(before & after)), int(np.sum(~before & ~after))
    gained, lost = int(np.sum(after & ~before)), int(np.sum(before & ~after))
    margins = p.hits * (n - p.hits) * q.hits * (n - q.hits)
    phi = 0.0
    if margins:
        cross = both * neither - gained * lost
        # Newcombe's continuity correction applies to a positive association only.
        phi = (max(cross - n / 2, 0) if cross > 0 else cross) / margins**0.5
    change = p.value - q.value
    down, up = p.value - p.low, q.high - q.value
    low = change - (down**2 - 2 * phi * down * up + up**2) ** 0.5
    down, up = q.value - q.low, p.high - p.value
    high = change + (down**2 - 2 * phi * down * up + up**2) ** 0.5
    return change, low, high


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, one value a clip, of uint8 `[N, T, H, W, 3]`; equal clips count as 99 dB."""
    error = ((one.astype(np.float32) - other.astype(np.float32)) ** 2).mean(axis=(1, 2, 3, 4))
    return np.minimum(99.0, 10 * np.log10(255.0**2 / np.maximum(error, 1e-12)))
