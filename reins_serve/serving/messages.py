"""What a replica tells the gateway about one clip, in this order: `Started`, any number of `Progress`, then `Clip` or `Failure`."""

from dataclasses import dataclass

from reins_serve.steering.plan import GenerationRecord


@dataclass(frozen=True)
class Started:
    """Denoising has begun."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` denoising steps are over."""

    done: int
    total: int


@dataclass(frozen=True)
class Clip:
    """A finished clip and the proof of its steering.

    Attributes:
        video: MP4.
        thumbnail, spritesheet: PNG: one frame; all frames side by side.
        record: What steering did to this row; proved, unless the request was exempt from steering.
        inference_time_s: Wall time of the pipeline call that made the clip.
        batch_size: How many clips that call made.
    """

    video: bytes
    thumbnail: bytes
    spritesheet: bytes
    record: GenerationRecord
    inference_time_s: float
    batch_size: int


@dataclass(frozen=True)
class Failure:
    """There is no clip: `code` is one of the job errors of the API; `message` is fit for users' eyes.

    Attributes:
        version, sha256: The direction that was to steer it, if the generation had begun.
    """

    code: str
    message: str
    version: str | None = None
    sha256: str | None = None


Message = Started | Progress | Clip | Failure
