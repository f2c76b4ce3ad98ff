"""Signatures on storage, beside the versions: one immutable document for each version and key."""

import logging
from typing import Literal

from reins_serve.errors import StorageError
from reins_serve.rollout.audit import Event
from reins_serve.rollout.document import Document, Moment, Text, now
from reins_serve.rollout.files import Files
from reins_serve.rollout.signatures import Signature

logger = logging.getLogger(__name__)


class Signed(Document):
    """A signature, and who added it to the store when and why."""

    format: Literal["reins.signed/1"] = "reins.signed/1"
    signature: Signature
    added: Moment
    by: Text
    why: Text

    def event(self, number: int) -> Event:
        """The addition as the audit log tells it, which keeps no other record of it; `number` is the version's."""
        signature = self.signature
        return Event(action="sign", at=self.added, by=self.by, why=self.why, after=signature.sha256, number=number,
                     key=signature.key)  # fmt: skip


class SignedFiles:
    """The files `{model}/signatures/{sha256}.{key}.json`. A version may have several: one by each key, as keys are renewed."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def add(self, model: str, signature: Signature, by: str, why: str) -> None:
        """Store a signature that is valid; what is there already stays, unless it is damaged."""
        path = f"{model}/signatures/{_name(signature)}"
        data = Signed(signature=signature, added=now(), by=by, why=why).encoded()
        stored = self._files.read(path)
        if stored is None:
            self._files.swap(path, data, None)  # whoever is first with this name writes the same signature
        elif self._read(path, stored.data) != signature:
            self._files.put(path, data)

    def names(self, model: str, *versions: str | None) -> frozenset[str]:
        """The names of the signatures of some versions, by digest: whether there are other ones than before."""
        return frozenset(
            name for name in self._files.names(f"{model}/signatures") if name.partition(".")[0] in versions
        )

    def of(self, model: str, sha256: str) -> tuple[Signature, ...]:
        """A version's signatures, as storage has them: whether they are valid is still to be asked. A damaged one is none."""
        paths = [f"{model}/signatures/{name}" for name in sorted(self.names(model, sha256))]
        stored = [(path, self._files.read(path)) for path in paths]
        found = [self._read(path, file.data) for path, file in stored if file is not None]
        return tuple(signature for signature in found if signature is not None)

    def _read(self, path: str, data: bytes) -> Signature | None:
        try:
            return Signed.decoded(data, self._files.where(path)).signature
        except StorageError as error:
            logger.warning("a signature counts as none: %s", error)
            return None

    def all(self, model: str) -> list[Signed]:
        """All signatures of a model's versions. Raises StorageError."""
        folder = f"{model}/signatures"
        files = self._files.folder(folder)
        return [Signed.decoded(file.data, self._files.where(f"{folder}/{name}")) for name, file in files.items()]


def _name(signature: Signature) -> str:
    return f"{signature.sha256}.{signature.key.partition(':')[2]}.json"
