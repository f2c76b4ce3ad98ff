"""DirectionStore: the directions of every model on durable storage, and which of them is live. Storage is the truth.

{root}/{model}/versions/{sha256}.safetensors   immutable, named by digest
{root}/{model}/reports/{sha256}.html           the report that came with it
{root}/{model}/signatures/{sha256}.{key}.json  who vouches for it
{root}/{model}/numbers/{number}.json           what was published, when, by whom
{root}/{model}/pointer.json                    what is live; replaced by compare-and-swap
{root}/{model}/audit/{time}-....json           what happened, one document an event
"""

import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from reins_serve.errors import ConflictError, DirectionError, ReinsError, StorageError
from reins_serve.rollout import collection
from reins_serve.rollout.audit import AuditLog, Event
from reins_serve.rollout.document import MODEL_PATTERN, require_said
from reins_serve.rollout.files import open_files
from reins_serve.rollout.limits import Automatic, CanaryLimits
from reins_serve.rollout.pointer import PREVIOUS, Found, Pointer, Pointers
from reins_serve.rollout.signatures import Signature, Trust, read_signature
from reins_serve.rollout.versions import Version, Versions, check_servable
from reins_serve.steering.direction import MAX_BYTES, Direction


class DirectionStore:
    """The store at a folder or an fsspec URL; `options` go to the file system.

    Methods that change something take `who` and `why`, which are recorded, and raise ConflictError when another writer was
    first; those that move the pointer take the `generation` that the caller decided on, None for the one found. Nothing is
    repeated for the caller: read again, decide again. Whatever raises has changed nothing that is serving.

    Where `trusted_keys` (or the environment) name public keys, a version that none of them has signed is neither published nor
    pointed at, whatever is overridden: SignatureError.
    """

    def __init__(self, url: str, trusted_keys: Sequence[str] = (), **options: Any) -> None:
        self.url = url
        self.trust = Trust.of(trusted_keys)
        self._files = open_files(str(url), **options)
        self._versions = Versions(self._files)
        self._audit = AuditLog(self._files)
        self._pointers = Pointers(self._files, self._audit)

    def trusting(self, trust: Trust) -> "DirectionStore":
        """The same store for somebody who trusts other keys."""
        other = copy(self)
        other.trust = trust
        return other

    def models(self) -> list[str]:
        """Names of the models that something was published for."""
        names = [name for name in self._files.names("") if re.fullmatch(MODEL_PATTERN, name)]
        return [name for name in names if self._files.names(f"{name}/numbers")]

    def publish(
        self,
        direction: bytes | Direction,
        *,
        who: str,
        why: str,
        model: str | None = None,
        report: bytes | None = None,
        signature: bytes | Signature | None = None,
        new_base: bool = False,
    ) -> Version:
        """Store a direction as a version, which is not live yet. The same bytes again are the same version, which may then be
        signed by one more key.

        Args:
            model: The model that it shall be for; None: the one that it names.
            report: One HTML file for the person who decides.
            signature: What `reins-serve directions sign` made of the file.
            new_base: The base model's weights have changed, on purpose, since the version before.

        Raises:
            DirectionError: the file is invalid, or belongs to another model or other weights.
            SignatureError: the signature is not one of this file, or there is none by a trusted key.
        """
        data = direction.data if isinstance(direction, Direction) else direction
        if len(data) > MAX_BYTES:
            raise DirectionError(f"The direction is larger than {MAX_BYTES >> 20} MiB: that is no direction file.")
        checked = Direction.parse(data)
        if model is not None and checked.model != model:
            raise DirectionError(
                f"{checked.name} is a direction of {checked.model}, not of {model}. Choose that model's."
            )
        _require_name(checked.model)
        require_said(who=who, why=why)
        given = read_signature(signature) if isinstance(signature, bytes) else signature
        self._require_signed(checked, given)
        version = self._versions.add(checked, report, given, who, why, new_base)
        self._audit.append_later(checked.model, _published(version))
        return version

    def versions(self, model: str) -> list[Version]:
        """Every version that was published, by number, also those whose file was collected."""
        _require_name(model)
        return self._versions.all(model)

    def load(self, model: str, sha256: str) -> Direction:
        """A version's direction. Raises StorageError, which names the file, where it is missing or damaged."""
        _require_name(model)
        return self._versions.load(model, sha256)

    def report(self, model: str, sha256: str) -> bytes | None:
        """The report that a version came with, if it came with one."""
        _require_name(model)
        return self._versions.report(model, sha256)

    def signatures(self, model: str, sha256: str) -> tuple[Signature, ...]:
        """A version's signatures, as storage has them; whether they are valid, and trusted, is still to be asked."""
        _require_name(model)
        return self._versions.signed.of(model, sha256)

    def signature_names(self, model: str, *versions: str | None) -> frozenset[str]:
        """What tells whether some versions have other signatures than before."""
        return self._versions.signed.names(model, *versions)

    def find(self, model: str) -> Pointer | None:
        """What is live; None where nothing was promoted yet. Raises StorageError for a pointer that is damaged."""
        return self._find(model).pointer

    def read(self, model: str) -> Pointer:
        """What is live. Raises DirectionError where nothing was promoted yet, StorageError for a pointer that is damaged."""
        pointer = self.find(model)
        if pointer is None:
            raise DirectionError(
                f"No direction of {model} is live in {self.url}. Publish one and promote it.",
                code="direction_not_found",
            )
        return pointer

    def resolve(self, model: str, version: str) -> Version:
        """The version called `3`, `v3`, by the beginning of its digest, `live` or `candidate`. Raises DirectionError."""
        _require_name(model)
        if version in ("live", "candidate"):
            digest = getattr(self.read(model), version)
            if digest is None:
                raise DirectionError(f"{model} has no {version} direction.", code="direction_not_found")
            return self._versions.find(model, digest)
        return self._versions.find(model, version)

    def promote(
        self,
        model: str,
        version: str,
        *,
        who: str,
        why: str,
        override: str | None = None,
        generation: int | None = None,
    ) -> Pointer:
        """Make a version live, and end a canary. What is live already stays as it is.

        Raises:
            DirectionError: a control, or a gate failed or none was run and `override` gives no reason to pass over that.
        """
        found = self._find(model, generation)
        current = found.pointer
        chosen = self._servable(model, version, current, override)
        if current is not None and (current.live, current.candidate) == (chosen.sha256, None):
            return current
        earlier = () if current is None or current.live is None else (current.live, *current.previous)
        previous = tuple(dict.fromkeys(digest for digest in earlier if digest != chosen.sha256))[:PREVIOUS]
        return self._pointers.move(
            model, found, "promote", who, why, override,
            live=chosen.sha256, candidate=None, fraction=0.0, previous=previous,
        )  # fmt: skip

    def canary(
        self,
        model: str,
        version: str,
        fraction: float,
        *,
        who: str,
        why: str,
        override: str | None = None,
        auto: CanaryLimits | Mapping[str, Any] | None = None,
        generation: int | None = None,
    ) -> Pointer:
        """Give a version a share of the generations, above 0 and below 1, beside the live one. Raises as `promote` does.

        Args:
            auto: CanaryLimits by which the cluster's registry ends the canary: it promotes the version, or withdraws it. The reason
                given in `override`, if any, then holds for that promotion too.
        """
        limits = None if auto is None else CanaryLimits.of(auto)
        if not 0 < fraction < 1:
            raise ReinsError(
                f"The fraction of a canary lies above 0 and below 1, such as 0.1; it is {fraction}. Promote for all.",
                code="invalid_value",
            )
        found = self._find(model, generation)
        current = found.pointer
        if current is None or current.live is None:
            raise DirectionError(f"{model} has no live direction that a canary could stand beside. Promote one first.")
        chosen = self._servable(model, version, current, override)
        if chosen.sha256 == current.live:
            raise DirectionError(f"Version {chosen.number} of {model} is live already: it cannot be its own canary.")
        live = self._versions.find(model, current.live)
        if live.fingerprint != chosen.fingerprint:
            raise DirectionError(
                f"Versions {live.number} (live) and {chosen.number} of {model} belong to different weights: no replica can carry "
                "both. Promote instead, together with the weights."
            )
        declared = None if current.auto is None else current.auto.limits
        if (current.candidate, current.fraction, declared) == (chosen.sha256, fraction, limits):
            return current
        automatic = None if limits is None else Automatic.of(limits, override)
        return self._pointers.move(
            model, found, "canary", who, why, override, candidate=chosen.sha256, fraction=fraction, auto=automatic
        )

    def withdraw(self, model: str, *, who: str, why: str, generation: int | None = None) -> Pointer:
        """End a canary; what is live stays. Raises DirectionError where there is no candidate."""
        found = self._find(model, generation)
        current = found.pointer
        if current is None or current.candidate is None:
            raise DirectionError(f"{model} has no candidate to withdraw.", code="direction_not_found")
        return self._pointers.move(model, found, "withdraw", who, why, candidate=None, fraction=0.0)

    def rollback(self, model: str, *, who: str, why: str, generation: int | None = None) -> Pointer:
        """Go back to the version that was live before, and end a canary. Raises DirectionError where there was none."""
        found = self._find(model, generation)
        current = found.pointer
        if current is None or not current.previous:
            raise DirectionError(
                f"{model} has no earlier live direction to go back to. Promote a version by its number.",
                code="direction_not_found",
            )
        target, *earlier = current.previous
        self._require_kept(model, target, current)
        return self._pointers.move(
            model, found, "rollback", who, why, live=target, candidate=None, fraction=0.0, previous=tuple(earlier)
        )

    def history(self, model: str) -> list[Event]:
        """Everything that happened, oldest first, also what a writer died before writing down."""
        try:
            pointer = self.find(model)
        except StorageError:  # whoever must restore a damaged pointer needs its history
            pointer = None
        versions = self._versions.all(model)
        known = [_published(version) for version in versions] + ([pointer.event] if pointer else [])
        numbers = {version.sha256: version.number for version in versions}
        for signed in self._versions.signed.all(model):
            if (number := numbers.get(signed.signature.sha256)) is not None:
                known.append(signed.event(number))
        events = {event.name: event for event in known} | self._audit.events(model)
        return [events[name] for name in sorted(events)]

    def collect(self, model: str, *, keep: int, who: str, why: str) -> list[Version]:
        """Remove the files of old versions, and return those; and what killed writers left half-written.

        Kept are what the pointer names or a rollback could reach, the last `keep` versions, and all that the last `keep`
        events speak of. The pointer first names what is condemned, so that nobody promotes it meanwhile; a collection that was
        cut off is completed by the next. Run one at a time.
        """
        if keep < 0:
            raise ReinsError(f"keep must not be negative; it is {keep}.", code="invalid_value")
        found = self._find(model)
        events = self.history(model)[-keep:] if keep else []
        condemned = collection.collect(self._versions, self._pointers, model, found, events, keep, who, why)
        self._files.sweep(model)
        return condemned

    def _require_signed(self, direction: Direction, given: Signature | None) -> None:
        """Refuse a signature of another file always, and where keys are trusted what none of them has signed."""
        called = f"the direction {direction.name}"
        if given is not None:
            given.require(direction.sha256, called)
        if self.trust:
            signatures = self._versions.signed.of(direction.model, direction.sha256) if given is None else (given,)
            self.trust.check(direction.sha256, signatures, called)

    def _find(self, model: str, generation: int | None = None) -> Found:
        _require_name(model)
        return self._pointers.find(model, generation)

    def _servable(self, model: str, version: str, current: Pointer | None, override: str | None) -> Version:
        """The version, once its file is whole and its gates allow it to serve."""
        chosen = self.resolve(model, version)
        direction = self._require_kept(model, chosen.sha256, current)
        check_servable(direction, f"Version {chosen.number} of {model}", override)
        return chosen

    def _require_kept(self, model: str, sha256: str, current: Pointer | None) -> Direction:
        if current is not None and sha256 in current.condemned:
            raise ConflictError(
                f"{self._versions.file(model, sha256)} is being removed by `directions collect`. When that has ended, publish the "
                "direction again."
            )
        if self.trust:
            self.trust.check(sha256, self._versions.signed.of(model, sha256), f"Version {sha256[:12]} of {model}")
        return self._versions.load(model, sha256)


def _published(version: Version) -> Event:
    return Event(action="publish", at=version.published, by=version.by, why=version.why, after=version.sha256,
                 number=version.number)  # fmt: skip


def _require_name(model: str) -> None:
    if not re.fullmatch(MODEL_PATTERN, model):
        raise ReinsError(
            f"{model!r} cannot be a folder's name. A model of the store is called by letters, digits, `.`, `_` and `-`.",
            code="invalid_value",
        )
