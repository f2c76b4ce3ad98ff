"""The policy by which Serve scales a model: the backlog in the table, and nothing that could hold the controller up."""

import asyncio
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingPolicy

from reins_serve.serving import backlog, scaling
from reins_serve.serving.scaling import BacklogPolicy
from reins_serve.serving.sql_jobs import SqlJobs
from tests.serving.examples import job
from tests.serving.local import until

NOW = SimpleNamespace(target_num_replicas=7, current_num_replicas=7)


def test_replicas_follow_the_jobs_that_wait_or_are_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "PERIOD_S", 0.0)
    url = f"sqlite:///{tmp_path}/jobs.sqlite3"

    async def fill() -> None:
        jobs = SqlJobs(url)
        for number in range(5):
            await jobs.add(job(f"{number}"), 9)
        await jobs.claim("tiny", "one", 9)

    policy = BacklogPolicy(url, "tiny", 2)
    until(lambda: policy(NOW)[0] == 0)
    asyncio.run(fill())
    until(lambda: policy(NOW)[0] == 3)


def test_the_controller_never_waits_and_the_number_stays_while_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scaling, "PERIOD_S", 0.0)
    monkeypatch.setattr(scaling, "STALE_S", 0.05)
    answer, asked = threading.Event(), threading.Event()

    def slow(url: str, model: str) -> tuple[int, int]:
        asked.set()
        answer.wait()
        return 2, 1

    monkeypatch.setattr(backlog, "backlog", slow)
    policy = BacklogPolicy("sqlite:///none", "tiny", 1)
    assert policy(NOW)[0] == 7
    asked.wait()
    assert policy(NOW)[0] == 7
    answer.set()
    until(lambda: policy(NOW)[0] == 3)

    def broken(url: str, model: str) -> Any:
        raise OSError("away")

    monkeypatch.setattr(backlog, "backlog", broken)
    until(lambda: policy(NOW)[0] == 7)


def test_serves_controller_can_load_the_policy_without_the_models(tmp_path: Path) -> None:
    policy = AutoscalingPolicy(
        policy_function=BacklogPolicy, policy_kwargs={"url": "sqlite:///none", "model": "tiny", "target": 1}
    )
    (tmp_path / "policy").write_bytes(pickle.dumps(policy.get_serialized_policy_def()))
    code = (
        "import pickle, sys; from ray import cloudpickle;"
        f"made = cloudpickle.loads(pickle.load(open({str(tmp_path / 'policy')!r}, 'rb')))('sqlite:///none', 'tiny', 1);"
        "import reins_serve.serving.backlog; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
