"""The files of finished clips in one folder: written under a temporary name, then renamed, so that none is ever half there."""

import os
from pathlib import Path
from typing import Literal

from reins_serve.serving.messages import Clip

Variant = Literal["video", "thumbnail", "spritesheet"]

SUFFIXES: dict[Variant, str] = {"video": ".mp4", "thumbnail": ".thumbnail.png", "spritesheet": ".spritesheet.png"}
MEDIA_TYPES: dict[Variant, str] = {"video": "video/mp4", "thumbnail": "image/png", "spritesheet": "image/png"}


class ClipFiles:
    """The clips in `folder`, which is made if need be. Ids come from the gateway, never from a request's text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, job_id: str, variant: Variant) -> Path:
        """Where a variant of a clip is, or would be."""
        return self._folder / f"{job_id}{SUFFIXES[variant]}"

    def store(self, job_id: str, clip: Clip) -> None:
        """Write all variants; the video last. Raises OSError, and then leaves nothing behind."""
        contents: dict[Variant, bytes] = {
            "thumbnail": clip.thumbnail,
            "spritesheet": clip.spritesheet,
            "video": clip.video,
        }
        try:
            for variant, data in contents.items():
                target = self.path(job_id, variant)
                temporary = target.with_name(target.name + ".part")
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
        except OSError:
            self.delete(job_id)
            raise

    def delete(self, job_id: str) -> None:
        """Remove what there is of a clip."""
        for variant in SUFFIXES:
            target = self.path(job_id, variant)
            target.unlink(missing_ok=True)
            target.with_name(target.name + ".part").unlink(missing_ok=True)
