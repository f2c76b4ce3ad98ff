"""The first frame of a clip, as the command line is given it: a file, for a model in this process or for a server."""

import base64
from pathlib import Path
from typing import Any

from PIL import Image

from reins_serve.errors import ReinsError
from reins_serve.models.catalog import CatalogEntry
from reins_serve.serving.config import Limits
from reins_serve.serving.images import FIELD, first_frame

TASK = "image-to-video"


def task_of(entry: CatalogEntry, file: Path | None) -> str | None:
    """The task that makes a clip with this first frame, or without one; None: the entry's first.

    Raises ReinsError where the model takes none, or needs one.
    """
    if file is not None:
        if entry.optional_image:
            return None
        if TASK not in entry.tasks:
            raise ReinsError(f"{entry.name} makes clips from text alone: leave --image out.")
        return TASK
    if entry.tasks[0] == TASK and not entry.optional_image:
        raise ReinsError(f"{entry.name} begins a clip with an image: give one with --image FILE.")
    return None


def frame_of(entry: CatalogEntry, file: Path | None) -> dict[str, Image.Image]:
    """What `request` takes besides: the frame in the clip's size, as a server would cut it. Raises ReinsError for no image."""
    return {} if file is None else {"image": first_frame(_read(file), entry.width, entry.height, Limits())}


def field_of(file: Path | None) -> dict[str, Any]:
    """The field of a server's request."""
    if file is None:
        return {}
    return {FIELD: {"image_url": "data:application/octet-stream;base64," + base64.b64encode(_read(file)).decode()}}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ReinsError(f"The image {file} cannot be read ({error.strerror}).") from error
