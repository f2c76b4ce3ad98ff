"""The Ray cluster of a benchmark: of this process, silent, without a dashboard."""

import ray


def start(cpus: int = 2, store_mib: int = 100) -> None:
    """Start it; `ray.shutdown` ends it."""
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=store_mib << 20,
        include_dashboard=False,
        log_to_driver=False,
    )
