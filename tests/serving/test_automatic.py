"""An automatic canary in somebody's own deployment, which knows no more of it than `reins://` and `generation(key=...)`."""

import itertools
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import serve
from ray.exceptions import RayTaskError

from reins_serve.rollout.client import Registry, connect
from reins_serve.steering.policy import takes_candidate
from tests.rollout.conftest import made
from tests.serving.local import until

SAID = {"who": "ann", "why": "a test"}
SHARE = 0.5


@serve.deployment(num_replicas=2, max_ongoing_requests=1, ray_actor_options={"num_cpus": 0})
class Video:
    """A deployment of somebody else's, in which one version of the direction goes wrong."""

    def __init__(self, directions: str, wrong: str) -> None:
        import reins_serve
        from tests import tiny

        self.steering = reins_serve.attach(tiny.pipeline(), model="tiny", directions=directions)
        self.wrong = wrong

    def __call__(self, key: str) -> str | None:
        from reins_serve.models.generation import generate, request
        from tests import tiny

        with self.steering.generation(key=key) as g:
            if g.directions[0].sha256 == self.wrong:
                raise RuntimeError("a test")
            generate(self.steering.pipeline, tiny.ENTRY, [request(tiny.ENTRY, "a red square", 1)], g.arguments)
        g.judged(unsafe=False)
        return g.record.sha256


@pytest.fixture(scope="module")
def deployed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, Any]]:
    """A registry with version 1 live and 2 and 3 beside it, and a handle to two replicas, in which version 3 fails."""
    namespace, url = uuid.uuid4().hex, str(tmp_path_factory.mktemp("automatic") / "store")
    registry = connect(url, namespace)
    for seed in range(3):
        registry.publish(made(seed), **SAID)
    registry.promote("tiny", "1", **SAID)
    app = Video.bind(f"reins://{url}?namespace={namespace}", made(2).sha256)
    handle = serve.run(app, name="automatic", route_prefix=None)
    yield registry, handle
    serve.delete("automatic")
    ray.kill(registry._actor)


def canary(registry: Registry, number: int) -> None:
    """Give a version half of the generations until it has shown itself, and wait until all replicas know."""
    limits = {"min_generations": 20, "max_failed_rate": 0.2, "max_unsafe_rate": 0.2}
    registry.canary("tiny", str(number), SHARE, auto=limits, **SAID)
    sha256 = made(number - 1).sha256
    until(lambda: [r["candidate"] for r in registry.status("tiny")["replicas"]] == [sha256, sha256])


def ask(handle: Any, each: int) -> None:
    """So many jobs of either side, by their keys; those of a version that goes wrong fail.

    Keys drawn at random gave the candidate too few of 60 once in 300 times.
    """
    keys = [f"job-{number}" for number in range(10 * each)]
    sides = [[key for key in keys if takes_candidate(key, SHARE) is side][:each] for side in (True, False)]
    assert [len(side) for side in sides] == [each, each]
    for answer in [handle.remote(key) for key in itertools.chain(*zip(*sides, strict=True))]:
        try:
            answer.result()
        except RayTaskError as error:
            assert "a test" in str(error)


def test_a_version_that_shows_itself_good_is_promoted_and_one_that_fails_withdrawn(
    deployed: tuple[Registry, Any],
) -> None:
    registry, handle = deployed
    canary(registry, 2)
    ask(handle, 30)
    until(lambda: registry.history("tiny")[-1].by == "auto")
    event = registry.history("tiny")[-1]
    assert (event.action, event.after) == ("promote", made(1).sha256)
    found = re.search(r"0 of (\d+) failed .* 0 of (\d+) judged clips unsafe", event.why)
    assert found is not None
    ended, judged = map(int, found.groups())
    assert 20 <= ended <= 30
    assert ended - 2 <= judged <= ended  # a clip is judged after its generation has ended, in two replicas

    until(lambda: {r["live"] for r in registry.status("tiny")["replicas"]} == {made(1).sha256})
    canary(registry, 3)
    ask(handle, 10)
    until(lambda: registry.history("tiny")[-1].by == "auto")
    event = registry.history("tiny")[-1]
    assert (event.action, event.before) == ("withdraw", made(2).sha256)
    assert "a limit is broken" in event.why
    until(lambda: {r["candidate"] for r in registry.status("tiny")["replicas"]} == {None})
    assert {handle.remote(f"job-{n}").result() for n in range(8)} == {made(1).sha256}
