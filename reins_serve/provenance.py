"""What a clip's file says of its making: tags in the MP4's metadata, which any player keeps and anybody can change.

`content_credentials` signs the same facts, where a certificate is at hand.
"""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import av
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

import reins_serve
from reins_serve.errors import ReinsError
from reins_serve.models.generation import ClipRequest
from reins_serve.steering.plan import GenerationRecord

PREFIX = "reins_"

Private = Literal["prompt", "seed"]  # what a file says of its request only where the operator wants it


@dataclass(frozen=True)
class Provenance:
    """How a clip was made.

    Attributes:
        version: Of reins_serve.
        model: Name in the catalogue.
        steered, proved, policy, strength, reason: As in `GenerationRecord`.
        direction, direction_version, direction_sha256, operation: What steered it; None when unsteered.
        prompt, seed: What was asked, where the operator has files say so.
    """

    version: str
    model: str
    steered: bool
    proved: bool
    policy: str
    strength: float
    direction: str | None = None
    direction_version: str | None = None
    direction_sha256: str | None = None
    operation: str | None = None
    reason: str | None = None
    prompt: str | None = None
    seed: int | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The metadata of the file: what is None is left out."""
        facts = {name: value for name, value in asdict(self).items() if value is not None}
        return {PREFIX + name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def provenance(
    model: str, record: GenerationRecord, clip: ClipRequest, private: Collection[Private] = ()
) -> Provenance:
    """How one clip was made.

    Args:
        private: What the file may say of the request.
    """
    return Provenance(
        version=reins_serve.__version__,
        model=model,
        steered=record.steered,
        proved=record.proved,
        policy=record.policy,
        strength=record.strength,
        direction=record.direction,
        direction_version=record.version,
        direction_sha256=record.sha256,
        operation=record.operation,
        reason=record.reason,
        prompt=clip.prompt if "prompt" in private else None,
        seed=clip.seed if "seed" in private else None,
    )


def read(path: Path) -> Provenance | None:
    """What a file says of itself; None if it says nothing that we wrote.

    Raises:
        ReinsError: the file is missing, or no video.
    """
    try:
        with av.open(str(path)) as container:
            tags = dict(container.metadata)
    except (OSError, av.FFmpegError, ValueError) as error:
        raise ReinsError(f"{path} cannot be read as a video.") from error
    ours = {name.removeprefix(PREFIX): value for name, value in tags.items() if name.startswith(PREFIX)}
    try:
        return TypeAdapter(Provenance).validate_strings(ours)
    except ValidationError:
        return None
