"""The gateway's routes: HTTP in the shape of OpenAI's video jobs."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse
from prometheus_client import CONTENT_TYPE_LATEST

import reins_serve
from reins_serve.serving import direction_routes, http_errors, openapi
from reins_serve.serving.admission import body_limit, read_submission
from reins_serve.serving.auth import Caller, identify
from reins_serve.serving.body_limits import BodyLimits
from reins_serve.serving.events import follow
from reins_serve.serving.files import MEDIA_TYPES, SUFFIXES
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.ranges import content_response
from reins_serve.serving.schema import (
    JOB_ID,
    ContentQuery,
    ErrorAnswer,
    Health,
    ListQuery,
    Model,
    ModelList,
    Video,
    VideoDeleted,
    VideoEvent,
    VideoList,
)
from reins_serve.steering.direction import MAX_BYTES

Errors = dict[int | str, dict[str, Any]]


def _known_form(video_id: str) -> str:
    """Ids are made by this API: what does not look like one is not looked up anywhere."""
    if re.fullmatch(JOB_ID, video_id, re.ASCII) is None:
        raise RequestError("There is no such video.", code="video_not_found", param="id")
    return video_id


_CONTENT = {kind: {"schema": {"type": "string", "contentMediaType": kind}} for kind in set(MEDIA_TYPES.values())}
_BYTES: Errors = {
    200: {"description": "All of it", "content": _CONTENT},
    206: {"description": "The range that was asked for", "content": _CONTENT},
}

VideoId = Annotated[str, Depends(_known_form)]


def create_app(gateway: Gateway) -> FastAPI:
    """The ASGI application of one gateway; the gateway works while it runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        title="reins-serve",
        description="Videos from steered diffusion models, in the shape of OpenAI's video jobs.",
        version=reins_serve.__version__,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    openapi.describe(app, gateway.config)
    limits = gateway.config.limits
    own = {
        "/v1/videos": body_limit(limits, gateway.takes_images),
        "/v1/directions": MAX_BYTES + limits.max_body_bytes,
    }
    app.add_middleware(BodyLimits, default=limits.max_body_bytes, own=own)
    http_errors.install(app)
    if gateway.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=gateway.config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Range"],
            expose_headers=["Accept-Ranges", "Content-Disposition", "Content-Range", "Retry-After"],
        )

    def caller(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> Caller:
        return identify(authorization, gateway.config)

    Asking = Annotated[Caller, Depends(caller)]

    @app.post("/v1/videos", responses=_errors(400, 401, 403, 404, 409, 410, 413, 429, 503))
    async def create_video(
        request: Request,
        asking: Asking,
        idempotency_key: Annotated[str | None, Header(pattern=r"^[\x21-\x7e]{1,255}$")] = None,
    ) -> Video:
        """Store a video job and return it, `queued`. The same `Idempotency-Key` and request again: the job stored first."""
        asked = await read_submission(request, idempotency_key)
        return await gateway.create(asked, asking)

    @app.get("/v1/videos", responses=_errors(400, 401))
    async def list_videos(query: Annotated[ListQuery, Query()], asking: Asking) -> VideoList:
        """The caller's jobs, a page at a time."""
        return await gateway.page(query, asking)

    @app.get("/v1/videos/{video_id}", responses=_errors(401, 404, 410))
    async def retrieve_video(video_id: VideoId, asking: Asking) -> Video:
        """A job, a failed one too."""
        return await gateway.retrieve(video_id, asking)

    @app.delete("/v1/videos/{video_id}", responses=_errors(401, 404, 410))
    async def delete_video(video_id: VideoId, asking: Asking) -> VideoDeleted:
        """Forget a job and its files; a running one stops at the end of the present denoising step."""
        return await gateway.delete(video_id, asking)

    @app.get(
        "/v1/videos/{video_id}/content",
        response_class=StreamingResponse,
        responses=_errors(400, 401, 404, 409, 410, 416) | _BYTES,
        openapi_extra={"parameters": [{"name": "Range", "in": "header", "schema": {"type": "string"}}]},
    )
    async def download_video(
        video_id: VideoId,
        query: Annotated[ContentQuery, Query()],
        asking: Asking,
        part: Annotated[str | None, Header(alias="range", include_in_schema=False)] = None,
        if_range: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> Response:
        """The bytes of a completed video, its thumbnail or its spritesheet; ranges are honoured."""
        content = await gateway.content(video_id, query.variant, asking)
        name = video_id + SUFFIXES[query.variant]
        return await run_in_threadpool(content_response, content, MEDIA_TYPES[query.variant], name, part, if_range)

    @app.get("/v1/videos/{video_id}/events", response_class=EventSourceResponse, responses=_errors(401, 404, 410))
    async def follow_video(
        video_id: VideoId, now: Annotated[Video, Depends(retrieve_video)], asking: Asking
    ) -> AsyncIterator[VideoEvent]:
        """Server-sent events: the job's state at once, then at every change, until it is over or 30 s have passed."""
        async for event in follow(now, lambda: gateway.retrieve(video_id, asking)):
            yield event

    @app.get("/v1/models", responses=_errors(401))
    async def list_models(asking: Asking) -> ModelList:
        """What is served, with its sizes, lengths and live directions."""
        return gateway.models()

    @app.get("/v1/models/{name}", responses=_errors(401, 404))
    async def retrieve_model(name: str, asking: Asking) -> Model:
        """One served model."""
        return gateway.model(name)

    direction_routes.add(app, gateway.directions, caller)

    @app.get("/healthz")
    async def healthz() -> Health:
        """The gateway is alive."""
        return Health(status="ok")

    @app.get("/readyz", responses=_errors(503))
    async def readyz() -> Health:
        """Every model has a replica that proved its steering."""
        await gateway.check_ready()
        return Health(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Totals in Prometheus' text format."""
        return Response(await gateway.metrics(), media_type=CONTENT_TYPE_LATEST)

    return app


def _errors(*statuses: int) -> Errors:
    return {status: {"model": ErrorAnswer} for status in statuses}
