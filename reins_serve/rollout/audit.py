"""The audit log of a model's directions: one small immutable document an event, so that two writers never meet in one file."""

import logging
import re
from typing import Literal

from reins_serve.errors import StorageError
from reins_serve.rollout.document import Digest, Document, Moment, Text
from reins_serve.rollout.files import Files
from reins_serve.rollout.limits import CanaryLimits

Action = Literal["publish", "sign", "promote", "canary", "withdraw", "rollback", "collect", "collected"]

logger = logging.getLogger(__name__)

EVENT_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-(?P<kind>[gv])(?P<order>\d+)-[a-z]+\.json")


class Event(Document):
    """What happened.

    Attributes:
        at: Of changes of the pointer: its `updated`.
        by, why: Who did it and the reason given.
        before, after: Digest that was live (of `canary`, `withdraw`: candidate) before and after; of `publish` and `sign`: after
            alone.
        fraction: Share of generations that went to the candidate from then on.
        generation: The pointer's, after a change of it.
        number: The version's display number, of `publish` and `sign`.
        key: The public key of the signature that was added, of `sign`.
        override: Why a failed or missing gate was passed over.
        auto: The limits by which a canary was to end by itself.
        removed: Digests whose files `collect` removed.
    """

    format: Literal["reins.audit/1"] = "reins.audit/1"
    action: Action
    at: Moment
    by: Text
    why: Text
    before: Digest | None = None
    after: Digest | None = None
    fraction: float = 0.0
    generation: int | None = None
    number: int | None = None
    key: str | None = None
    override: Text | None = None
    auto: CanaryLimits | None = None
    removed: tuple[Digest, ...] = ()

    @property
    def name(self) -> str:
        """The event's file name: names sort by time, and an event written twice is one file."""
        order = f"v{self.number:08d}" if self.generation is None else f"g{self.generation:08d}"
        return f"{self.at:%Y%m%dT%H%M%S.%fZ}-{order}-{self.action}.json"


class AuditLog:
    """The events below `{model}/audit`."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def append(self, model: str, event: Event) -> None:
        """Write an event; one that is there already stays as it is. Raises StorageError."""
        path = f"{model}/audit/{event.name}"
        if self._files.read(path) is None:  # whoever else writes this name writes the same bytes
            self._files.put(path, event.encoded())

    def append_later(self, model: str, event: Event) -> None:
        """Write an event of what has been done already; where that fails, `append` of the next change makes up for it."""
        try:
            self.append(model, event)
        except StorageError as error:
            logger.warning("The audit event %s of %s is written with the next change: %s", event.name, model, error)

    def events(self, model: str) -> dict[str, Event]:
        """All events by name, oldest first. Raises StorageError, also for an event that is damaged."""
        folder = f"{model}/audit"
        return {
            name: Event.decoded(file.data, self._files.where(f"{folder}/{name}"))
            for name, file in self._files.folder(folder).items()
            if EVENT_NAME.fullmatch(name)
        }

    def last_generation(self, model: str) -> int:
        """The highest generation of the pointer that the log knows; 0 where there is none."""
        names = map(EVENT_NAME.fullmatch, self._files.names(f"{model}/audit"))
        return max((int(name["order"]) for name in names if name and name["kind"] == "g"), default=0)
