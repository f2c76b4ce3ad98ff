"""The pointer of a model: the one small document that says which version is live, which is candidate, and since when."""

from datetime import timedelta
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from reins_serve.errors import ConflictError, StorageError
from reins_serve.rollout.audit import Action, AuditLog, Event
from reins_serve.rollout.document import Digest, Document, ModelName, Moment, Text, now, require_said
from reins_serve.rollout.files import Files
from reins_serve.rollout.limits import Automatic

PREVIOUS = 20  # versions that a series of rollbacks can go back to
OF_CANDIDATE = ("canary", "withdraw")  # actions that change the candidate; the others change what is live, or nothing
OF_FILES = ("collect", "collected")  # actions that change nothing that serves


class Pointer(Document):
    """What serves.

    Attributes:
        generation: Counts the changes; the first is 1. A writer that read another generation loses.
        live: Digest of the version that serves; None until the first promotion.
        candidate, fraction: Digest of the version that serves the share `fraction` of the generations instead.
        previous: Digests that were live before, the last one first: where a rollback goes.
        condemned: Digests whose files are being removed, which nothing may point at meanwhile.
        auto: How the canary ends by itself; None: it does not.
        epoch: The generation at which what serves last changed: outcomes are counted from there (0: not known, the present one).
        updated, by, why, action, before, override: The change that made this pointer: its audit event can be told from it,
            so a writer that dies between the two loses none.
    """

    format: Literal["reins.pointer/1"]
    model: ModelName
    generation: int = Field(ge=1)
    live: Digest | None
    candidate: Digest | None
    fraction: float = Field(ge=0, lt=1, allow_inf_nan=False)
    previous: tuple[Digest, ...]
    condemned: tuple[Digest, ...]
    updated: Moment
    by: Text
    why: Text
    action: Action
    before: Digest | None
    override: Text | None
    auto: Automatic | None = None
    epoch: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.candidate is None) != (self.fraction == 0):
            raise ValueError("a candidate has a fraction above 0, and no candidate has the fraction 0")
        if self.candidate is not None and self.candidate == self.live:
            raise ValueError("the candidate must be another version than the live one")
        if self.candidate is not None and self.live is None:
            raise ValueError("a candidate needs a live version beside it")
        if self.auto is not None and self.candidate is None:
            raise ValueError("without a candidate there is nothing to decide by itself")
        return self

    @property
    def event(self) -> Event:
        """The audit event of the change that made this pointer."""
        return Event(
            action=self.action,
            at=self.updated,
            by=self.by,
            why=self.why,
            before=self.before,
            after=self.candidate if self.action in OF_CANDIDATE else self.live,
            fraction=self.fraction,
            generation=self.generation,
            override=self.override,
            auto=self.auto.limits if self.auto is not None and self.action == "canary" else None,
            removed=self.condemned if self.action == "collect" else (),
        )


class Found(NamedTuple):
    """A pointer as it was read: None where there is none, and the tag to replace it by."""

    pointer: Pointer | None
    tag: str | None


class Pointers:
    """The files `{model}/pointer.json`, and the audit event of every change of one."""

    def __init__(self, files: Files, audit: AuditLog) -> None:
        self._files = files
        self._audit = audit

    def find(self, model: str, generation: int | None = None) -> Found:
        """Read a pointer.

        Raises:
            StorageError: it is damaged.
            ConflictError: it is not of the `generation` that the caller decided on (0: none yet).
        """
        path = f"{model}/pointer.json"
        stored = self._files.read(path)
        pointer = None if stored is None else Pointer.decoded(stored.data, self._files.where(path))
        if pointer is not None and pointer.model != model:
            raise StorageError(f"{self._files.where(path)} is the pointer of {pointer.model}. Restore the right one.")
        found = 0 if pointer is None else pointer.generation
        if generation is not None and generation != found:
            raise _lost(model, f"it is at generation {found}, not {generation}")
        return Found(pointer, None if stored is None else stored.tag)

    def move(
        self,
        model: str,
        found: Found,
        action: Action,
        who: str,
        why: str,
        override: str | None = None,
        **changes: object,
    ) -> Pointer:
        """Replace the pointer that was found by one with the fields in `changes` set anew, and write down the event.

        A writer that died between the two left an event to be written: that is done first. A pointer whose event cannot be
        written afterwards has moved all the same, and the next change writes it.

        Raises:
            ConflictError: another writer was first.
            StorageError: the pointer could not be written.
        """
        require_said(who=who, why=why, override=override)
        current = found.pointer
        if current is not None:
            self._audit.append(model, current.event)
        generation = (self._audit.last_generation(model) if current is None else current.generation) + 1
        before = {
            "live": None, "candidate": None, "fraction": 0.0, "previous": (), "condemned": (), "auto": None, "epoch": 0,
        }  # fmt: skip
        kept = before if current is None else current.model_dump(include=set(before))
        if action not in OF_FILES:
            kept |= {"auto": None, "epoch": generation}
        pointer = Pointer.model_validate(
            {
                "format": "reins.pointer/1",
                "model": model,
                "generation": generation,
                "updated": now() if current is None else max(now(), current.updated + timedelta(microseconds=1)),
                "by": who,
                "why": why,
                "action": action,
                "before": kept["candidate" if action in OF_CANDIDATE else "live"],
                "override": override,
                **kept,
                **changes,
            }
        )
        if not self._files.swap(f"{model}/pointer.json", pointer.encoded(), found.tag):
            raise _lost(model, "another writer moved it at the same moment")
        self._audit.append_later(model, pointer.event)
        return pointer


def _lost(model: str, how: str) -> ConflictError:
    return ConflictError(f"The pointer of {model} has changed: {how}. Read it again, then decide again.")
