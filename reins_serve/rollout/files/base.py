"""What the store asks of a file system: files that are whole or not there at all, and a compare-and-swap."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

from reins_serve.errors import StorageError


class Stored(NamedTuple):
    """A file's bytes, and the tag that names this content in a compare-and-swap."""

    data: bytes
    tag: str


class Files(ABC):
    """The files below one root; paths are relative to it and begin with the model's folder.

    Every method raises StorageError when the storage fails.
    """

    failures: ClassVar[tuple[type[Exception], ...]] = (OSError,)

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def where(self, path: str) -> str:
        """The full name of a file."""
        return f"{self.root}/{path}".rstrip("/")

    def read(self, path: str) -> Stored | None:
        """A file, or None where there is none."""
        with self._told("read", path):
            return self._read(path)

    def size(self, path: str) -> int | None:
        """How many bytes a file has; None where there is none."""
        with self._told("read", path):
            try:
                return self._size(path)
            except FileNotFoundError:
                return None

    def folder(self, folder: str) -> dict[str, Stored]:
        """All files directly in a folder, by name, sorted."""
        names = self.names(folder)
        with self._told("read", folder):
            files = zip(names, self._read_all([f"{folder}/{name}" for name in names]), strict=True)
            return {name: stored for name, stored in files if stored is not None}

    def put(self, path: str, data: bytes) -> None:
        """Write a file, over an older one if need be; no reader ever sees half of it."""
        with self._told("written", path):
            self._put(path, data)

    def swap(self, path: str, data: bytes, expected: str | None) -> bool:
        """Write a file if it still carries the tag `expected` (None: if it does not exist). False: another was first."""
        with self._told("written", path):
            return self._swap(path, data, expected)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted, without those that begin with a dot; none where the folder does not exist."""
        with self._told("listed", folder):
            return sorted(name for name in self._names(folder) if not name.startswith("."))

    def delete(self, path: str) -> None:
        """Remove a file if it exists."""
        with self._told("removed", path):
            self._delete(path)

    def sweep(self, model: str) -> None:
        """Remove what writers that were killed left half-written below a model's folder; nobody ever saw it."""
        with self._told("removed", model):
            self._sweep(model)

    @contextmanager
    def _told(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except self.failures as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StorageError(
                f"{self.where(path)} cannot be {verb} ({reason}). Check that the storage is reachable, has room and grants access."
            ) from error

    @abstractmethod
    def _read(self, path: str) -> Stored | None: ...

    @abstractmethod
    def _size(self, path: str) -> int: ...

    def _read_all(self, paths: Sequence[str]) -> list[Stored | None]:
        return [self._read(path) for path in paths]

    def _sweep(self, model: str) -> None:
        """Where a put is a single request, nothing is left."""
        return

    @abstractmethod
    def _put(self, path: str, data: bytes) -> None: ...

    @abstractmethod
    def _swap(self, path: str, data: bytes, expected: str | None) -> bool: ...

    @abstractmethod
    def _names(self, folder: str) -> list[str]: ...

    @abstractmethod
    def _delete(self, path: str) -> None: ...


def tag_of(data: bytes) -> str:
    """The tag of a content, where the storage has none of its own."""
    return hashlib.sha256(data).hexdigest()
