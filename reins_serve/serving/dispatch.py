"""Takes waiting jobs to the replicas of their model and writes down what comes of them.

One loop per model claims the oldest waiting job whenever a replica has room (`max_in_flight`), so that a job waits in the
store, where it can be counted, listed and cancelled, and not in Serve's own queue.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from ray.exceptions import RayActorError

from reins_serve.serving.config import ModelConfig
from reins_serve.serving.files import ClipFiles
from reins_serve.serving.jobs import Job, JobError, JobResult, JobStore
from reins_serve.serving.messages import Clip, Failure, Message, Progress, Started
from reins_serve.serving.totals import Totals

WORKER_LOST = JobError("worker_lost", "The replica that was making this clip was lost, twice.")
TIMEOUT = JobError("timeout", "The clip took longer than this model's time limit.")
STORAGE = JobError("storage_error", "The finished clip could not be stored.")
INTERNAL = JobError("internal_error", "Something went wrong inside the server; its log says what.")

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """A replica's messages about one job, which may be given up."""

    def __aiter__(self) -> AsyncIterator[Message]: ...

    def cancel(self) -> None: ...


class ReplicaLost(Exception):
    """The stream ended without a clip or a failure."""


class Dispatcher:
    """The jobs of one model on their way.

    Args:
        open_stream: Hands a job to a replica and returns its messages.
    """

    def __init__(
        self,
        config: ModelConfig,
        store: JobStore,
        files: ClipFiles,
        totals: Totals,
        open_stream: Callable[[Job], Stream],
    ) -> None:
        self._config = config
        self._store = store
        self._files = files
        self._totals = totals
        self._open_stream = open_stream
        self._room = asyncio.Semaphore(config.max_in_flight)
        self._work = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[str, Stream] = {}

    def wake(self) -> None:
        """A job was added."""
        self._work.set()

    def cancel(self, job_id: str) -> None:
        """Give a job up, if a replica has it. Remove its record first: what still comes of it is then thrown away."""
        stream = self._streams.get(job_id)
        if stream is not None:
            stream.cancel()

    async def run(self) -> None:
        """Dispatch until cancelled; then the jobs on their way are given up."""
        try:
            while True:
                await self._room.acquire()
                job = await self._next()
                task = asyncio.create_task(self._run(job))
                self._tasks.add(task)
                task.add_done_callback(self._ended)
        finally:
            for task in self._tasks:
                task.cancel()

    async def _next(self) -> Job:
        while True:
            self._work.clear()
            job = await self._store.claim(self._config.name)
            if job is not None:
                return job
            await self._work.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()
        self.wake()

    async def _run(self, job: Job) -> None:
        """Follow one job to its end. Whatever happens, the job ends or goes back to the queue."""
        stream = self._streams[job.id] = self._open_stream(job)
        try:
            async with asyncio.timeout(self._config.generation_timeout_s):
                await self._follow(job, stream)
        except TimeoutError:
            await self._fail(job, TIMEOUT)
        except (RayActorError, ReplicaLost):
            if await self._store.release(job.id) is None:
                await self._fail(job, WORKER_LOST)
        except Exception:
            if await self._store.get(job.id) is not None:  # else it was given up, which ends its stream with an error
                logger.exception("job %s failed", job.id)
                await self._fail(job, INTERNAL)
        finally:
            del self._streams[job.id]
            stream.cancel()

    async def _follow(self, job: Job, stream: Stream) -> None:
        async for message in stream:
            match message:
                case Started():
                    begun = await self._store.begin(job.id)
                    if begun is not None:
                        self._totals.began(begun)
                case Progress(done, total):
                    await self._store.advance(job.id, 99 * done // total)
                case Failure(code, text, version, sha256):
                    await self._fail(job, JobError(code, text, version, sha256))
                    return
                case Clip():
                    await self._finish(job, message)
                    return
        raise ReplicaLost

    async def _finish(self, job: Job, clip: Clip) -> None:
        """Store the files, then the record; a job that was deleted meanwhile leaves neither."""
        try:
            await asyncio.to_thread(self._files.store, job.id, clip)
        except OSError:
            logger.exception("the clip of job %s could not be stored", job.id)
            await self._fail(job, STORAGE)
            return
        result = JobResult(clip.record, clip.inference_time_s, clip.batch_size)
        completed = await self._store.complete(job.id, result)
        if completed is None:
            await asyncio.to_thread(self._files.delete, job.id)
        else:
            self._totals.completed(completed)

    async def _fail(self, job: Job, error: JobError) -> None:
        failed = await self._store.fail(job.id, error)
        if failed is not None:
            self._totals.failed(failed)
