"""A store in a local folder, which processes of one machine (or of machines with a shared disk that locks) may share."""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reins_serve.errors import ConflictError
from reins_serve.rollout.files.base import Files, Stored, tag_of

ABANDONED_S = 3600.0  # no write takes an hour
LOCK_WAIT_S = 10.0  # a lock is held for milliseconds; one held for longer belongs to a process that is stopped


class LocalFiles(Files):
    """Files are written under a temporary name, synced and renamed; a compare-and-swap holds the model's lock file."""

    def _path(self, path: str) -> Path:
        return Path(self.where(path))

    def _read(self, path: str) -> Stored | None:
        try:
            data = self._path(path).read_bytes()
        except FileNotFoundError:
            return None
        return Stored(data, tag_of(data))

    def _size(self, path: str) -> int:
        return self._path(path).stat().st_size

    def _put(self, path: str, data: bytes) -> None:
        target = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def _swap(self, path: str, data: bytes, expected: str | None) -> bool:
        with self._locked(path.partition("/")[0]):
            stored = self._read(path)
            if (stored and stored.tag) != expected:
                return False
            self._put(path, data)
            return True

    def _names(self, folder: str) -> list[str]:
        try:
            return os.listdir(self._path(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _delete(self, path: str) -> None:
        self._path(path).unlink(missing_ok=True)

    def _sweep(self, model: str) -> None:
        for temporary in self._path(model).rglob(".*.part"):
            with suppress(FileNotFoundError):
                if time.time() - temporary.stat().st_mtime > ABANDONED_S:
                    temporary.unlink()

    @contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        """Hold the model's lock. `flock` excludes threads as well as processes, and ends with its holder."""
        folder = self._path(model)
        folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + LOCK_WAIT_S
        with (folder / ".lock").open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ConflictError(
                            f"Another writer has held {folder / '.lock'} for {LOCK_WAIT_S:g} s. Look whether it hangs, then read "
                            "again and retry."
                        ) from None
                    time.sleep(0.002)
            yield


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
