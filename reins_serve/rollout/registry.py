"""DirectionRegistry: the named actor from which replicas learn within milliseconds which direction is live.

Storage is the truth: the actor writes to it first, tells the replicas afterwards, and after a crash reads it again. It also
looks whether another cluster has moved a pointer on the same storage. Replicas long-poll, and a poll says what the replica
serves: that is the acknowledgement.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from reins_serve.errors import ConflictError, DirectionError, ReinsError, StorageError
from reins_serve.rollout.audit import Event
from reins_serve.rollout.decision import Decision, decide
from reins_serve.rollout.document import MAX_TEXT, now
from reins_serve.rollout.pointer import Pointer
from reins_serve.rollout.signatures import Trust, short
from reins_serve.rollout.snapshot import Report, Snapshot, Staged, read_snapshot
from reins_serve.rollout.storage import DirectionStore
from reins_serve.rollout.tracked import TrackedModel
from reins_serve.rollout.versions import Version
from reins_serve.steering.direction import Direction

HOLD_S = 20.0  # a poll is answered after this time at the latest
LOOK_S = 2.0  # how often storage is looked at for what others have changed
FORGOTTEN_S = 3 * HOLD_S  # a replica that has not polled for so long is gone
INLINE_BYTES = 64 << 10  # what is larger goes once into the object store, for all replicas

AUTO = "auto"  # who ended a canary, in the audit log

logger = logging.getLogger(__name__)


class DirectionRegistry:
    """The actor; `client.connect` makes or finds it.

    Changes are safe to send again, as Ray does after a crash: a version is known by its digest, and a move of the pointer names
    the generation that it was decided on.

    It holds to the public keys in its own environment, or else to those of whoever asks, or else to those of the replicas that
    poll; replicas check again for themselves.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._store = DirectionStore(url)
        self._models: dict[str, TrackedModel] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._trusted: dict[str, dict[str, float]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def url(self) -> str:
        """Where the store is."""
        return self._url

    async def wait(
        self,
        model: str,
        known: int,
        report: Report | None = None,
        hold_s: float = HOLD_S,
        trusted: Sequence[str] = (),
    ) -> Snapshot:
        """What serves, as soon as that is not generation `known`, or after `hold_s`. Raises StorageError, SignatureError.

        Nobody is sent back to what storage said before: a generation that this process has not seen yet makes it look.
        """
        before = self._trust(model)
        self._trusted.setdefault(model, {}).update(dict.fromkeys(trusted, time.time()))
        if model in self._models and self._trust(model) != before:
            await self._refresh(model)
        entry = await self._entry(model)
        if report is not None:
            entry.heard(report)
        if known > entry.snapshot.generation:  # read from storage while this process was out of reach
            await self._refresh(model)
            if known > entry.snapshot.generation and entry.error is not None:
                raise StorageError(entry.error)
        changed = entry.changed
        if entry.snapshot.generation == known:
            hold_s = hold_s if entry.snapshot.auto is None else min(hold_s, LOOK_S)  # its counts are waited for
            with suppress(TimeoutError):
                async with asyncio.timeout(hold_s):
                    await changed.wait()
        return entry.snapshot

    async def find(self, model: str) -> Pointer | None:
        """The pointer as storage has it."""
        return await asyncio.to_thread(self._store.find, model)

    async def publish(self, data: bytes, said: dict[str, Any], trusted: Sequence[str] = ()) -> Version:
        """Store a version; see DirectionStore.publish."""

        def publish() -> Version:
            return self._trusting(Direction.parse(data).model, trusted).publish(data, **said)

        return await asyncio.to_thread(publish)

    async def promote(
        self, model: str, version: str, generation: int, said: dict[str, Any], trusted: Sequence[str] = ()
    ) -> Pointer:
        """Make a version live; see DirectionStore.promote."""
        return await self._move("promote", model, generation, said, trusted, version)

    async def canary(
        self,
        model: str,
        version: str,
        fraction: float,
        generation: int,
        said: dict[str, Any],
        trusted: Sequence[str] = (),
    ) -> Pointer:
        """Give a version a share; see DirectionStore.canary."""
        return await self._move("canary", model, generation, said, trusted, version, fraction)

    async def withdraw(self, model: str, generation: int, said: dict[str, Any], trusted: Sequence[str] = ()) -> Pointer:
        """End a canary; see DirectionStore.withdraw."""
        return await self._move("withdraw", model, generation, said, trusted)

    async def rollback(self, model: str, generation: int, said: dict[str, Any], trusted: Sequence[str] = ()) -> Pointer:
        """Go back to the version before; see DirectionStore.rollback."""
        return await self._move("rollback", model, generation, said, trusted)

    async def history(self, model: str) -> list[Event]:
        """Everything that happened; see DirectionStore.history."""
        return await asyncio.to_thread(self._store.history, model)

    async def status(self, model: str) -> dict[str, Any]:
        """What serves, what came of it, and which replica has it; `asked` is when a replica last polled, in Unix time."""
        entry = await self._entry(model)
        status = entry.status(time.time() - FORGOTTEN_S)
        return status | {"trusted_keys": sorted(map(short, self._trust(model).keys))}

    async def _entry(self, model: str) -> TrackedModel:
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        if model not in self._models:
            async with self._turn(model):
                if model not in self._models:
                    self._models[model] = TrackedModel(await asyncio.to_thread(self._read, model, None))
        return self._models[model]

    async def _move(
        self, action: str, model: str, generation: int, said: dict[str, Any], trusted: Sequence[str], *arguments: Any
    ) -> Pointer:
        move = getattr(self._trusting(model, trusted), action)

        def moved() -> Pointer:
            try:
                return move(model, *arguments, generation=generation, **said)
            except ConflictError:
                again = self._made_before(action, model, generation, said, arguments)
                if again is None:
                    raise
                return again

        async with self._turn(model):
            pointer = await asyncio.to_thread(moved)
        await self._refresh(model)
        return pointer

    def _made_before(
        self, action: str, model: str, generation: int, said: dict[str, Any], arguments: tuple[Any, ...]
    ) -> Pointer | None:
        """The pointer, if it was moved by this very request, whose answer was lost with a crashed process."""
        pointer = self._store.find(model)
        if pointer is None or (pointer.generation, pointer.action) != (generation + 1, action):
            return None
        if (pointer.by, pointer.why) != (said["who"].strip(), said["why"].strip()):
            return None
        made = pointer.candidate if action == "canary" else pointer.live
        if arguments and self._store.resolve(model, arguments[0]).sha256 != made:
            return None
        return pointer

    async def _look(self) -> None:
        """Take up what others have changed on storage, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for model in list(self._models):
                await self._refresh(model)
                await self._decide(model)

    async def _decide(self, model: str) -> None:
        """End an automatic canary whose counts, or whose time, say so: a move like any other, from the generation that was seen."""
        entry = self._models[model]
        snapshot = entry.snapshot
        if snapshot.auto is None:
            return
        decision = decide(snapshot.auto, entry.outcome(snapshot.candidate), entry.outcome(snapshot.live), now())
        if decision is None:
            return
        try:
            await self._end(model, snapshot, decision)
        except ConflictError:
            logger.info("another writer was first to move the pointer of %s", model)
        except Exception as error:
            logger.warning("the automatic canary of %s has not ended yet, it is tried again: %s", model, error)

    async def _end(self, model: str, snapshot: Snapshot, decision: Decision) -> None:
        """Promote or withdraw; what may not be promoted, for its gates or its signature, is withdrawn."""
        why = decision.why
        if decision.action == "promote" and snapshot.candidate is not None and snapshot.auto is not None:
            said = {"who": AUTO, "why": why[:MAX_TEXT], "override": snapshot.auto.override}
            try:
                await self._move("promote", model, snapshot.generation, said, (), snapshot.candidate.sha256)
                return
            except DirectionError as error:
                why = f"it may not be promoted ({error}), although {why}"
        await self._move("withdraw", model, snapshot.generation, {"who": AUTO, "why": why[:MAX_TEXT]}, ())

    async def _refresh(self, model: str) -> None:
        """Show what storage says; where that cannot be read, what was last read goes on."""
        entry = await self._entry(model)
        async with self._turn(model):
            try:
                entry.show(await asyncio.to_thread(self._read, model, entry.snapshot))
            except ReinsError as error:
                if entry.error != str(error):
                    logger.error("generation %d of %s stays: %s", entry.snapshot.generation, model, error)
                entry.error = str(error)
            except Exception as error:
                logger.exception("storage was not read")
                entry.error = type(error).__name__

    def _read(self, model: str, known: Snapshot | None) -> Snapshot:
        snapshot = read_snapshot(self._trusting(model), model, known)
        if snapshot is known:
            return snapshot
        return replace(snapshot, live=_shared(snapshot.live), candidate=_shared(snapshot.candidate))

    def _trust(self, model: str) -> Trust:
        """The keys of this process, or else those of the replicas of a model that have polled lately."""
        recent, said = time.time() - FORGOTTEN_S, self._trusted.get(model, {})
        return self._store.trust or Trust(frozenset(key for key, at in list(said.items()) if at > recent))

    def _trusting(self, model: str, trusted: Sequence[str] = ()) -> DirectionStore:
        """The store as somebody with these keys sees it."""
        asking = Trust(frozenset(trusted))
        return self._store.trusting(self._store.trust or asking or self._trust(model))

    def _turn(self, model: str) -> asyncio.Lock:
        return self._turns.setdefault(model, asyncio.Lock())


def _shared(staged: Staged | None) -> Staged | None:
    """The same version, its bytes in the object store if they are many: put there by this process, which owns them."""
    if staged is None or not isinstance(staged.data, bytes) or len(staged.data) <= INLINE_BYTES:
        return staged
    import ray

    return replace(staged, data=ray.put(staged.data))
