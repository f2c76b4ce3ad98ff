"""Versions of a model's directions: immutable files named by their digest, each with the number that people call it by."""

import re
from contextlib import suppress
from typing import Literal

from reins_serve.errors import DirectionError, StorageError
from reins_serve.rollout.document import Digest, Document, ModelName, Moment, Text, now
from reins_serve.rollout.files import Files
from reins_serve.rollout.files.base import tag_of
from reins_serve.rollout.signatures import Signature
from reins_serve.rollout.signed import SignedFiles
from reins_serve.steering.direction import Direction
from reins_serve.steering.fit import check_base

SHORTEST_PREFIX = 6


class Version(Document):
    """One published direction; `report` is the digest of its report, where it came with one."""

    format: Literal["reins.version/1"] = "reins.version/1"
    model: ModelName
    number: int
    sha256: Digest
    name: str
    fingerprint: str
    report: Digest | None
    published: Moment
    by: Text
    why: Text


class Versions:
    """The files below `{model}/versions`, `{model}/reports`, `{model}/signatures` and `{model}/numbers`.

    A version is written in the order file, report, signature, number: what has a number is whole. A number is taken by creating its
    document where none exists, so that of two publishers who want it one goes on to the next.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self.signed = SignedFiles(files)

    def file(self, model: str, sha256: str) -> str:
        """The full name of a version's file."""
        return self._files.where(_file(model, sha256))

    def add(
        self,
        direction: Direction,
        report: bytes | None,
        signature: Signature | None,
        by: str,
        why: str,
        new_base: bool,
    ) -> Version:
        """Store a direction and give it a number; one that has a number keeps it, and its file is made whole again.

        Raises:
            DirectionError: the versions before it belong to another base model, and `new_base` does not say that this is meant;
                or it says another thing of the same one.
            StorageError: the storage fails; there is no new version then.
        """
        model, sha256 = direction.model, direction.sha256
        while True:
            known = self.all(model)
            same = next((version for version in known if version.sha256 == sha256), None)
            fingerprint = direction.meta.base.fingerprint
            if same is None and known and known[-1].fingerprint != fingerprint and not new_base:
                raise DirectionError(
                    f"{direction.name} was fitted on another base model than version {known[-1].number} of {model} (fingerprint "
                    f"{fingerprint}, not {known[-1].fingerprint}). Refit it, or say that the base model is new (--new-base)."
                )
            if same is None:
                self._require_base(direction, known)
            self._write(direction, report)
            if signature is not None:
                self.signed.add(model, signature, by, why)
            if same is not None:
                return same
            version = Version(
                model=model,
                number=known[-1].number + 1 if known else 1,
                sha256=sha256,
                name=direction.name,
                fingerprint=fingerprint,
                report=None if report is None else tag_of(report),
                published=now(),
                by=by,
                why=why,
            )
            if self._files.swap(f"{model}/numbers/{version.number:08d}.json", version.encoded(), None):
                return version

    def _require_base(self, direction: Direction, known: list[Version]) -> None:
        """Equal weights have one width and one number of blocks: compare with the newest version of them that can be read."""
        stored = self.stored(direction.model) if known else set()
        for version in reversed(known):
            if version.fingerprint == direction.meta.base.fingerprint and version.sha256 in stored:
                with suppress(StorageError):  # it is damaged: another one will do
                    base = self.load(direction.model, version.sha256).meta.base
                    check_base(direction, base, f"that of version {version.number}")
                    return

    def _write(self, direction: Direction, report: bytes | None) -> None:
        path = _file(direction.model, direction.sha256)
        stored = self._files.read(path)
        if stored is None or stored.data != direction.data:
            self._files.put(path, direction.data)
        if report is not None and self._files.read(_report(direction.model, direction.sha256)) is None:
            self._files.put(_report(direction.model, direction.sha256), report)

    def all(self, model: str) -> list[Version]:
        """Every version that was ever published, by number."""
        folder = f"{model}/numbers"
        files = self._files.folder(folder)
        return [Version.decoded(file.data, self._files.where(f"{folder}/{name}")) for name, file in files.items()]

    def stored(self, model: str) -> set[str]:
        """Digests of the versions whose files are there."""
        return {name.partition(".")[0] for name in self._files.names(f"{model}/versions")}

    def load(self, model: str, sha256: str) -> Direction:
        """Read a version. Raises StorageError, which names the file, where it is missing or not what it was."""
        path = _file(model, sha256)
        stored = self._files.read(path)
        if stored is None or tag_of(stored.data) != sha256:
            wrong = "is missing" if stored is None else f"is damaged ({len(stored.data)} bytes of another digest)"
            raise StorageError(
                f"{self._files.where(path)} {wrong}. Nothing was changed: publish the same direction again to restore it, or roll "
                "back or promote another version."
            )
        return Direction.parse(stored.data, self._files.where(path))

    def report(self, model: str, sha256: str) -> bytes | None:
        """The report that a version came with."""
        stored = self._files.read(_report(model, sha256))
        return None if stored is None else stored.data

    def find(self, model: str, version: str) -> Version:
        """The version of a number (`3`, `v3`) or of the beginning of a digest. Raises DirectionError."""
        known = self.all(model)
        number = re.fullmatch(r"v?(\d{1,8})", version)
        found = [v for v in known if number and v.number == int(number[1])]
        if not found and len(version) >= SHORTEST_PREFIX:
            found = [v for v in known if v.sha256.startswith(version.lower())]
        if len(found) == 1:
            return found[0]
        has = (
            f"it has {', '.join(f'v{v.number} ({v.sha256[:12]})' for v in known[-8:])}" if known else "it has none yet"
        )
        wrong = f"{len(found)} versions begin with {version!r}" if found else f"there is no version {version!r}"
        raise DirectionError(
            f"{model}: {wrong}; {has}. Name a number, a digest (at least {SHORTEST_PREFIX} characters), live or candidate.",
            code="direction_not_found",
        )

    def remove(self, model: str, sha256: str) -> None:
        """Remove a version's file and report; its number stays taken, and publishing it again brings it back."""
        self._files.delete(_file(model, sha256))
        self._files.delete(_report(model, sha256))


def check_servable(direction: Direction, called: str, override: str | None) -> None:
    """Refuse what must not serve: a control always, a failed or missing gate unless `override` says why. Raises DirectionError."""
    if direction.meta.role != "steer":
        raise DirectionError(f"{called} ({direction.name}) is a {direction.meta.role}: it measures and never serves.")
    failed = [name for name, gate in direction.meta.gates.items() if not gate.passed]
    if (failed or not direction.meta.gates) and override is None:
        wrong = f"failed {', '.join(failed)}" if failed else "was never put through its gates"
        raise DirectionError(
            f"{called} {wrong}. Refit it; or pass over that with a reason, which is recorded (--override).",
            code="gates_failed",
        )


def _file(model: str, sha256: str) -> str:
    return f"{model}/versions/{sha256}.safetensors"


def _report(model: str, sha256: str) -> str:
    return f"{model}/reports/{sha256}.html"
