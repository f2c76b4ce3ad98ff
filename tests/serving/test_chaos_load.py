"""Everything that can die dies under load: every accepted job ends as it should, with one set of files or none."""

import asyncio
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from ray.util import list_named_actors

from reins_serve.serving.app import build
from reins_serve.serving.config import ApplicationConfig, ModelConfig
from reins_serve.serving.jobs import Job
from tests.serving.databases import INSTALLED, PostgresServer, opened
from tests.serving.desk import names_of
from tests.serving.local import PATIENCE_S, until

APPLICATION = "chaos"
REPLICA_KILLS = int(os.environ.get("REINS_REPLICA_KILLS", "4"))  # a replica takes long to come back: more by hand
GATEWAY_KILLS = 2
PERIOD_S = 0.4
STARTS_S = 300  # a replica loads its libraries


class Load:
    """Requests at a steady rate, whatever is answered; the ids of the accepted jobs."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.accepted: list[str] = []
        self.refused: Counter[str] = Counter()

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)

    def more(self, count: int) -> None:
        """Wait until some more jobs were accepted."""
        goal = len(self.accepted) + count
        until(lambda: len(self.accepted) >= goal)

    def _run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=30) as http:
            for seed in itertools.count():
                try:
                    answer = http.post("/v1/videos", json={"prompt": "a red square moving left", "seed": seed})
                    if answer.status_code == 200:
                        self.accepted.append(answer.json()["id"])
                    else:
                        self.refused[str(answer.status_code)] += 1
                except httpx.TransportError as error:
                    self.refused[type(error).__name__] += 1
                if self._stop.wait(PERIOD_S):
                    return


@pytest.fixture
def database(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, PostgresServer | None]:
    """PostgreSQL where it is installed, so that it can be restarted; else SQLite."""
    if not INSTALLED:
        return f"sqlite:///{tmp_path}/jobs.sqlite3", None
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.fresh(), server


@pytest.fixture
def config(
    embedded_model: ModelConfig, tmp_path: Path, database: tuple[str, PostgresServer | None]
) -> ApplicationConfig:
    model = embedded_model.model_copy(update={"num_cpus": 0, "num_replicas": 2, "max_batch_size": 2, "max_queued": 24})
    return ApplicationConfig.model_validate(
        {
            "models": [model],
            "output_dir": str(tmp_path / "clips"),
            "database": database[0],
            "num_gateways": 2,
            "drain_s": 30,
        }
    )


@pytest.fixture
def address(server: str, config: ApplicationConfig) -> Iterator[str]:
    serve.run(build(config), name=APPLICATION, route_prefix=f"/{APPLICATION}")
    try:
        yield f"{server}/{APPLICATION}"
    finally:
        serve.delete(APPLICATION)


def kill_one(deployment: str, turn: int) -> None:
    """Kill a replica of a deployment, each time another one."""

    def alive() -> list[str]:
        names = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
        return sorted(name for name in names if f"{APPLICATION}#{deployment}#" in name)

    names = until(alive)
    ray.kill(ray.get_actor(names[turn % len(names)], namespace="serve"))


def refuse_storage(folder: Path, seconds: float) -> None:
    """Let every write and every read of the clips fail for a while."""
    away = folder.with_name("away")
    folder.rename(away)
    folder.touch()
    time.sleep(seconds)
    folder.unlink()
    away.rename(folder)


async def every_job(config: ApplicationConfig) -> list[Job]:
    async with opened(config.database_url) as store:
        jobs, after = [], None
        while True:
            page = await store.page("everybody", after, 100, newest_first=False)
            jobs += page.jobs
            if not page.has_more:
                return jobs
            after = jobs[-1].id


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_accepted_job_ends_with_one_set_of_files_or_none(
    address: str, config: ApplicationConfig, database: tuple[str, PostgresServer | None]
) -> None:
    folder = Path(config.output_dir)
    with Load(address) as load:
        load.more(3)
        for turn in range(REPLICA_KILLS):
            before = len(list(folder.glob("*.mp4")))
            kill_one("model-embedded", turn)
            until(lambda before=before: len(list(folder.glob("*.mp4"))) > before, STARTS_S, 0.2)  # type: ignore[misc]
        for turn in range(GATEWAY_KILLS):
            kill_one("gateway", turn)
            load.more(2)
        refuse_storage(folder, 3)
        if database[1] is not None:
            database[1].stop()
            time.sleep(2)
            database[1].start()
            load.more(3)

    def all_over() -> bool:
        return all(job.terminal for job in asyncio.run(every_job(config)))

    until(all_over, STARTS_S, 0.5)
    jobs = asyncio.run(every_job(config))
    assert set(load.accepted) <= {job.id for job in jobs}
    codes = Counter(job.error.code if job.error is not None else job.status for job in jobs)
    assert set(codes) <= {"completed", "worker_lost", "storage_error"}, codes
    assert codes["completed"] > 0
    completed = [names_of(job.id, job.attempts) for job in jobs if job.status == "completed"]

    def whole() -> bool:  # what storage had refused to delete is deleted a little later
        visible = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        return visible == set().union(*completed)

    until(whole)
