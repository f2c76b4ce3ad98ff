"""What the registry hands to a replica: which versions serve, with their bytes; and what a replica answers."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reins_serve.errors import DirectionError
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Direction


@dataclass(frozen=True)
class Staged:
    """One version on its way to a replica.

    Attributes:
        sha256, number: Its digest, and its number in the store.
        data: The file's bytes, or a reference to them in Ray's object store. A reference dies with the registry's process:
            read it at once.
    """

    sha256: str
    number: int
    data: Any

    def direction(self, model: str) -> Direction:
        """Fetch, copy and check it. Raises DirectionError; RayError where the reference is dead."""
        data = self.data
        if not isinstance(data, bytes):
            import ray

            data = ray.get(data)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DirectionError(f"Version {self.number} of {model} arrived with another digest. It is fetched again.")
        direction = Direction.parse(data, f"version {self.number} of {model}")
        if direction.model != model:
            raise DirectionError(f"Version {self.number} is a direction of {direction.model}, not of {model}.")
        return direction


@dataclass(frozen=True)
class Snapshot:
    """What serves at one generation of a model's pointer; the generation is 0 where nothing was promoted yet.

    Attributes:
        fraction: Share of the generations that the candidate gets.
        updated: When the pointer was moved.
    """

    model: str
    generation: int = 0
    live: Staged | None = None
    candidate: Staged | None = None
    fraction: float = 0.0
    updated: datetime | None = None


@dataclass(frozen=True)
class Report:
    """What a replica says of itself with each poll.

    Attributes:
        replica: A name that no other has.
        generation, live, candidate: The pointer's generation that it serves, and the digests.
        since: Unix time of its last swap.
        error: Why it does not serve what it was told to.
    """

    replica: str
    generation: int
    live: str | None
    candidate: str | None
    since: float
    error: str | None = None


def read_snapshot(store: DirectionStore, model: str, known: Snapshot | None = None) -> Snapshot:
    """What a store says serves; `known` itself where that is still it.

    Raises:
        StorageError: the pointer, or a version that it names, is missing or damaged.
    """
    pointer = store.find(model)
    if pointer is None:
        return known if known is not None and known.generation == 0 else Snapshot(model)
    if known is not None and (known.generation, known.updated) == (pointer.generation, pointer.updated):
        return known
    numbers = {version.sha256: version.number for version in store.versions(model)}

    def staged(sha256: str | None) -> Staged | None:
        if sha256 is None:
            return None
        for one in (known.live, known.candidate) if known is not None else ():
            if one is not None and one.sha256 == sha256:
                return one
        return Staged(sha256, numbers.get(sha256, 0), store.load(model, sha256).data)

    live, candidate = staged(pointer.live), staged(pointer.candidate)
    return Snapshot(model, pointer.generation, live, candidate, pointer.fraction, pointer.updated)
