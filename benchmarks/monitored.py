"""A server in processes of its own, with a Ray cluster of its own, and a Prometheus that scrapes it: for tests and pictures.

Both keep what they know in a folder: either may be killed and started again.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

RULES = Path(__file__).parents[1] / "k8s/monitoring/rules.yaml"
PATIENCE_S = 400  # far above what a start takes
STARTS = 3  # Ray gives a node 30 s to start, which a busy machine may not keep


@dataclass
class Server:
    """The application of a configuration, served from a process that this one starts.

    Attributes:
        config: As `reins_serve.serving.app.build` takes it.
        folder: For its log.
        port, exporter: Of its HTTP, and of its Ray node's metrics.
    """

    config: dict[str, Any]
    folder: Path
    port: int
    exporter: int
    process: psutil.Popen | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until its steering is proved."""
        for _ in range(STARTS):
            self._launch()
            wait(lambda: self._ended() or self._ready(), f"see {self.log}")
            if not self._ended():
                return
        raise RuntimeError(f"The server does not start: see {self.log}.")

    @property
    def log(self) -> Path:
        """What it and its cluster print."""
        return self.folder / "server.log"

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Its processes and those of its Ray cluster whose command line has this in it."""
        found = []
        for process in [] if self.process is None else [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Kill all of it at once, as when its machine dies."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=PATIENCE_S)
        self.process = None

    def _launch(self) -> None:
        told = json.dumps({"config": self.config, "port": self.port, "exporter": self.exporter})
        with self.log.open("a") as log:
            command = [sys.executable, "-m", "benchmarks.monitored", told]
            self.process = psutil.Popen(command, stdout=log, stderr=log, cwd=RULES.parents[2])

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
        return False


@dataclass
class Prometheus:
    """Debian's prometheus, with the rules of `k8s/monitoring`.

    Attributes:
        folder: For its configuration, data and log.
        jobs: What to scrape: seconds between two scrapes, and addresses `host:port`, by the job's name.
    """

    folder: Path
    port: int
    jobs: dict[str, tuple[int, list[str]]]
    process: psutil.Popen | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        scrapes = [
            {
                "job_name": name,
                "scrape_interval": f"{seconds}s",
                "scrape_timeout": f"{seconds}s",
                "static_configs": [{"targets": addresses}],
            }
            for name, (seconds, addresses) in self.jobs.items()
        ]
        config = {"global": {"evaluation_interval": "1s"}, "rule_files": [str(RULES)], "scrape_configs": scrapes}
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with (self.folder / "prometheus.log").open("a") as log:
            self.process = psutil.Popen(
                [
                    "prometheus",
                    f"--config.file={self.folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )
        wait(self._ready, f"see {log.name}")

    def stop(self) -> None:
        """End it in good order."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)

    def samples(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of a query now."""
        return [(one["metric"], float(one["value"][1])) for one in self._asked("query", query=query)]

    def value(self, query: str) -> float | None:
        """The value of a query with one series; None where it has none."""
        found = self.samples(query)
        if len(found) > 1:
            raise ValueError(f"{query} has {len(found)} series: {found}")
        return found[0][1] if found else None

    def course(
        self, query: str, start: float, end: float, step: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Labels of each series of a query, and its (time, value) from `start` to `end`."""
        found = self._asked("query_range", query=query, start=start, end=end, step=step)
        return [(one["metric"], [(float(at), float(value)) for at, value in one["values"]]) for one in found]

    def _asked(self, route: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/{route}", params=parameters, timeout=60).json()
        if answer["status"] != "success":
            raise ValueError(f"{parameters['query']}: {answer['error']}")
        return answer["data"]["result"]

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=10).status_code == 200
        return False


@contextlib.contextmanager
def monitored(server: Server, prometheus: Prometheus) -> Iterator[None]:
    """Both, running; ended whatever happens."""
    try:
        prometheus.start()
        server.start()
        yield
    finally:
        server.kill()
        prometheus.stop()


def wait(condition: Callable[[], Any], hint: str = "") -> Any:
    """Wait until a condition is true, and return its value. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S} s in vain; {hint}")
        time.sleep(0.2)
    return value


def _serve(config: dict[str, Any], port: int, exporter: int) -> None:
    """What the server's process does."""
    import ray
    from ray import serve

    from reins_serve.serving.app import build
    from reins_serve.serving.local import wait_for_signal

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        _metrics_export_port=exporter,
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(config), name="reins", route_prefix="/")
    wait_for_signal()


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
