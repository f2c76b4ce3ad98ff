"""Signatures: who vouches for a direction file, and whom this process believes.

A signature is Ed25519 (RFC 8032) over these bytes, where DIGEST is the SHA-256 of the whole file in lower-case hexadecimal and
`\\n` one line feed:

    reins.direction.signature/1\\nDIGEST\\n

The first line keeps it from meaning anything anywhere else. It is detached: a JSON document beside the file (`FILE.sig`) or beside
the version in the store. Where keys are trusted, a file that none of them has signed is refused at every door; where none is,
signatures are kept and shown, and decide nothing.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Field, ValidationError

from reins_serve.errors import ReinsError, SignatureError
from reins_serve.rollout.document import Digest, Document
from reins_serve.steering.direction import Direction

DOMAIN = "reins.direction.signature/1"
SUFFIX = ".sig"
TRUSTED_ENV = "REINS_TRUSTED_KEYS"
MAX_BYTES = 4096  # far above a signature's document
KEY_PATTERN = r"^ed25519:[0-9a-f]{64}$"

PublicKey = Annotated[str, Field(pattern=KEY_PATTERN)]


class Signature(Document):
    """One key's signature of one file; `sha256` is the file's digest, `signature` its 64 bytes in hexadecimal."""

    format: Literal["reins.signature/1"] = "reins.signature/1"
    sha256: Digest
    key: PublicKey
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    @property
    def valid(self) -> bool:
        """Whether the key that it names has signed the digest that it names; says nothing of whether to trust that key."""
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key.partition(":")[2]))
        try:
            public.verify(bytes.fromhex(self.signature), signed_bytes(self.sha256))
        except InvalidSignature:
            return False
        return True

    def require(self, sha256: str, called: str) -> None:
        """Refuse a signature of something else, or one that its key never made. Raises SignatureError."""
        if self.sha256 != sha256:
            raise SignatureError(
                f"The signature with {called} is of another file (digest {self.sha256[:12]}, not {sha256[:12]}). Sign this one."
            )
        if not self.valid:
            raise SignatureError(
                f"The signature with {called} was never made by the key {short(self.key)} that it names: it was altered, or "
                "made over other bytes. Sign the file again."
            )


@dataclass(frozen=True)
class Trust:
    """The public keys that are believed; none: signatures are not asked for."""

    keys: frozenset[str] = frozenset()

    @classmethod
    def of(cls, keys: Sequence[str] = ()) -> "Trust":
        """From keys as people write them (see `read_key`); where none is given, from the environment. Raises ReinsError."""
        return cls(frozenset(map(read_key, keys or os.environ.get(TRUSTED_ENV, "").split())))

    def __bool__(self) -> bool:
        return bool(self.keys)

    def check(self, sha256: str, signatures: Iterable[Signature], called: str) -> None:
        """Refuse a file that no trusted key has signed; without trusted keys, nothing. Raises SignatureError, which says why."""
        if not self:
            return
        given = list(signatures)
        trusted = [signature for signature in given if signature.key in self.keys]
        wanted = f"the trusted key{'s' if len(self.keys) > 1 else ''} {', '.join(sorted(map(short, self.keys)))}"
        if not given:
            raise SignatureError(
                f"{called} is not signed, and only what is signed by {wanted} is accepted here. Sign it with "
                "`reins-serve directions sign`."
            )
        if not trusted:
            raise SignatureError(
                f"{called} is signed by {', '.join(short(signature.key) for signature in given)}, and only {wanted} is "
                "believed here. Have it signed by that key, or trust the other one."
            )
        errors = []
        for signature in trusted:
            try:
                signature.require(sha256, called)
                return
            except SignatureError as error:
                errors.append(error)
        raise errors[0]


def signed_bytes(sha256: str) -> bytes:
    """The bytes that are signed for a file of this digest."""
    return f"{DOMAIN}\n{sha256}\n".encode()


def short(key: str) -> str:
    """The beginning of a key, by which people call it."""
    return key.partition(":")[2][:16]


def read_signature(data: bytes, called: str = "the signature") -> Signature:
    """A signature's document. Raises SignatureError."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("it is too large")
        return Signature.model_validate_json(data)
    except (ValidationError, ValueError) as error:
        raise SignatureError(
            f"{called} is no signature of reins-serve. Make one with `reins-serve directions sign`."
        ) from error


def load_signature(path: Path) -> Signature:
    """The signature in a file. Raises SignatureError."""
    try:
        return read_signature(path.read_bytes(), str(path))
    except OSError as error:
        raise SignatureError(f"The signature {path} cannot be read ({error.strerror}).") from error


def signatures_beside(file: str | Path) -> list[Signature]:
    """The signature in `FILE.sig`, if there is one. Raises SignatureError."""
    path = Path(f"{file}{SUFFIX}")
    return [load_signature(path)] if path.exists() else []


def load_signed(file: str | Path, trust: Trust) -> Direction:
    """Read a direction file that a trusted key has signed, where keys are trusted. Raises DirectionError, SignatureError."""
    direction = Direction.load(file)
    if trust:
        trust.check(direction.sha256, signatures_beside(file), Path(file).name)
    return direction


def read_key(text: str) -> str:
    """A public key from `ed25519:HEX` or from the path of a PEM file, as `ed25519:HEX`. Raises ReinsError."""
    if re.fullmatch(KEY_PATTERN, text):
        return text
    if text.startswith("ed25519:"):
        raise ReinsError(f"{text!r} is no public key: after `ed25519:` come 64 lower-case hexadecimal digits.")
    try:
        key = load_pem_public_key(Path(text).read_bytes())
    except OSError as error:
        raise ReinsError(
            f"The public key {text} cannot be read ({error.strerror}). Write a path or ed25519:HEX."
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ReinsError(
            f"{text} holds no public key in PEM. Name the file that `directions keygen` wrote beside the private one (.pub)."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ReinsError(f"{text} holds a key of another kind; signatures of directions are Ed25519.")
    return key_text(key)


def key_text(public: Ed25519PublicKey) -> str:
    """A public key as `ed25519:HEX`."""
    return f"ed25519:{public.public_bytes_raw().hex()}"
