"""One store on each kind of file system (a local folder, memory://, a real S3 server), and directions to put into it."""

import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from reins_serve.rollout.keys import make_key, sign
from reins_serve.rollout.registry import INLINE_BYTES
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Direction, Gate
from reins_serve.steering.fit import base_of
from tests import tiny

KINDS = ("local", "memory", "s3")
PASSED = {"efficacy": Gate(value=0.0, limit="<= 0.05", passed=True)}
FAILED = PASSED | {"utility": Gate(value=-3.0, limit="> -2 points", passed=False)}
PIPELINE = tiny.pipeline()

Connect = Callable[..., DirectionStore]


@cache
def made(seed: int = 0, gates: str = "passed", **changes: str) -> Direction:
    """A direction of the model `tiny`, equal for equal arguments."""
    verdicts = {"passed": PASSED, "failed": FAILED, "none": {}}[gates]
    base = base_of(PIPELINE)
    base = base.model_copy(update={"fingerprint": changes.pop("fingerprint", base.fingerprint)})
    return tiny.direction(PIPELINE, seed, gates=verdicts, base=base, **changes)


@cache
def large(model: str = "tiny") -> Direction:
    """A direction that is too large to be handed out with the registry's answer: it goes through the object store."""
    meta = made(0, model=model).meta
    sources = tuple(f"{number:064d}" for number in range(INLINE_BYTES // 64))
    return Direction.create(
        meta.model_copy(update={"fit": meta.fit.model_copy(update={"sources": sources})}), made(0).vectors
    )


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    """Opens one and the same store anew; `client=True` with a client of its own, where a client is shared otherwise."""
    if request.param == "s3":
        url, options = request.getfixturevalue("s3")
        return lambda client=False: DirectionStore(url, skip_instance_cache=client, **options)
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return lambda client=False: DirectionStore(url)


@pytest.fixture
def store(connect: Connect) -> DirectionStore:
    """A new store."""
    return connect()


@pytest.fixture
def local(tmp_path: Path) -> DirectionStore:
    """A new store in a local folder."""
    return DirectionStore(str(tmp_path / "store"))


class Key:
    """A key pair on disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / name
        self.public = make_key(self.file)

    def sign(self, direction: Direction) -> bytes:
        return sign(direction.sha256, self.file).encoded()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, Key]:
    """A key that is trusted in these tests, and another one."""
    folder = tmp_path_factory.mktemp("keys")
    return Key(folder, "ours"), Key(folder, "theirs")


@pytest.fixture
def ours(keys: tuple[Key, Key]) -> Key:
    return keys[0]


@pytest.fixture
def theirs(keys: tuple[Key, Key]) -> Key:
    return keys[1]
