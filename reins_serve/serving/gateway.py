"""The gateway's rules: models, jobs and files, and the dispatchers that take jobs to replicas.

It knows no HTTP (`routes`) and no Serve (`app`): replicas come as `Replicas`, one for each model. What it knows of jobs is in the
database and on storage alone, so that any gateway answers for any job.
"""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager

from reins_serve.models import catalog
from reins_serve.serving.admission import Submission, admit
from reins_serve.serving.auth import Caller
from reins_serve.serving.config import ApplicationConfig
from reins_serve.serving.directions import DirectionsAdmin
from reins_serve.serving.dispatch import Dispatcher
from reins_serve.serving.files import ClipFiles, Content, Variant
from reins_serve.serving.fleet import Replicas
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.jobs import Job, JobStore
from reins_serve.serving.leases import Leases
from reins_serve.serving.runs import Runs
from reins_serve.serving.schema import (
    ListQuery,
    Model,
    ModelList,
    Video,
    VideoDeleted,
    VideoList,
    model_card,
    video,
)
from reins_serve.serving.served import ServedModel, serve_model
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.totals import Totals
from reins_serve.serving.upkeep import Upkeep

HAND_BACK_S = 20.0  # for what is handed back, and for clips that were being stored

logger = logging.getLogger(__name__)


class Gateway:
    """One gateway.

    Args:
        replicas: By the model's name, for every model of the configuration.

    Raises:
        ReinsError: the configuration names something that does not exist or does not fit; says what.
    """

    def __init__(self, config: ApplicationConfig, replicas: Mapping[str, Replicas]) -> None:
        self.config = config
        self._started = int(time.time())
        self._replicas = replicas
        self._models = {model.name: serve_model(model) for model in config.models}
        self._files = ClipFiles(config.output_dir)
        self._store: JobStore = SqlJobs(config.database_url, retention_s=config.retention_s, label=self._label)
        self._totals = Totals(self._label)
        self.directions = DirectionsAdmin(self._models, config.store)
        holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._leases = Leases(self._store, holder)
        self._upkeep = Upkeep(self._store, self._files)
        runs = Runs(self._store, self._files, self._leases, self._upkeep)
        self._dispatchers = {
            model.name: Dispatcher(model, self._store, holder, replicas[model.name], runs) for model in config.models
        }
        self._work: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Dispatch jobs and follow the store of directions; on leaving, claim no more, and finish or hand back what is held."""
        with ExitStack() as stack:
            for served in self._models.values():
                if served.watcher is not None:
                    served.watcher.follow(served)
                    stack.callback(served.watcher.close)
            claiming = [asyncio.create_task(dispatcher.run()) for dispatcher in self._dispatchers.values()]
            others = [asyncio.create_task(self._leases.run()), asyncio.create_task(self._upkeep.run())]
            self._work = claiming + others
            try:
                yield
            finally:
                for dispatcher in self._dispatchers.values():
                    dispatcher.close()
                await asyncio.wait(claiming)
                await self._drain()
                for task in others:
                    task.cancel()
                await asyncio.wait(others)
                await self._store.close()

    def check_alive(self) -> None:
        """Raise what has ended a part of this gateway's work, if something has: then it must be replaced."""
        for task in self._work:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _drain(self) -> None:
        """Hand back the jobs that have not begun, and wait for the clips that are being made; after `drain_s` those go back too."""
        runs = [run for dispatcher in self._dispatchers.values() for run in dispatcher.on_their_way]
        if not runs:
            return
        logger.info("waiting for at most %d clips before this gateway goes", len(runs))
        self._leases.hand_back(begun=False)
        _, late = await asyncio.wait(runs, timeout=self.config.drain_timeout_s)
        if late:
            self._leases.hand_back(begun=True)
            _, late = await asyncio.wait(late, timeout=HAND_BACK_S)
        for run in late:
            run.cancel()

    async def create(self, asked: Submission, caller: Caller) -> Video:
        """Check a request and store its job, then let it be dispatched; the job of before, if its idempotency key says so."""
        name = asked.body.model
        model = self._model(name) if name is not None else self._models[self.config.models[0].name]
        job = await admit(asked, model, self.config, caller)
        job = _there(await self._store.add(job, model.config.max_queued, asked.idempotency))
        self._dispatchers[model.config.name].wake()
        return await self._video(job, caller)

    async def retrieve(self, job_id: str, caller: Caller) -> Video:
        """A job of the caller's, whatever its state."""
        return await self._video(await self._job(job_id, caller), caller)

    async def page(self, query: ListQuery, caller: Caller) -> VideoList:
        """A page of the caller's jobs."""
        try:
            page = await self._store.page(caller.owner, query.after, query.limit, query.order == "desc")
        except KeyError:
            raise RequestError("There is no such video to begin after.", code="invalid_value", param="after") from None
        data = [await self._video(job, caller) for job in page.jobs]
        ids = [item.id for item in data]
        return VideoList(
            data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=page.has_more
        )

    async def content(self, job_id: str, variant: Variant, caller: Caller) -> Content:
        """The file of a completed job."""
        job = await self._job(job_id, caller)
        if job.status == "failed":
            raise RequestError("This video failed and has no content; its `error` says why.", code="video_failed")
        if job.status != "completed":
            raise RequestError("This video is not ready yet. Ask again until it is completed.", code="video_not_ready")
        found = await asyncio.to_thread(self._files.content, job.id, job.attempts, variant)
        if found is None:
            raise RequestError("The files of this video are gone.", code="video_expired")
        return found

    async def delete(self, job_id: str, caller: Caller) -> VideoDeleted:
        """Forget a job and its files. One that is being generated stops at the end of the present denoising step."""
        await self._job(job_id, caller)
        job = await self._store.remove(job_id)
        if job is not None:
            self._leases.stop(job_id)  # where it is another gateway's, that one learns of it from its next heartbeat
            await self._upkeep.delete(job)
        return VideoDeleted(id=job_id)

    @property
    def takes_images(self) -> bool:
        """Whether a served model begins its clips with an image."""
        return any(model.image != "none" for model in self._models.values())

    def models(self) -> ModelList:
        """What is served."""
        return ModelList(data=[model_card(model, self._started) for model in self._models.values()])

    def model(self, name: str) -> Model:
        """One served model."""
        return model_card(self._model(name), self._started)

    async def check_ready(self) -> None:
        """Raise RequestError (`not_ready`) while a model could not make a steered clip.

        A model that always has replicas needs one that proved its steering; one that may have none, a valid live direction: a
        replica that starts proves it before its first job.
        """
        names = list(self._models)
        ready = await asyncio.gather(*(self._ready(name) for name in names))
        missing = [name for name, is_ready in zip(names, ready, strict=True) if not is_ready]
        if missing:
            raise RequestError(
                f"Not ready: {', '.join(missing)} cannot make a steered clip yet, for want of a replica that proved its steering "
                "or of a valid live direction.",
                code="not_ready",
            )

    async def _ready(self, name: str) -> bool:
        if self._models[name].config.min_replicas:
            return await self._replicas[name].proved()
        return await asyncio.to_thread(self._models[name].could_start)

    async def metrics(self) -> bytes:
        """The totals in Prometheus' text format."""
        waiting = {name: await self._store.count(name, "queued") for name in self._models}
        running = {name: await self._store.count(name, "in_progress") for name in self._models}
        for name, served in self._models.items():
            up = None if served.watcher is None else served.watcher.registry_up
            self._totals.serves(name, served.directions, up)
            self._totals.requires(name, served.config.policy.required)
        return self._totals.text(await self._store.totals(), waiting, running)

    def _label(self, model: str, version: str | None, sha256: str | None) -> str:
        served = self._models.get(model)
        return served.label(version, sha256) if served is not None else version or "unknown"

    def _model(self, name: str) -> ServedModel:
        model = self._models.get(name)
        if model is None:
            offered = ", ".join(self._models)
            raise RequestError(
                f"This model is not served here; there is: {offered}.", code="model_not_found", param="model"
            )
        return model

    async def _job(self, job_id: str, caller: Caller) -> Job:
        job = await self._store.get(job_id)
        if job is None or job.owner != caller.owner:
            raise RequestError("There is no such video.", code="video_not_found", param="id")
        return _there(job)

    async def _video(self, job: Job, caller: Caller) -> Video:
        served = self._models.get(job.model)  # None: it was served when the job was made
        entry = catalog.get(job.model) if served is None else served.entry
        figures = caller.admin or self.config.steering_figures == "owner"
        return video(job, entry, await self._store.position(job), figures)


def _there(job: Job) -> Job:
    """The job, unless nothing but its id is left of it."""
    if job.status == "expired":
        raise RequestError("This video has expired: its record and its files are gone.", code="video_expired")
    return job
