"""The jobs that this gateway holds, and the heartbeat that keeps them its own."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Literal, Protocol

from reins_serve.serving.jobs import Job, JobStore, StoreUnavailable
from reins_serve.serving.messages import Message

HEARTBEAT_S = 0.5

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """A replica's messages about one job, which may be given up."""

    def __aiter__(self) -> AsyncIterator[Message]: ...

    def cancel(self) -> None: ...


class Held:
    """One job that a replica of this gateway's choice is making.

    Attributes:
        begun: Its denoising has begun, and the table says so.
        progress: Per cent, for the next heartbeat.
        stopped: Why the stream was given up: the job is `gone` (deleted, or another gateway's by now), or is to go `back`.
    """

    def __init__(self, job: Job, stream: Stream) -> None:
        self.job = job
        self.stream = stream
        self.begun = False
        self.progress = 0
        self.stopped: Literal["gone", "back"] | None = None

    def stop(self, why: Literal["gone", "back"]) -> None:
        """Give the stream up. GPU work ends after the present denoising step, unless other clips share it."""
        if self.stopped is None:
            self.stopped = why
            self.stream.cancel()


class Leases:
    """What this gateway holds, under the name `holder`."""

    def __init__(self, store: JobStore, holder: str) -> None:
        self.holder = holder
        self._store = store
        self._held: dict[str, Held] = {}
        self._answers = True

    def add(self, held: Held) -> None:
        """Keep a job that was claimed."""
        self._held[held.job.id] = held

    def drop(self, held: Held) -> None:
        """A job is over, or handed back."""
        if self._held.get(held.job.id) is held:
            del self._held[held.job.id]

    def stop(self, job_id: str) -> None:
        """A job was deleted here, before its end."""
        held = self._held.get(job_id)
        if held is not None:
            held.stop("gone")

    def hand_back(self, begun: bool) -> None:
        """Send jobs back to the queue: those that wait at a replica, or those that are being made as well."""
        for held in list(self._held.values()):
            if begun or not held.begun:
                held.stop("back")

    async def run(self) -> None:
        """Beat until cancelled. While the database does not answer, the leases run on, and every beat tries again."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.beat()

    async def beat(self) -> None:
        """Prolong the leases, tell the progress, and give up what is no longer this gateway's."""
        held = dict(self._held)
        if not held:
            return
        try:
            lost = await self._store.renew(
                self.holder, {name: (one.job.attempts, one.progress) for name, one in held.items()}
            )
        except StoreUnavailable:
            if self._answers:
                logger.warning("the leases of %d jobs could not be renewed; trying again", len(held), exc_info=True)
            self._answers = False
            return
        self._answers = True
        for name in lost:
            held[name].stop("gone")
