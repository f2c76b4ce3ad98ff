"""One job on its way: follows a replica's messages, stores the clip, and writes down what came of it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import Enum, auto

from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError

from reins_serve.errors import StorageError
from reins_serve.serving.files import ClipFiles
from reins_serve.serving.job_states import WORKER_LOST
from reins_serve.serving.jobs import Job, JobError, JobResult, JobStore, Status, StoreUnavailable
from reins_serve.serving.leases import Held, Leases, Stream
from reins_serve.serving.messages import Clip, Failure, Progress, Started
from reins_serve.serving.upkeep import Upkeep

TIMEOUT = JobError("timeout", "The clip took longer than this model's time limit.")
STORAGE = JobError("storage_error", "The finished clip could not be stored.")
INTERNAL = JobError("internal_error", "Something went wrong inside the server; its log says what.")

STORAGE_TRIES = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 4.0

logger = logging.getLogger(__name__)


class Nothing(Enum):
    """Why a stream brought neither a clip nor an error."""

    GONE = auto()  # the job was deleted, or is another gateway's by now
    BACK = auto()  # it is to go back to the queue, and this attempt does not count
    LOST = auto()  # its replica died


class Runs:
    """The runs of one gateway."""

    def __init__(self, store: JobStore, files: ClipFiles, leases: Leases, upkeep: Upkeep) -> None:
        self._store = store
        self._files = files
        self._leases = leases
        self._upkeep = upkeep

    async def run(self, job: Job, stream: Stream, timeout_s: float) -> None:
        """Follow a claimed job. Afterwards it has ended, waits again, or belongs to somebody else."""
        held = Held(job, stream)
        self._leases.add(held)
        try:
            outcome = await self._outcome(held, timeout_s)
            if isinstance(outcome, Clip):
                await self._finish(held, outcome)
            elif isinstance(outcome, JobError):
                await self._fail(held, outcome)
            elif outcome is not Nothing.GONE:
                lost = outcome is Nothing.LOST
                waits = await self._change(held, lambda: self._store.release(job.id, job.attempts, lost), "queued")
                if waits is None and lost:
                    await self._fail(held, WORKER_LOST)
        finally:
            self._leases.drop(held)
            stream.cancel()

    async def _outcome(self, held: Held, timeout_s: float) -> Clip | JobError | Nothing:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(held)
        except TimeoutError:
            held.stream.cancel()
            return TIMEOUT
        except DeploymentUnavailableError:
            return Nothing.BACK
        except (Exception, asyncio.CancelledError) as error:
            if held.stopped is not None:  # which ends a stream with an error of Ray's or of asyncio's
                return Nothing.GONE if held.stopped == "gone" else Nothing.BACK
            if isinstance(error, asyncio.CancelledError):
                raise
            if isinstance(error, RayError) and not isinstance(error, RayTaskError | TaskCancelledError):
                logger.warning("the replica of job %s is lost: %s", held.job.id, type(error).__name__)
                return Nothing.LOST
            logger.exception("job %s failed", held.job.id)
            return INTERNAL

    async def _follow(self, held: Held) -> Clip | JobError | Nothing:
        job = held.job
        async for message in held.stream:
            match message:
                case Started():
                    begun = await self._change(held, lambda: self._store.begin(job.id, job.attempts), "in_progress")
                    if begun is None:
                        return Nothing.GONE
                    held.begun = True
                case Progress(done, total):
                    held.progress = 99 * done // total
                case Failure(code, text, version, sha256):
                    return JobError(code, text, version, sha256)
                case Clip():
                    return message
        return Nothing.LOST

    async def _finish(self, held: Held, clip: Clip) -> None:
        """Store the files, then the record. What is left of earlier attempts goes; of a job that is gone, everything."""
        job = held.job
        if not await self._store_files(held, clip):
            await self._upkeep.delete_attempts(job.id, (job.attempts,))
            await self._fail(held, STORAGE)
            return
        result = JobResult(clip.record, clip.inference_time_s, clip.batch_size)
        completed = await self._change(held, lambda: self._store.complete(job.id, job.attempts, result), "completed")
        leftover = range(1, job.attempts) if completed is not None else (job.attempts,)
        await self._upkeep.delete_attempts(job.id, leftover)

    async def _store_files(self, held: Held, clip: Clip) -> bool:
        job, pause = held.job, FIRST_PAUSE_S
        for left in reversed(range(STORAGE_TRIES)):
            try:
                await asyncio.to_thread(self._files.store, job.id, job.attempts, clip)
                return True
            except StorageError:
                logger.warning("the clip of job %s could not be stored; tries left: %d", job.id, left, exc_info=True)
            if left == 0 or held.stopped == "gone":
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return False

    async def _fail(self, held: Held, error: JobError) -> None:
        job = held.job
        await self._change(held, lambda: self._store.fail(job.id, error, job.attempts), "failed")

    async def _change(self, held: Held, change: Callable[[], Awaitable[Job | None]], status: Status) -> Job | None:
        """Make a change, again for as long as the database does not answer; None: the job is no longer this attempt's.

        A try whose answer was lost may have made it: then the next one is refused, and the record tells.
        """
        pause, repeated = FIRST_PAUSE_S, False
        while True:
            try:
                job = await change()
                if job is None and repeated:
                    found = await self._store.get(held.job.id)
                    if found is not None and (found.attempts, found.status) == (held.job.attempts, status):
                        return found
                return job
            except StoreUnavailable:
                repeated = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
