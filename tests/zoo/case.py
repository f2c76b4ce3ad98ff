"""What the tests need to know of one tiny pipeline: how it is built, and the smallest clip that it can make."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One tiny pipeline.

    Attributes:
        name: Short name, such as `wan-t2v`.
        build: Builds it from a seed; equal seeds give equal weights.
        width, height, num_frames: The smallest clip that it makes, in pixels and frames.
        fixed_size: It makes clips of this size alone; others make wider ones too.
        image: Whether it needs a first image.
        arguments: Further arguments that every call needs.
        max_batch: 1 where diffusers cannot run two prompts in one call; `why` says why.
        load: Keyword arguments that `from_pretrained` needs beside the folder (parts that cannot be saved), built on demand.
    """

    name: str
    build: Callable[[int], Any]
    width: int
    height: int
    num_frames: int
    image: bool = False
    arguments: Mapping[str, object] = field(default_factory=dict)
    max_batch: int = 2
    why: str = ""
    load: Callable[[], dict[str, Any]] = dict
    fixed_size: bool = False
