"""`reins-serve directions keygen|sign|verify`: key pairs, and signatures of direction files."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from reins_serve.errors import ReinsError
from reins_serve.rollout.keys import PASSPHRASE_ENV, PUBLIC_SUFFIX, make_key
from reins_serve.rollout.keys import sign as sign_digest
from reins_serve.rollout.overview import gates_of, signers_of
from reins_serve.rollout.signatures import SUFFIX, TRUSTED_ENV, Trust, load_signature, short, signatures_beside
from reins_serve.steering.direction import Direction

app = typer.Typer(pretty_exceptions_show_locals=False)

File = Annotated[Path, typer.Argument(help="Direction file.")]
Trusted = Annotated[
    list[str] | None,
    typer.Option("--trusted-key", help=f"ed25519:HEX or a PEM file; default: the keys in {TRUSTED_ENV}."),
]


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help=f"Private key to write; the public one goes into FILE{PUBLIC_SUFFIX}.")],
) -> None:
    """Make an Ed25519 key pair for signing directions; the private file is for its owner alone.

    It is encrypted with the passphrase in REINS_KEY_PASSPHRASE, if there is one.
    """
    print(make_key(file))


@app.command()
def sign(
    file: File,
    key: Annotated[Path, typer.Option("--key", help=f"Private key; its passphrase is read from {PASSPHRASE_ENV}.")],
    out: Annotated[Path | None, typer.Option(help=f"Where the signature goes; default: FILE{SUFFIX}.")] = None,
) -> None:
    """Sign a direction file that is valid, and print what was signed: look at it."""
    direction = Direction.load(file)
    signature = sign_digest(direction.sha256, key)
    target = out or Path(f"{file}{SUFFIX}")
    try:
        target.write_bytes(signature.encoded() + b"\n")
    except OSError as error:
        raise ReinsError(f"The signature {target} cannot be written ({error.strerror}).") from error
    meta = direction.meta
    signed = {"signature": str(target), "key": short(signature.key), "sha256": direction.sha256, "model": meta.model,
              "name": meta.name, "version": meta.version, "role": meta.role, **gates_of(direction)}  # fmt: skip
    print(json.dumps(signed, indent=2))


@app.command()
def verify(
    file: File,
    signature: Annotated[Path | None, typer.Option(help=f"Default: FILE{SUFFIX}.")] = None,
    trusted_key: Trusted = None,
) -> None:
    """Check that a trusted key has signed a direction file; the exit status is 1 where none has."""
    trust = Trust.of(trusted_key or ())
    if not trust:
        raise ReinsError(f"Whom do you trust? Name a public key with --trusted-key, or in {TRUSTED_ENV}.")
    direction = Direction.load(file)
    given = signatures_beside(file) if signature is None else [load_signature(signature)]
    trust.check(direction.sha256, given, file.name)
    verified: dict[str, Any] = {"file": str(file), "sha256": direction.sha256}
    print(json.dumps(verified | signers_of(direction.sha256, given, trust), indent=2))
