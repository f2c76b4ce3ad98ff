"""A store on any other file system of fsspec: writers take turns by a lease document, for lack of a compare-and-swap.

Within one process (all that memory:// has) the turns are exact. Between processes they are as good as the lease: writers that
start within `settle_s` of each other are told apart, slower storage than that is not. Let one registry do the writing there.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Literal

from reins_serve.errors import ConflictError
from reins_serve.rollout.document import Document, Moment, now
from reins_serve.rollout.files.base import Files, Stored, tag_of

LEASE_S = 30.0  # far above the time of one write; a writer that died is waited for no longer
LISTINGS = 100  # attempts at listing a folder in which other threads write

_turn = threading.Lock()


class Lease(Document):
    """Who may write below a model's folder, and until when."""

    format: Literal["reins.lease/1"]
    owner: str
    expires: Moment


class LeasedFiles(Files):
    """Files are written under a temporary name and moved; a compare-and-swap holds the model's lease."""

    def __init__(self, system: Any, root: str, settle_s: float) -> None:
        super().__init__(root)
        self._system = system
        self._settle_s = settle_s

    def _read(self, path: str) -> Stored | None:
        try:
            data = self._system.cat_file(self.where(path))
        except FileNotFoundError:
            return None
        return Stored(data, tag_of(data))

    def _size(self, path: str) -> int:
        return int(self._system.size(self.where(path)))

    def _put(self, path: str, data: bytes) -> None:
        folder, _, name = self.where(path).rpartition("/")
        self._system.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.part"
        try:
            self._system.pipe_file(temporary, data)
            self._system.mv(temporary, f"{folder}/{name}")
        except BaseException:
            with suppress(OSError):
                self._system.rm_file(temporary)
            raise

    def _swap(self, path: str, data: bytes, expected: str | None) -> bool:
        with _turn, self._leased(path.partition("/")[0]) as lease:
            stored = self._read(path)
            if (stored and stored.tag) != expected:
                return False
            if now() > lease.expires:
                raise ConflictError("The lease ran out before the write. Read again and retry.")
            self._put(path, data)
            return True

    def _names(self, folder: str) -> list[str]:
        for _ in range(LISTINGS):
            self._system.invalidate_cache()
            try:
                listed = self._system.ls(self.where(folder), detail=False)
            except FileNotFoundError:
                return []
            except KeyError:  # memory:// looked at a file that another thread had just moved away
                continue
            return [name.rstrip("/").rpartition("/")[2] for name in listed]
        raise OSError("its files change faster than they can be listed")

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._system.rm_file(self.where(path))

    @contextmanager
    def _leased(self, model: str) -> Iterator[Lease]:
        path = f"{model}/.lease.json"
        held = self._read(path)
        if held is not None:
            other = Lease.decoded(held.data, self.where(path))
            if other.expires > now():
                raise ConflictError(
                    f"Another writer holds {self.where(path)} until {other.expires:%H:%M:%S} UTC. Read again and retry then."
                )
        lease = Lease(format="reins.lease/1", owner=uuid.uuid4().hex, expires=now() + timedelta(seconds=LEASE_S))
        self._put(path, lease.encoded())
        time.sleep(self._settle_s)
        if not self._holds(path, lease):
            raise ConflictError(f"Another writer took {self.where(path)} at the same moment. Read again and retry.")
        try:
            yield lease
        finally:
            if self._holds(path, lease):
                self._delete(path)

    def _holds(self, path: str, lease: Lease) -> bool:
        stored = self._read(path)
        return stored is not None and stored.data == lease.encoded()
