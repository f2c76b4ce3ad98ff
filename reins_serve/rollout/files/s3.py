"""A store in an S3 bucket: one put writes a whole object, and `If-Match` / `If-None-Match` make it a compare-and-swap."""

import asyncio
import threading
import uuid
from collections.abc import Sequence
from typing import Any

from aiohttp import ClientError as ConnectionFailed
from botocore.exceptions import BotoCoreError
from fsspec.asyn import sync

from reins_serve.errors import StorageError
from reins_serve.rollout.files.base import Files, Stored

LOST = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409"}
REQUESTS_AT_ONCE = 32
PROBE = ".conditional-writes"


class S3Files(Files):
    """Objects below `bucket/prefix`, through the S3 client of s3fs; nothing is cached.

    A server that ignores conditional writes would let two writers win: the first write checks that this one does not.
    """

    failures = (OSError, BotoCoreError, ConnectionFailed)

    def __init__(self, system: Any, root: str) -> None:
        super().__init__(root)
        self._system = system
        self._proved = False
        self._proving = threading.Lock()

    def _object(self, path: str) -> dict[str, str]:
        bucket, _, key = self.where(path).partition("/")
        return {"Bucket": bucket, "Key": key}

    def _read(self, path: str) -> Stored | None:
        return self._read_all([path])[0]

    def _read_all(self, paths: Sequence[str]) -> list[Stored | None]:
        return sync(self._system.loop, self._get_all, paths)

    async def _get_all(self, paths: Sequence[str]) -> list[Stored | None]:
        turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        return await asyncio.gather(*(self._get(path, turns) for path in paths))

    async def _get(self, path: str, turns: asyncio.Semaphore) -> Stored | None:
        async with turns:
            try:
                answer = await self._system._call_s3("get_object", **self._object(path))
            except OSError as error:
                if _code(error) == "NoSuchKey":
                    return None
                raise
            async with answer["Body"] as body:
                return Stored(await body.read(), answer["ETag"])

    def _size(self, path: str) -> int:
        return int(self._system.info(self.where(path), refresh=True)["size"])

    def _put(self, path: str, data: bytes) -> None:
        self._system.call_s3("put_object", **self._object(path), Body=data)

    def _swap(self, path: str, data: bytes, expected: str | None) -> bool:
        self._prove()
        return self._swap_unproved(path, data, expected)

    def _swap_unproved(self, path: str, data: bytes, expected: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            self._system.call_s3("put_object", **self._object(path), Body=data, **condition)
        except OSError as error:
            if _code(error) not in LOST:
                raise
            # The client repeats a put whose answer was lost; then it was our own that came first.
            stored = self._read(path)
            return stored is not None and stored.data == data
        return True

    def _names(self, folder: str) -> list[str]:
        try:
            listed = self._system.ls(self.where(folder), detail=False, refresh=True)
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise
            return []
        return [name.rstrip("/").rpartition("/")[2] for name in listed]

    def _delete(self, path: str) -> None:
        self._system.call_s3("delete_object", **self._object(path))

    def _prove(self) -> None:
        """Check once that both conditions are honoured. Raises StorageError."""
        with self._proving:
            if self._proved:
                return
            self._put(PROBE, uuid.uuid4().bytes)
            for expected in (None, f'"{uuid.uuid4().hex}"'):
                if self._swap_unproved(PROBE, uuid.uuid4().bytes, expected):
                    raise StorageError(
                        f"The S3 server of {self.root} ignores {'If-None-Match' if expected is None else 'If-Match'}, so two "
                        "writers could both win. Use a server with conditional writes; nothing was changed."
                    )
            self._proved = True


def _code(error: BaseException) -> str:
    """S3's own word for an error that s3fs has translated."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
