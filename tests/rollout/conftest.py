"""One store on each kind of file system (a local folder, memory://, a real S3 server), and directions to put into it."""

import threading
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import fsspec
import pytest

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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict]:
    """Options of s3fs for a server in this process.

    The server's own check of a condition and its write are two steps that threads can come between; S3's are one. A lock makes
    the server's one as well.
    """
    pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    pytest.importorskip("moto.server", reason="the extra `dev` is not installed")
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    one_at_a_time, put_object = threading.Lock(), S3Response.put_object

    def put_object_at_once(self: S3Response) -> object:
        with one_at_a_time:
            return put_object(self)

    S3Response.put_object = put_object_at_once
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "endpoint_url": f"http://{host}:{port}",
        "key": "test",
        "secret": "test",
        "client_kwargs": {"region_name": "us-east-1"},
    }
    server.stop()
    S3Response.put_object = put_object


@pytest.fixture
def s3(s3_server: dict) -> tuple[str, dict]:
    """The URL of a new bucket's prefix, and the options to reach it."""
    bucket = f"b-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", **s3_server).call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}/directions", s3_server


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
