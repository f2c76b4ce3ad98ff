"""What a measurement was made on: processor, memory, load and versions, printed above every benchmark's figures; and what torch
has compiled meanwhile."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "diffusers", "numpy", "scipy", "scikit-learn", "pyarrow", "ray")


def describe() -> dict[str, object]:
    """Machine and versions, JSON-ready. Memory in GiB; `load` is the mean number of running processes of a minute."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "threads": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in os.environ
        },
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def compiled_graphs() -> int:
    """How many graphs torch has compiled in this process."""
    import torch

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(describe(), indent=1))
