"""The gateway's routes: HTTP in the shape of OpenAI's video jobs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from prometheus_client import CONTENT_TYPE_LATEST

import reins_serve
from reins_serve.serving import direction_routes, http_errors
from reins_serve.serving.admission import FORMS, JSON, read_body
from reins_serve.serving.auth import Caller, identify
from reins_serve.serving.files import MEDIA_TYPES, SUFFIXES
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.ranges import content_response
from reins_serve.serving.schema import (
    ContentQuery,
    CreateVideo,
    ErrorAnswer,
    Health,
    ListQuery,
    Model,
    ModelList,
    Video,
    VideoDeleted,
    VideoList,
)

Errors = dict[int | str, dict[str, Any]]


def create_app(gateway: Gateway) -> FastAPI:
    """The ASGI application of one gateway; the gateway works while it runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(title="reins-serve", version=reins_serve.__version__, lifespan=lifespan)
    http_errors.install(app)

    def caller(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> Caller:
        return identify(authorization, gateway.config)

    Asking = Annotated[Caller, Depends(caller)]

    @app.post("/v1/videos", openapi_extra=_body_schema(), responses=_errors(400, 401, 403, 404, 413, 429, 503))
    async def create_video(request: Request, asking: Asking) -> Video:
        """Store a video job and return it, `queued`."""
        return await gateway.create(await read_body(request, gateway.config.limits), asking)

    @app.get("/v1/videos", responses=_errors(400, 401))
    async def list_videos(query: Annotated[ListQuery, Query()], asking: Asking) -> VideoList:
        """The caller's jobs, a page at a time."""
        return await gateway.page(query, asking)

    @app.get("/v1/videos/{video_id}", responses=_errors(401, 404))
    async def retrieve_video(video_id: str, asking: Asking) -> Video:
        """A job, a failed one too."""
        return await gateway.retrieve(video_id, asking)

    @app.delete("/v1/videos/{video_id}", responses=_errors(401, 404))
    async def delete_video(video_id: str, asking: Asking) -> VideoDeleted:
        """Forget a job and its files; a running one stops at the end of the present denoising step."""
        return await gateway.delete(video_id, asking)

    @app.get(
        "/v1/videos/{video_id}/content",
        response_class=FileResponse,
        responses=_errors(400, 401, 404, 409, 410)
        | {200: {"content": {kind: {} for kind in set(MEDIA_TYPES.values())}}},
    )
    async def download_video(
        video_id: str,
        query: Annotated[ContentQuery, Query()],
        asking: Asking,
        part: Annotated[str | None, Header(alias="range", include_in_schema=False)] = None,
        if_range: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> Response:
        """The bytes of a completed video, its thumbnail or its spritesheet; ranges are honoured."""
        content = await gateway.content(video_id, query.variant, asking)
        name = video_id + SUFFIXES[query.variant]
        return await run_in_threadpool(content_response, content, MEDIA_TYPES[query.variant], name, part, if_range)

    @app.get("/v1/models", responses=_errors(401))
    async def list_models(asking: Asking) -> ModelList:
        """What is served, with its sizes, lengths and live directions."""
        return gateway.models()

    @app.get("/v1/models/{name}", responses=_errors(401, 404))
    async def retrieve_model(name: str, asking: Asking) -> Model:
        """One served model."""
        return gateway.model(name)

    direction_routes.add(app, gateway.directions, gateway.config.limits, caller)

    @app.get("/healthz")
    async def healthz() -> Health:
        """The gateway is alive."""
        return Health(status="ok")

    @app.get("/readyz", responses=_errors(503))
    async def readyz() -> Health:
        """Every model has a replica that proved its steering."""
        await gateway.check_ready()
        return Health(status="ready")

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Totals in Prometheus' text format."""
        return Response(await gateway.metrics(), media_type=CONTENT_TYPE_LATEST)

    return app


def _errors(*statuses: int) -> Errors:
    return {status: {"model": ErrorAnswer} for status in statuses}


def _body_schema() -> dict[str, Any]:
    """The body is read by hand, since it comes as JSON or as a form; this says so in the OpenAPI document."""
    schema = CreateVideo.model_json_schema()
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind in (JSON, *FORMS)}}}
