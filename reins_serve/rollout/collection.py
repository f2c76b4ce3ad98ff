"""Collection of old versions: which files nothing needs any more, and how they go without anybody promoting one meanwhile."""

from collections.abc import Iterable
from contextlib import suppress

from reins_serve.errors import ConflictError
from reins_serve.rollout.audit import Event
from reins_serve.rollout.pointer import Found, Pointers
from reins_serve.rollout.versions import Version, Versions


def collect(
    versions: Versions,
    pointers: Pointers,
    model: str,
    found: Found,
    events: Iterable[Event],
    keep: int,
    who: str,
    why: str,
) -> list[Version]:
    """Condemn what neither the pointer that was found, nor its rollbacks, nor the last `keep` versions, nor `events` need.

    Raises ConflictError, and then nothing is removed.
    """
    current = found.pointer
    known, stored = versions.all(model), versions.stored(model)
    needed = {digest for event in events for digest in (event.before, event.after)}
    needed |= {version.sha256 for version in known[len(known) - min(keep, len(known)) :]}
    if current is not None:
        needed |= {current.live, current.candidate, *current.previous}
    condemned = [version for version in known if version.sha256 in stored - needed]
    if condemned:
        digests = tuple(version.sha256 for version in condemned)
        pointers.move(model, found, "collect", who, why, condemned=digests)
    _acquit(versions, pointers, model, who, why)
    return condemned


def _acquit(versions: Versions, pointers: Pointers, model: str, who: str, why: str) -> None:
    """Take the list of the condemned off the pointer once their files are gone, whoever else moves it meanwhile."""
    while True:
        found = pointers.find(model)
        condemned = () if found.pointer is None else found.pointer.condemned
        for digest in condemned:
            versions.remove(model, digest)
        if not condemned:
            return
        with suppress(ConflictError):
            pointers.move(model, found, "collected", who, why, condemned=())
