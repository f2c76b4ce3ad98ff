"""The choice of block, operation and strength on selection prompts, by successive halving: all at few clips, the best at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from reins_serve.calibration.batches import Progress, steered
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import ClipRequest
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.policy import SteeringRow


@dataclass(frozen=True)
class Seen:
    """What the judges saw in N clips of known prompts: bool `[N]` each.

    Attributes:
        unsafe: By the judge's name, whether the clip is unsafe.
        kept: By the attribute's name, whether the clip shows what its prompt asked for.
    """

    unsafe: Mapping[str, np.ndarray]
    kept: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Prompts:
    """Requests with a look at what became of them: `see(frames [N, T, H, W, 3], rows)` judges clips of those rows."""

    requests: Sequence[ClipRequest]
    see: Callable[[np.ndarray, Sequence[int]], Seen]


@dataclass(frozen=True)
class Candidate:
    """A direction by its name in the middleware, at a strength."""

    direction: str
    strength: float


@dataclass(frozen=True)
class Measured:
    """A candidate's figures at `n` clips of each kind.

    Attributes:
        unsafe: Unsafe rate by judge, on prompts that ask for unsafe content.
        loss: Loss of the worst benign attribute against the un-steered clips, as a share.
        displacement: Mean effective displacement of a token per push.
    """

    candidate: Candidate
    n: int
    unsafe: Mapping[str, float]
    loss: float
    displacement: float

    @property
    def cost(self) -> float:
        """What is minimised: the unsafe rate by the harsher judge plus the worst benign loss."""
        return max(self.unsafe.values()) + max(self.loss, 0.0)

    def figures(self) -> dict[str, object]:
        """For a report, JSON-ready."""
        return asdict(self) | {"cost": self.cost}


def measure(
    middleware: SteeringMiddleware,
    entry: CatalogEntry,
    candidates: Sequence[Candidate],
    unsafe: Prompts,
    benign: Prompts,
    benign_off: Seen,
    n: int,
    progress: Progress,
) -> list[Measured]:
    """Measure candidates on the first `n` prompts of each kind; several share a batch, a direction a row."""
    rows = range(n)
    found = []
    choices = [SteeringRow(c.direction, c.strength) for c in candidates for _ in range(2 * n)]
    requests = [*unsafe.requests[:n], *benign.requests[:n]]
    frames, records = steered(middleware, entry, requests * len(candidates), choices, progress=progress)
    for number, candidate in enumerate(candidates):
        start = number * 2 * n
        harm, kept = unsafe.see(frames[start : start + n], rows), benign.see(frames[start + n : start + 2 * n], rows)
        losses = [benign_off.kept[name][:n].mean() - kept.kept[name].mean() for name in kept.kept]
        displacement = float(np.mean([r.displacement for r in records[start : start + n]]))
        rates = {judge: float(hits.mean()) for judge, hits in harm.unsafe.items()}
        found.append(Measured(candidate, n, rates, float(max(losses)), displacement))
    return found


def successive_halving(
    middleware: SteeringMiddleware,
    entry: CatalogEntry,
    candidates: Sequence[Candidate],
    unsafe: Prompts,
    benign: Prompts,
    benign_off: Seen,
    sizes: Sequence[tuple[int, int]],
    progress: Progress = lambda n: None,
) -> list[list[Measured]]:
    """Rounds of (how many candidates, at how many prompts of each kind); every round keeps the cheapest of the last.

    Returns each round's figures, cheapest first; ties go to the smaller displacement. The first round takes all
    candidates, whatever its number says.
    """
    rounds: list[list[Measured]] = []
    left = list(candidates)
    for keep, n in sizes:
        left = left[:keep] if rounds else left
        found = measure(middleware, entry, left, unsafe, benign, benign_off, n, progress)
        rounds.append(sorted(found, key=lambda m: (m.cost, m.displacement)))
        left = [m.candidate for m in rounds[-1]]
    return rounds
