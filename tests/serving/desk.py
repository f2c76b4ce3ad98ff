"""A gateway's dispatching in one event loop: real jobs in SQLite, real files, and streams that the test writes itself."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from reins_serve.serving.config import ModelConfig
from reins_serve.serving.dispatch import Dispatcher
from reins_serve.serving.files import ClipFiles
from reins_serve.serving.jobs import Job, JobStore, StoreUnavailable
from reins_serve.serving.leases import Leases
from reins_serve.serving.messages import Clip, Message
from reins_serve.serving.runs import Runs
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.upkeep import Upkeep
from tests.serving.examples import OFF, job

PATIENCE_S = 60.0
MODEL = ModelConfig.model_validate({"name": "tiny", "directions": {"live": "live.safetensors"}, "max_batch_size": 2})
CLIP = Clip(b"video", b"thumbnail", b"spritesheet", OFF, 0.1, 1)
KINDS = {".mp4", ".thumbnail.png", ".spritesheet.png"}


class Stream:
    """Messages as the test says them; what is not a message is raised. Once cancelled, it ends as those of Serve do."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cancelled = False
        self._said: asyncio.Queue[Message | BaseException | None] = asyncio.Queue()

    def say(self, *messages: Message | BaseException | None) -> None:
        """None ends the stream."""
        for message in messages:
            self._said.put_nowait(message)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Message:
        message = await self._said.get()
        if message is None:
            raise StopAsyncIteration
        if isinstance(message, BaseException):
            raise message
        return message

    def cancel(self) -> None:
        self.cancelled = True
        self.say(RuntimeError("given up"))


class Faults:
    """A store whose methods may fail: `down` names those that do not answer, `deaf` those that do, but are not heard."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.down: set[str] = set()
        self.deaf: set[str] = set()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            if name in self.down:
                raise StoreUnavailable("down")
            result = await getattr(self._store, name)(*arguments, **named)
            if name in self.deaf:
                self.deaf.discard(name)
                raise StoreUnavailable("the answer was lost")
            return result

        return call


class Desk:
    """What one gateway does for one model. Its replicas are the test's: `streams` by job, the newest attempt."""

    def __init__(self, folder: Path, holder: str = "one", retention_s: float | None = None) -> None:
        self._database = folder / "jobs.sqlite3"
        self.store = Faults(SqlJobs(f"sqlite:///{self._database}", lease_s=10_000, retention_s=retention_s))
        self.folder = folder / "clips"
        self.files = ClipFiles(str(self.folder))
        self.running = 1
        self.streams: dict[str, Stream] = {}
        self.leases = Leases(self.store, holder)
        self.upkeep = Upkeep(self.store, self.files)
        runs = Runs(self.store, self.files, self.leases, self.upkeep)
        self.dispatcher = Dispatcher(MODEL, self.store, holder, self, runs)

    def generate(self, job: Job) -> Stream:
        self.streams[job.id] = Stream(job)
        return self.streams[job.id]

    async def proved(self) -> bool:
        return True

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator["Desk"]:
        """Claim, and beat the heart; at the end drop everything, as a gateway that is killed does."""
        work = [asyncio.create_task(self.dispatcher.run()), asyncio.create_task(self.leases.run())]
        try:
            yield self
        finally:
            for task in (*work, *self.dispatcher.on_their_way):
                task.cancel()
            await asyncio.wait((*work, *self.dispatcher.on_their_way))

    async def add(self, *names: str) -> None:
        for name in names:
            await self.store.add(job(name), 99)
        self.dispatcher.wake()

    def lapse(self, name: str) -> None:
        """Let the lease of a job run out at once."""
        with closing(sqlite3.connect(self._database, isolation_level=None)) as connection:
            connection.execute("UPDATE jobs SET lease_until = 0 WHERE id = ?", (name,))

    async def stream(self, name: str, attempt: int = 1) -> Stream:
        """Wait until an attempt of a job is at a replica."""
        await eventually(lambda: name in self.streams and self.streams[name].job.attempts == attempt)
        return self.streams[name]

    async def over(self, name: str) -> Job:
        """Wait until a job has ended, and the gateway is done with it."""
        found: list[Job | None] = []

        async def ended() -> bool:
            found.append(await self.store.get(name))
            return found[-1] is not None and found[-1].terminal and not self.dispatcher.on_their_way

        await eventually(ended)
        assert found[-1] is not None
        return found[-1]

    def names(self) -> set[str]:
        """The files that there are, hidden ones too."""
        return {path.name for path in self.folder.glob("*")} if self.folder.exists() else set()


def names_of(name: str, attempt: int) -> set[str]:
    """The files of one attempt."""
    return {f"{name}-{attempt}{kind}" for kind in KINDS}


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until a condition, which may be a coroutine, is true."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            value = condition()
            if await value if isinstance(value, Awaitable) else value:
                return
            await asyncio.sleep(0.005)
