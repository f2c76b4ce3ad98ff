"""Files on durable storage: whole or not there at all, and replaced by compare-and-swap where several writers may meet.

A local folder does it with a lock file and a rename, S3 with conditional writes, every other file system of fsspec with a
lease document.
"""

from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from reins_serve.errors import ReinsError
from reins_serve.rollout.files.base import Files, Stored
from reins_serve.rollout.files.leased import LeasedFiles
from reins_serve.rollout.files.local import LocalFiles

__all__ = ["Files", "Stored", "open_files"]


def open_files(url: str, **options: Any) -> Files:
    """The files below a folder or an fsspec URL; `options` go to its file system. Raises ReinsError."""
    if "::" in url:
        raise ReinsError(
            f"The store {url} is a chain of file systems, which may show old contents. Name the last one alone."
        )
    try:
        system, root = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise ReinsError(
            f"The store {url} needs a package that is not installed ({error}). For s3:// it is `pip install 'reins-serve[s3]'`."
        ) from error
    except ValueError as error:
        raise ReinsError(f"The store {url} is neither a folder nor a URL that fsspec knows ({error}).") from error
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    if isinstance(system, LocalFileSystem):
        return LocalFiles(root)
    if "s3" in protocols:
        from reins_serve.rollout.files.s3 import S3Files

        return S3Files(system, root)
    return LeasedFiles(system, root, settle_s=0.0 if "memory" in protocols else 0.5)
