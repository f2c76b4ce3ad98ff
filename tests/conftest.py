"""Settings of the whole test run, made before torch and Ray are imported; one Ray cluster for the tests that need one."""

import os
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
