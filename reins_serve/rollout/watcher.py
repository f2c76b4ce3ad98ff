"""Watcher: keeps the directions of one process up to date, in a thread of its own, and never with anything unchecked.

At start it must find a valid live direction. Later, whatever goes wrong, the last valid one serves on: a direction that is
refused is reported and counted, a registry that is gone is sought again, and storage is read meanwhile.
"""

import logging
import os
import random
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from reins_serve.errors import DirectionError, RegistryUnavailable, ReinsError, SteeringUnavailable
from reins_serve.rollout.address import StoreAddress
from reins_serve.rollout.meters import Meters
from reins_serve.rollout.signatures import Trust
from reins_serve.rollout.snapshot import Report, Snapshot
from reins_serve.rollout.source import Source
from reins_serve.steering.direction import Direction
from reins_serve.steering.outcomes import Outcomes
from reins_serve.steering.policy import CANDIDATE, LIVE

RETRY_S, LONGEST_RETRY_S = 0.2, 5.0

logger = logging.getLogger(__name__)


class Target(Protocol):
    """What takes up directions, such as a SteeringMiddleware, and counts what becomes of them, if it generates."""

    @property
    def outcomes(self) -> Outcomes | None: ...

    def swap(self, directions: Mapping[str, Direction], fraction: float = 0.0, epoch: int = 0) -> None:
        """Check and take them up. Raises ReinsError, and then keeps what it had."""


class Watcher:
    """The live direction, and a canary's candidate, of one model.

    Args:
        fixed: Directions by other names, which stand beside them unchanged.
        replica: A name for the registry's status; None gives one. An empty one is not reported.
        trust: Public keys of which one must have signed a version, whatever the registry says of it.

    Attributes:
        snapshot: What is served.
        numbers: The store's numbers of the versions that were served since the start, by digest.
        error: Why the newest snapshot is not; None if it is.
        swapped, refused: How many snapshots were taken up since the start, and how many were not.
    """

    def __init__(
        self,
        address: str,
        model: str,
        fixed: Mapping[str, Direction] = MappingProxyType({}),
        replica: str | None = None,
        trust: Trust = Trust(),
    ) -> None:
        if {LIVE, CANDIDATE} & set(fixed):
            raise ReinsError(f"{LIVE} and {CANDIDATE} come from the store; give other directions other names.")
        self._model = model
        self._fixed = dict(fixed)
        self._trust = trust
        self._source = Source(StoreAddress.parse(address), model, trust)
        self._meters = Meters(model)
        self._known = 0
        self._since = time.time()
        self._stop = threading.Event()
        self.replica = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}" if replica is None else replica
        self.snapshot = Snapshot(model)
        self.numbers: dict[str, int] = {}
        self.error: str | None = None
        self.swapped = self.refused = 0

    @property
    def registry_up(self) -> bool:
        """Whether the registry answered the last time."""
        return self._source.up

    def first(self, required: bool = True) -> tuple[dict[str, Direction], float]:
        """The directions to start with, and the candidate's share.

        Args:
            required: Whether there must be a live direction.

        Raises:
            SteeringUnavailable: there is no valid live direction.
        """
        try:
            snapshot = self._source.first()
            if snapshot.live is None and required:
                raise DirectionError(f"No direction of {self._model} is live. Publish one and promote it.")
            directions, error = self._fetched(snapshot)
        except ReinsError as error_:
            raise SteeringUnavailable(f"There is no valid live direction to start with: {error_}") from error_
        self._note(snapshot, error)
        self._meters.registry(self.registry_up)
        return directions, self._share(directions, snapshot)

    def begin(self, target: Target, directions: Mapping[str, Direction]) -> None:
        """Let a target that has the live direction take up all that `first` returned."""
        self.error = self._swap(target, directions, self.snapshot) or self.error

    def follow(self, target: Target) -> None:
        """Keep a target up to date from now on, for as long as it lives and `close` is not called."""
        threading.Thread(
            target=self._run, args=(weakref.ref(target),), name=f"reins-watcher-{self._model}", daemon=True
        ).start()

    def close(self) -> None:
        """Stop; a poll that waits is left to itself."""
        self._stop.set()

    def take(self, snapshot: Snapshot, target: Target) -> None:
        """Fetch, check and swap. What is refused leaves everything as it is. Raises RayError if the bytes cannot be fetched."""
        try:
            directions, error = self._fetched(snapshot)
            error = self._swap(target, directions, snapshot) or error
        except ReinsError as refused:
            self.refused += 1
            self.error, self._known = str(refused), snapshot.generation
            self._meters.swapped("refused", None)
            logger.error("generation %d of %s is refused, %d serves on: %s", snapshot.generation, self._model,
                         self.snapshot.generation, refused)  # fmt: skip
            return
        self._note(snapshot, error)
        self.swapped += 1
        moved = snapshot.updated
        self._meters.swapped("swapped", None if moved is None else self._since - moved.timestamp())
        if error is not None:
            self.refused += 1
            self._meters.swapped("refused", None)
            logger.error("the candidate of %s is refused, and the live direction serves alone: %s", self._model, error)

    def _swap(self, target: Target, directions: Mapping[str, Direction], snapshot: Snapshot) -> str | None:
        """Swap; a candidate that does not suit the target is left out, and what is wrong with it returned. Raises ReinsError."""
        try:
            target.swap({**self._fixed, **directions}, self._share(directions, snapshot), snapshot.epoch)
        except ReinsError as error:
            if CANDIDATE not in directions:
                raise
            alone = {name: direction for name, direction in directions.items() if name != CANDIDATE}
            target.swap({**self._fixed, **alone}, epoch=snapshot.epoch)
            return str(error)
        return None

    def _fetched(self, snapshot: Snapshot) -> tuple[dict[str, Direction], str | None]:
        """The snapshot's directions by name, and what is wrong with the candidate if it must be left out."""
        directions = {} if snapshot.live is None else {LIVE: snapshot.live.direction(self._model, self._trust)}
        if snapshot.candidate is None:
            return directions, snapshot.error
        try:
            candidate = snapshot.candidate.direction(self._model, self._trust)
        except ReinsError as error:
            return directions, str(error)
        return {**directions, CANDIDATE: candidate}, None

    @staticmethod
    def _share(directions: Mapping[str, Direction], snapshot: Snapshot) -> float:
        return snapshot.fraction if CANDIDATE in directions else 0.0

    def _note(self, snapshot: Snapshot, error: str | None) -> None:
        self.snapshot, self.error = snapshot, error
        self.numbers |= {one.sha256: one.number for one in (snapshot.live, snapshot.candidate) if one is not None}
        self._known, self._since = snapshot.generation, time.time()

    def _report(self, target: Target | None) -> Report | None:
        if not self.replica:
            return None
        outcomes = None if target is None else target.outcomes
        live, candidate = self.snapshot.live, self.snapshot.candidate
        return Report(
            self.replica,
            self.snapshot.generation,
            live.sha256 if live is not None else None,
            candidate.sha256 if candidate is not None else None,
            self._since,
            self.error,
            *((outcomes.epoch, outcomes.counts()) if outcomes is not None else ()),
        )

    def _run(self, target: "weakref.ref[Target]") -> None:
        pause = RETRY_S
        while not self._stop.is_set() and target() is not None:
            try:
                snapshot = self._next(self._report(target()))
                down = not self.registry_up
                found = target()
                if found is None or self._stop.is_set():
                    return
                if snapshot.generation != self._known:
                    self.take(snapshot, found)
                del found
            except Exception as error:
                logger.warning("the directions of %s could not be renewed, generation %d serves on: %s", self._model,
                               self.snapshot.generation, error)  # fmt: skip
                down = True
            pause = min(2 * pause, LONGEST_RETRY_S) if down else RETRY_S
            if down:
                self._stop.wait(pause * random.uniform(0.5, 1))

    def _next(self, report: Report | None) -> Snapshot:
        was_up = self.registry_up
        try:
            snapshot = self._source.next(self._known, report)
        except RegistryUnavailable as error:
            if was_up:
                logger.warning("generation %d of %s serves on: %s", self.snapshot.generation, self._model, error)
            self._meters.registry(False)
            return self._source.stored()
        self._meters.registry(True)
        return snapshot
