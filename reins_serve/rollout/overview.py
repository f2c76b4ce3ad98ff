"""The versions of a model at a glance: what is live, since when, fitted from what, which gates it passed, who signed it."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from reins_serve.errors import SignatureError, StorageError
from reins_serve.rollout.pointer import Pointer
from reins_serve.rollout.signatures import Signature, Trust, short
from reins_serve.rollout.storage import DirectionStore
from reins_serve.rollout.versions import Version
from reins_serve.steering.direction import Direction

MAKES_LIVE = ("promote", "rollback")


def overview(store: DirectionStore, model: str) -> list[dict[str, Any]]:
    """One row a version, by number, fit for JSON; of a file that was collected or is damaged, `error` says so.

    Raises StorageError where the pointer or a record of a version is damaged.
    """
    pointer = store.find(model)
    since = _since(store, pointer) if pointer is not None else {}
    return [_row(store, version, pointer, since.get(version.sha256)) for version in store.versions(model)]


def gates_of(direction: Direction) -> dict[str, Any]:
    """How many gates a direction was put through, and the names of those it failed."""
    gates = direction.meta.gates
    return {"gates": len(gates), "gates_failed": [name for name, gate in gates.items() if not gate.passed]}


def signers_of(sha256: str, signatures: Iterable[Signature], trust: Trust) -> dict[str, Any]:
    """The keys that really signed a file, and whether one of them is trusted; None where no keys are trusted here."""
    given = list(signatures)
    try:
        trust.check(sha256, given, "it")
        trusted = True if trust else None
    except SignatureError:
        trusted = False
    return {"signed_by": [short(one.key) for one in given if one.sha256 == sha256 and one.valid], "trusted": trusted}


def _row(store: DirectionStore, version: Version, pointer: Pointer | None, since: datetime | None) -> dict[str, Any]:
    live = pointer is not None and pointer.live == version.sha256
    candidate = pointer is not None and pointer.candidate == version.sha256
    row = version.model_dump(mode="json", exclude={"format"}) | {
        "state": "live" if live else "candidate" if candidate else "",
        "fraction": pointer.fraction if pointer and candidate else None,
        "auto": pointer.auto.model_dump(mode="json") if pointer and candidate and pointer.auto else None,
        "since": None if since is None else since.isoformat(),
        **signers_of(version.sha256, store.signatures(version.model, version.sha256), store.trust),
    }
    try:
        direction = store.load(version.model, version.sha256)
    except StorageError as error:
        return row | {"error": str(error)}
    meta = direction.meta
    fitted = f"{meta.fit.prompts_safe}+{meta.fit.prompts_unsafe} prompts, {meta.fit.clips} clips, {meta.fit.judge}"
    steers = f"{meta.operation}, blocks {', '.join(map(str, meta.blocks))}, strength {meta.strength.serving:g}"
    return row | {"steers": steers, "fitted": fitted, **gates_of(direction)}


def _since(store: DirectionStore, pointer: Pointer) -> dict[str | None, datetime]:
    """When the live version and the candidate last became what they are, by digest."""
    since: dict[str | None, datetime] = {pointer.live: pointer.updated, pointer.candidate: pointer.updated}
    for event in store.history(pointer.model):
        if (event.action in MAKES_LIVE and event.after == pointer.live) or (
            event.action == "canary" and event.after == pointer.candidate
        ):
            since[event.after] = event.at
    return since
