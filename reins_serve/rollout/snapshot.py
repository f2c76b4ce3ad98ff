"""What the registry hands to a replica: which versions serve, with their bytes; and what a replica answers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from reins_serve.errors import DirectionError, SignatureError
from reins_serve.rollout.limits import Automatic
from reins_serve.rollout.signatures import Signature, Trust
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Direction
from reins_serve.steering.outcomes import Outcome


@dataclass(frozen=True)
class Staged:
    """One version on its way to a replica.

    Attributes:
        sha256, number: Its digest, and its number in the store.
        data: The file's bytes, or a reference to them in Ray's object store. A reference dies with the registry's process:
            read it at once.
        signatures: Who vouches for it, still to be checked by whoever takes it up.
    """

    sha256: str
    number: int
    data: Any
    signatures: tuple[Signature, ...] = ()

    def direction(self, model: str, trust: Trust = Trust()) -> Direction:
        """Fetch, copy and check it. Raises DirectionError, SignatureError; RayError where the reference is dead."""
        data = self.data
        if not isinstance(data, bytes):
            import ray

            data = ray.get(data)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DirectionError(f"Version {self.number} of {model} arrived with another digest. It is fetched again.")
        trust.check(self.sha256, self.signatures, f"Version {self.number} of {model}")
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
        signed: Names of the signatures on storage; None where no keys were trusted when it was read.
        error: Why the candidate that the pointer names was left out.
        epoch: The generation that made this arrangement; outcomes are counted from there.
        auto: How the canary ends by itself.
    """

    model: str
    generation: int = 0
    live: Staged | None = None
    candidate: Staged | None = None
    fraction: float = 0.0
    updated: datetime | None = None
    signed: frozenset[str] | None = None
    error: str | None = None
    epoch: int = 0
    auto: Automatic | None = None


@dataclass(frozen=True)
class Report:
    """What a replica says of itself with each poll.

    Attributes:
        replica: A name that no other has.
        generation, live, candidate: The pointer's generation that it serves, and the digests.
        since: Unix time of its last swap.
        error: Why it does not serve what it was told to.
        epoch, outcomes: What it has counted by version since that generation, all of it each time.
    """

    replica: str
    generation: int
    live: str | None
    candidate: str | None
    since: float
    error: str | None = None
    epoch: int = 0
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)


def read_snapshot(store: DirectionStore, model: str, known: Snapshot | None = None) -> Snapshot:
    """What a store says serves; `known` itself where that is still it. A candidate that no trusted key has signed is left out.

    Raises:
        StorageError: the pointer, or a version that it names, is missing or damaged.
        SignatureError: no key that the store trusts has signed the live version.
    """
    pointer = store.find(model)
    if pointer is None:
        return known if known is not None and known.generation == 0 else Snapshot(model)
    signed = store.signature_names(model, pointer.live, pointer.candidate) if store.trust else None
    found = (pointer.generation, pointer.updated, signed)
    if known is not None and (known.generation, known.updated, known.signed) == found:
        return known
    numbers = {version.sha256: version.number for version in store.versions(model)}

    before = {one.sha256: one.data for one in (known.live, known.candidate) if one is not None} if known else {}

    def staged(sha256: str | None) -> Staged | None:
        if sha256 is None:
            return None
        number, signatures = numbers.get(sha256, 0), store.signatures(model, sha256)
        store.trust.check(sha256, signatures, f"Version {number} of {model}")
        data = before[sha256] if sha256 in before else store.load(model, sha256).data
        return Staged(sha256, number, data, signatures)

    live, candidate, error = staged(pointer.live), None, None
    try:
        candidate = staged(pointer.candidate)
    except SignatureError as refused:
        error = str(refused)
    fraction = pointer.fraction if candidate is not None else 0.0
    return Snapshot(
        model,
        pointer.generation,
        live,
        candidate,
        fraction,
        pointer.updated,
        signed,
        error,
        pointer.epoch or pointer.generation,
        pointer.auto,
    )
