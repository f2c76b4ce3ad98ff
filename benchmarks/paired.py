"""Series measured side by side: interleaved calls, the median of paired ratios, and its 95 % bootstrap interval.

Calls take turns in an order drawn anew each round, so that what else the machine does hits all alike.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 10_000
LEAST_PAIRS = 6  # of fewer the smallest and the largest ratio do not enclose the median in 95 % of all cases


def verdict(low: float, high: float, limit: float, pairs: int = LEAST_PAIRS) -> str:
    """Whether an interval lies below a limit. For one from below, turn all three round. Too few pairs resolve nothing."""
    if pairs < LEAST_PAIRS:
        return "not resolved"
    return "met" if high <= limit else "not met" if low > limit else "not resolved"


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios: `low` to `high` is its 95 % bootstrap interval, `q25` to `q75` the quartiles of the pairs."""

    median: float
    low: float
    high: float
    q25: float
    q75: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.4f} [{self.low:.4f}, {self.high:.4f}], quartiles {self.q25:.3f} to {self.q75:.3f}"

    def within(self, limit: float) -> str:
        """`met` where the interval lies below the limit, `not met` where it lies above, else, or of few pairs, `not resolved`."""
        return verdict(self.low, self.high, limit, self.pairs)

    def beside(self, floor: "Ratio", limit: float) -> str:
        """The same, but `not resolved` where two equal series (`floor`, A/A) lie further apart than the limit is from 1."""
        apart = max(floor.high - 1, 1 - floor.low)
        return self.within(limit) if apart <= limit - 1 else "not resolved"

    def as_json(self) -> dict[str, float]:
        """For `--json`."""
        return asdict(self)


def interleave(series: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of every series' calls: one a round, in an order drawn anew each round, after `warm` calls of each.

    (Orders in their mathematical sequence would leave the first series first for most of a run: what comes after the longest
    pause, or the largest call, would always be the same one.)
    """
    times: dict[str, list[float]] = {name: [] for name in series}
    for call in series.values():
        for _ in range(warm):
            call()
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(series)).tolist():
            began = time.perf_counter()
            series[name]()
            times[name].append(time.perf_counter() - began)
    return times


def ratio(one: Sequence[float], base: Sequence[float]) -> Ratio:
    """The paired ratio of two series of equal length."""
    return across(np.array(one) / np.array(base))


def across(ratios: Sequence[float] | np.ndarray) -> Ratio:
    """The median of ratios that were paired already."""
    ratios = np.asarray(ratios)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    q25, middle, q75 = np.percentile(ratios, [25, 50, 75])
    return Ratio(float(middle), float(low), float(high), float(q25), float(q75), len(ratios))
