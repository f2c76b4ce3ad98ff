"""Storage that goes wrong on demand, a local folder or a real S3 server; and a registry in this process that can be killed."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reins_serve.errors import RegistryUnavailable
from reins_serve.rollout.client import Registry
from reins_serve.rollout.files.local import LocalFiles
from reins_serve.rollout.registry import HOLD_S, DirectionRegistry
from reins_serve.rollout.snapshot import Report, Snapshot

NUMBERS = {"fails": errno.EIO, "refuses": errno.EACCES, "full": errno.ENOSPC, "loses its answer": errno.EIO}
STATUS = {
    "fails": (503, "ServiceUnavailable"),
    "refuses": (403, "AccessDenied"),
    "full": (507, "InsufficientStorage"),
    "loses its answer": (500, "InternalError"),
}


class Trouble:
    """What goes wrong with reads or writes of files whose name contains `only`, as long as `with trouble(...)` lasts.

    Attributes:
        met: Set once it went wrong.
    """

    def __init__(self) -> None:
        self._now: tuple[str, tuple[str, ...], str] | None = None
        self._hang = threading.Event()
        self.met = threading.Event()

    @contextmanager
    def __call__(self, kind: str, *accesses: str, only: str = "") -> Iterator[None]:
        self.met.clear()
        self._hang.clear()
        self._now = kind, accesses, only
        try:
            yield
        finally:
            self._now = None
            self._hang.set()

    def of(self, access: str, name: str) -> str | None:
        """How an access goes wrong; one that hangs waits here until the trouble is over."""
        if self._now is None or access not in self._now[1] or self._now[2] not in name:
            return None
        kind = self._now[0]
        self.met.set()
        if kind == "hangs":
            self._hang.wait()
            return None
        return kind


class _HalfWritten:
    """A file that takes half of what it is given."""

    def __init__(self, file: Any, error: OSError) -> None:
        self._file, self._error = file, error

    def __enter__(self) -> "_HalfWritten":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise self._error


def troubled_folder(patch: pytest.MonkeyPatch) -> Trouble:
    """Trouble for every store in a local folder."""
    trouble = Trouble()

    def wrong(access: str, path: Path) -> OSError | None:
        kind = trouble.of(access, str(path))
        return None if kind is None else OSError(NUMBERS[kind], os.strerror(NUMBERS[kind]))

    class TroubledPath(type(Path())):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            if error := wrong("read", self):
                raise error
            return super().read_bytes()

        def open(self, mode: str = "r", *others: Any, **named: Any) -> Any:
            error = wrong("write", self) if mode == "wb" else None
            if error is not None and error.errno == errno.EACCES:
                raise error
            file = super().open(mode, *others, **named)
            return file if error is None else _HalfWritten(file, error)

        def replace(self, target: Path) -> Path:
            replaced = super().replace(target)
            if error := wrong("answer", target):
                raise error
            return replaced

    patch.setattr(LocalFiles, "_path", lambda self, path: TroubledPath(self.where(path)))
    return trouble


def troubled_s3(patch: pytest.MonkeyPatch) -> Trouble:
    """Trouble for the S3 server of the tests, whose clients then give up at once."""
    from moto.s3.responses import S3Response

    trouble = Trouble()

    def troubled(access: str, answer: Any) -> Any:
        def answered(self: S3Response) -> Any:
            kind = trouble.of(access, self.path)
            if kind is None and access == "write":
                given, kind = answer(self), trouble.of("answer", self.path)
                if kind is None:
                    return given
            if kind is None:
                return answer(self)
            status, code = STATUS[kind]
            return status, {}, f"<Error><Code>{code}</Code><Message>a test</Message></Error>"

        return answered

    patch.setenv("AWS_MAX_ATTEMPTS", "1")
    for access, method in (("read", "get_object"), ("read", "list_objects_v2"), ("write", "put_object")):
        patch.setattr(S3Response, method, troubled(access, getattr(S3Response, method)))
    return trouble


class InProcess(Registry):
    """The registry's actor in a thread of this process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._trusted = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._process = DirectionRegistry(url)

    def kill(self) -> None:
        """The process dies, with whatever it was doing, and another takes its place."""
        self._process = DirectionRegistry(self._url)
        self._loop.call_soon_threadsafe(self._stop_all)

    def close(self) -> None:
        """The process dies for good."""
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _stop_all(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def wait(self, model: str, known: int, report: Report | None = None, hold_s: float = HOLD_S) -> Snapshot:
        return self._ask("wait", model, known, report, hold_s)

    def _ask(self, method: str, *arguments: Any) -> Any:
        asked = asyncio.run_coroutine_threadsafe(getattr(self._process, method)(*arguments), self._loop)
        try:
            return asked.result()
        except CancelledError:
            raise RegistryUnavailable("killed") from None
