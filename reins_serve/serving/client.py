"""A client of the HTTP API, for the command line: jobs made, followed and fetched from a server that runs elsewhere."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from reins_serve.errors import ReinsError
from reins_serve.serving.direction_routes import DirectionList
from reins_serve.serving.schema import Model, ModelList, Video, VideoDeleted, VideoEvent, VideoList

TIMEOUT_S = 60.0
TRIES = 5  # of what may be asked twice
PAUSE_S = 1.0

Shape = TypeVar("Shape", bound=BaseModel)


class ServerUnreachable(ReinsError):
    """Nobody answers at the server's address, or what answers does not speak this API."""

    code = "server_unreachable"


class Client:
    """A caller of one server.

    What may safely be asked twice is asked again when a connection breaks or the server is busy for a moment (429, 503). Creating a
    job is among it, because it carries an idempotency key.

    Args:
        address: Such as `http://127.0.0.1:8000`.
        key: API key, or the admin key; None where the server needs none.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            self._http = httpx.Client(base_url=address.rstrip("/"), headers=headers, timeout=TIMEOUT_S)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ServerUnreachable(f"{address!r} is no address of a server, such as http://127.0.0.1:8000.") from error
        self._address = address

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def create(self, body: dict[str, Any]) -> Video:
        """Store a job; `body` has the fields of `CreateVideo`."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return _read(Video, self._ask("POST", "/v1/videos", json=body, headers=headers))

    def retrieve(self, job_id: str) -> Video:
        """A job as it is now."""
        return _read(Video, self._ask("GET", f"/v1/videos/{job_id}"))

    def jobs(self, limit: int, after: str | None = None) -> VideoList:
        """The newest jobs of the caller, at most 100, or those before the job `after`."""
        query = {"limit": limit} if after is None else {"limit": limit, "after": after}
        return _read(VideoList, self._ask("GET", "/v1/videos", params=query))

    def delete(self, job_id: str) -> VideoDeleted:
        """Forget a job and its files; a running one stops at the next denoising step."""
        return _read(VideoDeleted, self._ask("DELETE", f"/v1/videos/{job_id}"))

    def models(self) -> list[Model]:
        """What is served."""
        return _read(ModelList, self._ask("GET", "/v1/models")).data

    def directions(self) -> list[dict[str, Any]]:
        """Versions and what serves where, for holders of the admin key."""
        return _read(DirectionList, self._ask("GET", "/v1/directions")).data

    def not_ready(self) -> str | None:
        """Why the server is not ready; None if it is."""
        answer = self._send("GET", "/readyz")
        return None if answer.status_code == 200 else str(_error(answer))

    def metrics(self) -> str:
        """The totals in Prometheus' text format."""
        return self._ask("GET", "/metrics").text

    def follow(self, job_id: str) -> Iterator[VideoEvent]:
        """The states of a job until it is over. A stream that ends or breaks before is opened again."""
        quiet = 0
        while True:
            with (
                suppress(httpx.TransportError),
                self._http.stream("GET", f"/v1/videos/{job_id}/events") as answer,
            ):
                if answer.status_code != 200:
                    answer.read()
                    if answer.status_code not in (429, 503):
                        raise _error(answer)
                else:
                    for line in answer.iter_lines():
                        quiet = 0
                        if not line.startswith("data:"):
                            continue
                        event = VideoEvent.model_validate_json(line.removeprefix("data:"))
                        yield event
                        if event.status in ("completed", "failed", "deleted"):
                            return
            quiet += 1
            if quiet > TRIES:
                raise ServerUnreachable(f"The server at {self._address} does not tell of {job_id} any more.")
            time.sleep(PAUSE_S)

    def download(self, job_id: str, out: Path) -> None:
        """Write a completed job's clip to a file, whole or not at all."""
        content = self._ask("GET", f"/v1/videos/{job_id}/content").content
        part = out.with_name(f".{out.name}.part")
        try:
            part.write_bytes(content)
            part.replace(out)
        except OSError as error:
            raise ReinsError(f"{out} cannot be written ({error.strerror}); the job {job_id} has the clip.") from error
        finally:
            part.unlink(missing_ok=True)

    def _ask(self, method: str, path: str, **said: Any) -> httpx.Response:
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            try:
                answer = self._send(method, path, **said)
            except ServerUnreachable as error:
                if last or isinstance(error.__cause__, httpx.ConnectError):  # nobody listens: say so at once
                    raise
            else:
                if answer.is_success:
                    return answer
                if last or answer.status_code not in (429, 503):
                    raise _error(answer)
            time.sleep(PAUSE_S * (attempt + 1))
        raise AssertionError("the last attempt returns or raises")

    def _send(self, method: str, path: str, **said: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **said)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ServerUnreachable(
                f"No answer from {self._address} ({type(error).__name__}). Is one up? `reins-serve up CONFIG` starts one."
            ) from error


def _read(kind: type[Shape], answer: httpx.Response) -> Shape:
    """An answer in its schema's shape."""
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise ServerUnreachable(
            "The server answers, and not as this API does. Is the address right, and its version this one's?"
        ) from error


def _error(answer: httpx.Response) -> ReinsError:
    """The error that an answer tells of."""
    try:
        error = answer.json()["error"]
        message, code, param = error["message"], error["code"], error["param"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return ServerUnreachable(f"The server answered {answer.status_code}, and not as this API does.")
    at_fault = f" (field {param})" if param else ""
    return ReinsError(f"{message}{at_fault} [{code}]", code=code, param=param)
