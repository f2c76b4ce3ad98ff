"""The OpenAPI document where FastAPI cannot know: bodies that are read by hand, errors, keys, bytes with ranges, and links.

The document's version is 3.2, the first that describes server-sent events (`itemSchema`).
"""

from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from reins_serve.serving.config import ApplicationConfig
from reins_serve.serving.direction_routes import FILES, Publish
from reins_serve.serving.http_errors import HEADERS, STATUS
from reins_serve.serving.images import FIELD
from reins_serve.serving.schema import CreateVideo, ErrorAnswer

VERSION = "3.2.0"
SCHEMAS = "#/components/schemas/"
KEY = "key"
OPEN = ("/healthz", "/readyz", "/metrics")
JSON, MULTIPART, URLENCODED = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"
BINARY: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}

_ID = {"video_id": "$response.body#/id"}
LINKS: dict[str, dict[str, Any]] = {
    "create_video": {
        name: {"operationId": name, "parameters": _ID}
        for name in ("retrieve_video", "follow_video", "download_video", "delete_video")
    },
    "list_videos": {
        "retrieve_video": {"operationId": "retrieve_video", "parameters": {"video_id": "$response.body#/first_id"}},
        "list_videos": {"operationId": "list_videos", "parameters": {"after": "$response.body#/last_id"}},
    },
    "list_models": {
        "retrieve_model": {"operationId": "retrieve_model", "parameters": {"name": "$response.body#/data/0/id"}}
    },
}


def describe(app: FastAPI, config: ApplicationConfig) -> None:
    """Make an application serve its document at `/openapi.json`."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, config)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, config: ApplicationConfig) -> dict[str, Any]:
    made = get_openapi(
        title=app.title, version=app.version, openapi_version=VERSION, description=app.description, routes=app.routes
    )
    schemas = made["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _, own = models_json_schema(
        [(CreateVideo, "validation"), (Publish, "validation"), (ErrorAnswer, "serialization")],
        ref_template=SCHEMAS + "{model}",
    )
    schemas |= own["$defs"]
    schemas["CreateVideoForm"] = _form(schemas["CreateVideo"], schemas, file=True)
    schemas["CreateVideoUrlencoded"] = _form(schemas["CreateVideo"], schemas, file=False)
    schemas["PublishForm"] = _publish_form(schemas.pop("Publish"))
    made["components"]["securitySchemes"] = {KEY: {"type": "http", "scheme": "bearer"}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _complete(operation, path, bool(config.api_keys))
    return made


def _complete(operation: dict[str, Any], path: str, needs_key: bool) -> None:
    """State what holds for every operation: its errors, its key, where it leads."""
    name = operation["operationId"]
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own, which `http_errors` answers as 400
    for status, response in responses.items():
        if status.isdigit() and int(status) >= 400:
            _error(response, int(status))
    if name in LINKS:
        responses["200"]["links"] = LINKS[name]
    if path not in OPEN:
        required = needs_key or "/directions" in path
        operation["security"] = [{KEY: []}] if required else [{KEY: []}, {}]
    bodies = {
        "create_video": {JSON: "CreateVideo", MULTIPART: "CreateVideoForm", URLENCODED: "CreateVideoUrlencoded"},
        "publish_direction": {MULTIPART: "PublishForm"},
    }
    if name in bodies:
        content = {kind: {"schema": {"$ref": SCHEMAS + model}} for kind, model in bodies[name].items()}
        operation["requestBody"] = {"required": True, "content": content}


def _error(response: dict[str, Any], status: int) -> None:
    codes = sorted(code for code, number in STATUS.items() if number == status)
    response["description"] = ", ".join(codes)
    response["content"] = {JSON: {"schema": {"$ref": SCHEMAS + "ErrorAnswer"}}}
    names = {name for code in codes for name in HEADERS.get(code, {})}
    if names:
        response["headers"] = {name: {"schema": {"type": "string"}} for name in sorted(names)}


def _form(body: dict[str, Any], schemas: dict[str, Any], file: bool) -> dict[str, Any]:
    """The same fields as form keys: fields of fields in brackets, nothing null, the image as a file where it may be one."""
    form = {key: value for key, value in deepcopy(body).items() if key != "properties"}
    properties: dict[str, Any] = {}
    for name, field in deepcopy(body["properties"]).items():
        field.pop("default", None)
        chosen = [option for option in field.pop("anyOf", []) if option != {"type": "null"}]
        reference = next((option["$ref"] for option in (*chosen, field) if "$ref" in option), None)
        if reference is not None:
            inner = schemas[reference.removeprefix(SCHEMAS)]["properties"]
            properties |= {f"{name}[{key}]": _without_null(value) for key, value in inner.items()}
        elif name != "metadata":
            properties[name] = field | (chosen[0] if len(chosen) == 1 else {"anyOf": chosen} if chosen else {})
    if file:
        properties[FIELD] = BINARY
    (values,) = body["properties"]["metadata"]["patternProperties"].values()
    pattern = {r"^metadata\[[^\[\]\x00]{1,128}\]$": values}
    return form | {"title": "CreateVideoForm", "properties": properties, "patternProperties": pattern}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    chosen = [option for option in field.get("anyOf", []) if option != {"type": "null"}]
    return chosen[0] if len(chosen) == 1 else {key: value for key, value in field.items() if key != "default"}


def _publish_form(body: dict[str, Any]) -> dict[str, Any]:
    fields = {name: _without_null(field) for name, field in body["properties"].items()}
    return body | {"properties": fields | dict.fromkeys(FILES, BINARY), "required": [*body.get("required", ()), "file"]}
