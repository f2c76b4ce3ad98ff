"""Takes waiting jobs of one model to its replicas.

A job waits in the table, where it can be counted, listed and cancelled, and not in Serve's own queue: it is claimed only while
all gateways together have fewer jobs on their way than the replicas that run now can take.
"""

import asyncio
import logging
import random
from contextlib import suppress

from reins_serve.serving.config import ModelConfig
from reins_serve.serving.fleet import Replicas
from reins_serve.serving.jobs import Job, JobStore, StoreUnavailable
from reins_serve.serving.runs import Runs

POLL_S = 0.25
LONGEST_PAUSE_S = 2.0

logger = logging.getLogger(__name__)


class Dispatcher:
    """The jobs of one model that this gateway claims under the name `holder`."""

    def __init__(self, config: ModelConfig, store: JobStore, holder: str, replicas: Replicas, runs: Runs) -> None:
        self._config = config
        self._store = store
        self._holder = holder
        self._replicas = replicas
        self._runs = runs
        self._work = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def wake(self) -> None:
        """A job was added, or there is room for one: look at once."""
        self._work.set()

    def close(self) -> None:
        """Claim no more; `run` returns, and the jobs on their way go on. A claim is never broken off half-way."""
        self._closed = True
        self.wake()

    async def run(self) -> None:
        """Claim and start jobs until closed."""
        pause = POLL_S
        while not self._closed:
            self._work.clear()
            try:
                job = await self._claim()
            except StoreUnavailable as error:
                logger.warning("no job of %s could be claimed, trying again: %s", self._config.name, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            pause = POLL_S
            if job is not None:
                self._start(job)
            elif not self._closed:
                # Jobs that came to other gateways are found by looking; not by all gateways at the same moment.
                # Python 3.11's `wait_for` forgets that it was cancelled when what it waits for comes at the same time.
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S * random.uniform(0.8, 1.2)):
                        await self._work.wait()

    @property
    def on_their_way(self) -> frozenset[asyncio.Task[None]]:
        """The runs of the jobs that were claimed here and are not over."""
        return frozenset(self._tasks)

    async def _claim(self) -> Job | None:
        limit = self._config.in_flight_per_replica * self._replicas.running
        return await self._store.claim(self._config.name, self._holder, limit) if limit else None

    def _start(self, job: Job) -> None:
        run = self._runs.run(job, self._replicas.generate(job), self._config.generation_timeout_s)
        task = asyncio.create_task(run, name=job.id)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.wake()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the run of job %s broke off; its lease runs out", task.get_name(), exc_info=error)
