"""What every gateway does for all of them now and then: jobs whose gateway died, jobs whose time is over, files without a job."""

import asyncio
import logging
import random
import time
from collections.abc import Iterable

from reins_serve.errors import StorageError
from reins_serve.serving.files import ClipFiles
from reins_serve.serving.jobs import Job, JobStore, StoreUnavailable

PERIOD_S = 5.0
SWEEP_PERIOD_S = 3600.0

logger = logging.getLogger(__name__)


class Upkeep:
    """Reaps, expires and deletes; every step may be done by several gateways at once."""

    def __init__(self, store: JobStore, files: ClipFiles) -> None:
        self._store = store
        self._files = files
        self._left: list[tuple[str, int]] = []  # attempts whose files could not be deleted

    async def run(self) -> None:
        """Look after the jobs until cancelled.

        After a time without the database nothing is reaped in the first round: gateways that are alive shall renew their
        leases first.
        """
        steady, swept = False, -SWEEP_PERIOD_S
        while True:
            try:
                await self.expire()
                if steady:
                    await self.reap()
                steady = True
            except StoreUnavailable as error:
                logger.warning("jobs could not be reaped nor expired: %s", error)
                steady = False
            await self._delete_left()
            if time.monotonic() - swept >= SWEEP_PERIOD_S:
                swept = time.monotonic()
                await self._sweep()
            await asyncio.sleep(PERIOD_S * random.uniform(0.8, 1.2))

    async def reap(self) -> None:
        """Take back the jobs whose gateway is gone. Files of those that failed go; a new attempt removes those before it."""
        for job in await self._store.reap():
            logger.warning("the gateway of job %s is gone: the job is %s", job.id, job.status)
            if job.terminal:
                await self.delete(job)

    async def expire(self) -> None:
        """Let jobs whose time is over expire, with their files."""
        while expired := await self._store.expire():
            for job in expired:
                await self.delete(job)

    async def delete(self, job: Job) -> None:
        """Delete the files of a job that needs none any more."""
        await self.delete_attempts(job.id, range(1, job.attempts + 1))

    async def delete_attempts(self, job_id: str, attempts: Iterable[int]) -> None:
        """Delete the files of some attempts; storage that refuses is asked again later."""
        for attempt in attempts:
            try:
                await asyncio.to_thread(self._files.delete, job_id, attempt)
            except StorageError as error:
                logger.warning("files of job %s could not be deleted: %s", job_id, error)
                self._left.append((job_id, attempt))

    async def _delete_left(self) -> None:
        left, self._left = self._left, []
        for job_id, attempt in left:
            await self.delete_attempts(job_id, (attempt,))

    async def _sweep(self) -> None:
        try:
            await asyncio.to_thread(self._files.sweep)
        except StorageError as error:
            logger.warning("half-written files could not be removed: %s", error)
