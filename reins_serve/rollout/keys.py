"""Key pairs for signing direction files: made, read from their PEM files, used. Private keys leave their file only to sign."""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from reins_serve.errors import ReinsError
from reins_serve.rollout.signatures import Signature, key_text, signed_bytes

PASSPHRASE_ENV = "REINS_KEY_PASSPHRASE"
PUBLIC_SUFFIX = ".pub"


def make_key(path: Path) -> str:
    """Write a new private key, and its public key beside it (`.pub`), both PEM; returns the public one as `ed25519:HEX`.

    The private file is readable by its owner alone, and encrypted where the environment has a passphrase.

    Raises:
        ReinsError: one of the two files exists already, or cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    passphrase = _passphrase()
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    public = Path(f"{path}{PUBLIC_SUFFIX}")
    for file in (path, public):
        if file.exists():
            raise ReinsError(f"{file} exists already, and no key is written over another. Choose another name.")
    try:
        _write_new(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), 0o600)
        _write_new(public, private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    except OSError as error:
        raise ReinsError(f"The key {path} cannot be written ({error.strerror}).") from error
    return key_text(private.public_key())


def sign(sha256: str, key: Path) -> Signature:
    """Sign the digest of a file with the private key in a PEM file. Raises ReinsError."""
    private = _read(key)
    return Signature(
        sha256=sha256, key=key_text(private.public_key()), signature=private.sign(signed_bytes(sha256)).hex()
    )


def _read(path: Path) -> Ed25519PrivateKey:
    passphrase = _passphrase()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReinsError(f"The private key {path} cannot be read ({error.strerror}).") from error
    try:
        encrypted = (
            b"ENCRYPTED" in data
        )  # a passphrase for a key that has none is no mistake: it may be meant for another
        key = load_pem_private_key(data, passphrase if encrypted else None)
    except TypeError as error:
        raise ReinsError(f"The private key {path} is encrypted: put its passphrase into {PASSPHRASE_ENV}.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = f"its passphrase is not the one in {PASSPHRASE_ENV}" if encrypted else "it holds no private key in PEM"
        raise ReinsError(f"The private key {path} cannot be used: {reason}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ReinsError(
            f"{path} holds a key of another kind; directions are signed with Ed25519 (`directions keygen`)."
        )
    return key


def _passphrase() -> bytes | None:
    return os.environ.get(PASSPHRASE_ENV, "").encode() or None


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask says
        file.write(data)
