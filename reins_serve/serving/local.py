"""Ray Serve on this machine alone, for `reins-serve up` and the demonstration: a cluster of its own, on the loopback."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from reins_serve.errors import ReinsError

APPLICATION = "reins"
OBJECT_STORE_BYTES = 200 << 20  # clips travel as streams; the store carries little


@contextmanager
def served(config: Any, port: int, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve an ApplicationConfig on a Ray cluster of this process, ended with it; yields the base address.

    At the end the clips that are being made are waited for, and jobs that wait stay in the database.

    Token authentication is switched off unless `RAY_AUTH_MODE` says otherwise: the cluster listens on the loopback only.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    from ray import serve

    from reins_serve.serving.app import build

    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 2),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        serve.run(build(config), name=APPLICATION, route_prefix="/", logging_config={"log_level": "WARNING"})
        try:
            yield f"http://{host}:{port}"
        finally:
            _drain()
    finally:
        serve.shutdown()
        ray.shutdown()


def _drain() -> None:
    """Wait for the clips that are being made, however long; `drain_s` of the configuration says how long that is at most."""
    from ray import serve

    while True:
        try:
            serve.delete(APPLICATION)
            return
        except TimeoutError:  # Serve waits for a minute
            continue


def run_forever(path: Path) -> None:
    """Serve the first application of a Serve configuration file until SIGINT or SIGTERM.

    Raises:
        ReinsError: the file cannot be read, or is not made for `reins_serve.serving.app:build`.
    """
    try:
        document = yaml.safe_load(path.read_text())
        application = document["applications"][0]
        http = document.get("http_options", {})
        if application["import_path"] != "reins_serve.serving.app:build":
            raise KeyError("import_path")
        arguments = application["args"]
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise ReinsError(
            f"{path} is not a readable Serve configuration of reins_serve ({error}). See deployments/embedded.yaml."
        ) from error
    with served(arguments, int(http.get("port", 8000)), str(http.get("host", "127.0.0.1"))) as address:
        print(f"Serving at {address} (readiness: {address}/readyz). Ctrl-C ends it.", flush=True)
        wait_for_signal()
        print(
            "Finishing the clips that are being made. Ctrl-C again ends at once, and leaves them to the next start.",
            flush=True,
        )


def wait_for_signal() -> None:
    """Wait for SIGINT or SIGTERM; the next one ends the process. Call it after `ray.init`, which sets handlers of its own."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
