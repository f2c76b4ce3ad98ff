"""Short digests of files and tables: the revisions that verdicts are recorded under."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

CHARS = 16


def digest(parts: Iterable[bytes]) -> str:
    """`sha256:` and the first 16 hexadecimal digits over `parts`, one after the other."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return f"sha256:{total.hexdigest()[:CHARS]}"


def file_digest(*paths: Path) -> str:
    """The digest over the bytes of files, in the order given."""
    return digest(chunk for path in paths for chunk in _chunks(path))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
