"""The routes below `/v1/directions`, for holders of the admin key alone."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from reins_serve.rollout.document import MAX_TEXT
from reins_serve.rollout.limits import CanaryLimits
from reins_serve.rollout.pointer import Pointer
from reins_serve.rollout.versions import Version
from reins_serve.serving.auth import Caller
from reins_serve.serving.directions import DirectionsAdmin
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.schema import ErrorAnswer

FILES = ("file", "signature")
Said = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class _Said(BaseModel):
    """Who and why, for the record."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    why: Said
    who: Said = "admin key"


class Publish(_Said):
    """The fields beside the files; `model` refuses a file of another one, `new_base` says that other weights are meant."""

    model: str | None = None
    new_base: bool = False


class Back(_Said):
    """Rollback and withdrawal; `generation` is that of the pointer that was decided on."""

    generation: int | None = None


class Promote(Back):
    """`version` is a number, the beginning of a digest, or `candidate`; `override` passes over a failed gate."""

    version: str
    override: Said | None = None


class Canary(Promote):
    """`fraction` is the share of the generations; `auto` has the limits by which the canary ends by itself."""

    fraction: float = Field(gt=0, lt=1, allow_inf_nan=False)
    auto: CanaryLimits | None = None


class DirectionList(BaseModel):
    """What is published and what serves, by model; `serving` says which replica has which version."""

    object: str = "list"
    data: list[dict[str, Any]]


def add(app: FastAPI, directions: DirectionsAdmin, caller: Callable[..., Caller]) -> None:
    """Add the routes to an application."""

    def admin(asking: Annotated[Caller, Depends(caller)]) -> Caller:
        if not asking.admin:
            raise RequestError("This needs the admin key.", code="admin_only")
        return asking

    asks: dict[str, Any] = {
        "dependencies": [Depends(admin)],
        "responses": {status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 409, 413, 503)},
    }

    @app.get("/v1/directions", **asks)
    async def list_directions() -> DirectionList:
        """Every version of the served models' directions, and what serves where."""
        return DirectionList(data=await directions.overview())

    @app.post("/v1/directions", **asks)
    async def publish_direction(request: Request) -> Version:
        """Store a direction file as a version, which is not live yet; the same file again is the same version.

        `signature` is what `reins-serve directions sign` made of it, needed where keys are trusted.
        """
        async with request.form(max_files=len(FILES), max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError(
                    "Send the direction file as multipart/form-data.", code="missing_required_parameter", param="file"
                )
            signature = form.get("signature")
            said = Publish.model_validate({key: value for key, value in form.items() if key not in FILES})
            data = await file.read()
            signed = await signature.read() if isinstance(signature, UploadFile) else signature
        signed = signed.encode() if isinstance(signed, str) else signed
        return await directions.publish(data, said.model_dump() | {"signature": signed})

    @app.post("/v1/directions/{model}/promote", **asks)
    async def promote_direction(model: str, body: Promote) -> Pointer:
        """Make a version live for all generations, and end a canary."""
        return await directions.move("promote", model, body.model_dump(exclude={"version"}), body.version)

    @app.post("/v1/directions/{model}/canary", **asks)
    async def canary_direction(model: str, body: Canary) -> Pointer:
        """Give a version a share of the generations, beside the live one."""
        said = body.model_dump(exclude={"version", "fraction", "auto"}) | {"auto": body.auto}
        return await directions.move("canary", model, said, body.version, body.fraction)

    @app.post("/v1/directions/{model}/withdraw", **asks)
    async def withdraw_direction(model: str, body: Back) -> Pointer:
        """End a canary; what is live stays."""
        return await directions.move("withdraw", model, body.model_dump())

    @app.post("/v1/directions/{model}/rollback", **asks)
    async def roll_direction_back(model: str, body: Back) -> Pointer:
        """Go back to the version that was live before, and end a canary."""
        return await directions.move("rollback", model, body.model_dump())
