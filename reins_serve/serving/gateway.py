"""The gateway's state and rules: models, jobs, files and totals, and the dispatchers that take jobs to replicas.

It knows no HTTP (`routes`) and no Serve (`app`): replicas come as `Replicas`, one for each model.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from reins_serve.serving.admission import Submission, admit
from reins_serve.serving.auth import Caller
from reins_serve.serving.config import ApplicationConfig
from reins_serve.serving.directions import DirectionsAdmin
from reins_serve.serving.dispatch import Dispatcher, Stream
from reins_serve.serving.files import ClipFiles, Variant
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.jobs import Job, JobStore, MemoryJobs
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
from reins_serve.serving.totals import Totals


class Replicas(Protocol):
    """The replicas of one model."""

    def generate(self, job: Job) -> Stream:
        """Hand a job to one of them."""

    async def proved(self) -> bool:
        """Whether at least one of them has passed its start-up proof."""


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
        self._store: JobStore = MemoryJobs()
        self._files = ClipFiles(Path(config.output_dir))
        self._totals = Totals(lambda model, version, sha256: self._models[model].label(version, sha256))
        self.directions = DirectionsAdmin(self._models, config.store)
        self._dispatchers = {
            model.name: Dispatcher(model, self._store, self._files, self._totals, replicas[model.name].generate)
            for model in config.models
        }

    async def run(self) -> None:
        """Dispatch jobs and follow the store of directions, until cancelled."""
        with ExitStack() as stack:
            for served in self._models.values():
                if served.watcher is not None:
                    served.watcher.follow(served)
                    stack.callback(served.watcher.close)
            async with asyncio.TaskGroup() as group:
                for dispatcher in self._dispatchers.values():
                    group.create_task(dispatcher.run())

    async def create(self, asked: Submission, caller: Caller) -> Video:
        """Check a request and store its job, then let it be dispatched; the job of before, if its idempotency key says so."""
        name = asked.body.model
        model = self._model(name) if name is not None else self._models[self.config.models[0].name]
        job = await admit(asked, model, self.config, caller)
        job = _there(await self._store.add(job, model.config.max_queued, asked.idempotency))
        self._dispatchers[job.model].wake()
        return await self._video(job)

    async def retrieve(self, job_id: str, caller: Caller) -> Video:
        """A job of the caller's, whatever its state."""
        return await self._video(await self._job(job_id, caller))

    async def page(self, query: ListQuery, caller: Caller) -> VideoList:
        """A page of the caller's jobs."""
        try:
            page = await self._store.page(caller.owner, query.after, query.limit, query.order == "desc")
        except KeyError:
            raise RequestError("There is no such video to begin after.", code="invalid_value", param="after") from None
        data = [await self._video(job) for job in page.jobs]
        ids = [item.id for item in data]
        return VideoList(
            data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=page.has_more
        )

    async def content(self, job_id: str, variant: Variant, caller: Caller) -> Path:
        """The file of a completed job."""
        job = await self._job(job_id, caller)
        if job.status == "failed":
            raise RequestError("This video failed and has no content; its `error` says why.", code="video_failed")
        if job.status != "completed":
            raise RequestError("This video is not ready yet. Ask again until it is completed.", code="video_not_ready")
        path = self._files.path(job.id, variant)
        if not path.is_file():
            raise RequestError("The files of this video are gone.", code="video_expired")
        return path

    async def delete(self, job_id: str, caller: Caller) -> VideoDeleted:
        """Forget a job and its files. One that is being generated stops at the end of the present denoising step."""
        await self._job(job_id, caller)
        job = await self._store.remove(job_id)
        if job is not None and not job.terminal:
            self._totals.cancelled(job)
            self._dispatchers[job.model].cancel(job.id)
        await asyncio.to_thread(self._files.delete, job_id)
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
        """Raise RequestError (`not_ready`) while a model has no replica that proved its steering."""
        names = list(self._models)
        proved = await asyncio.gather(*(self._replicas[name].proved() for name in names))
        missing = [name for name, ready in zip(names, proved, strict=True) if not ready]
        if missing:
            raise RequestError(
                f"Not ready: no replica of {', '.join(missing)} has proved its steering.", code="not_ready"
            )

    async def metrics(self) -> bytes:
        """The totals in Prometheus' text format."""
        waiting = {name: await self._store.count(name, "queued") for name in self._models}
        running = {name: await self._store.count(name, "in_progress") for name in self._models}
        for name, served in self._models.items():
            up = None if served.watcher is None else served.watcher.registry_up
            self._totals.serves(name, served.directions, up)
        return self._totals.text(waiting, running)

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

    async def _video(self, job: Job) -> Video:
        return video(job, self._models[job.model].entry, await self._store.position(job))


def _there(job: Job) -> Job:
    """The job, unless nothing but its id is left of it."""
    if job.status == "expired":
        raise RequestError("This video has expired: its record and its files are gone.", code="video_expired")
    return job
