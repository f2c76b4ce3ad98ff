"""Settings of the whole test run, made before torch and Ray are imported; a Ray cluster and an S3 server for the tests."""

import os
import threading
import uuid
from collections.abc import Iterator

import pytest

# Two cores carry several processes here: torch threads that spin for each other cost more than they bring.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Unset, `ray.init` would turn token authentication on and write a token to the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster of this process."""
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


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
    import fsspec

    bucket = f"b-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", **s3_server).call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}/directions", s3_server
