"""The files of finished clips, in a folder or at any URL that fsspec knows; none is ever half there.

A name carries the job and its attempt: a gateway that has lost a job to another can then neither overwrite nor delete what the
other has stored. The files of a completed job are those of its `attempts`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, Literal

import fsspec

from reins_serve.rollout.files import open_files
from reins_serve.serving.messages import Clip

Variant = Literal["video", "thumbnail", "spritesheet"]

SUFFIXES: dict[Variant, str] = {"video": ".mp4", "thumbnail": ".thumbnail.png", "spritesheet": ".spritesheet.png"}
MEDIA_TYPES: dict[Variant, str] = {"video": "video/mp4", "thumbnail": "image/png", "spritesheet": "image/png"}


@dataclass(frozen=True)
class Content:
    """A stored file.

    Attributes:
        open: Opens it, to seek and read in; a part that is not read is not fetched. It waits for the storage, and so does the
            file that it returns. Raises OSError.
    """

    size: int
    open: Callable[[], BufferedIOBase]


class ClipFiles:
    """The clips at `url`; `options` go to its file system. Ids come from the gateway, never from a request's text.

    Every method waits for the storage, and raises StorageError when that refuses.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._files = open_files(url, **options)
        self._system = fsspec.url_to_fs(url, **options)[0]

    def store(self, job_id: str, attempt: int, clip: Clip) -> None:
        """Write all variants; the video last. After an error there may be some, for `delete`."""
        contents: dict[Variant, bytes] = {
            "thumbnail": clip.thumbnail,
            "spritesheet": clip.spritesheet,
            "video": clip.video,
        }
        for variant, data in contents.items():
            self._files.put(_name(job_id, attempt, variant), data)

    def delete(self, job_id: str, attempt: int) -> None:
        """Remove what there is of one attempt."""
        for variant in SUFFIXES:
            self._files.delete(_name(job_id, attempt, variant))

    def content(self, job_id: str, attempt: int, variant: Variant) -> Content | None:
        """A variant; None if there is none."""
        name = _name(job_id, attempt, variant)
        size, where = self._files.size(name), self._files.where(name)
        if size is None:
            return None
        return Content(size, lambda: self._system.open(where, "rb"))

    def sweep(self) -> None:
        """Remove what a gateway that was killed left half-written."""
        self._files.sweep("")


def _name(job_id: str, attempt: int, variant: Variant) -> str:
    return f"{job_id}-{attempt}{SUFFIXES[variant]}"
