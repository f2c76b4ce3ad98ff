"""The deployment that the README shows runs as it stands there, and follows its store of directions by that alone."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from typer.testing import CliRunner

from reins_serve import cli
from reins_serve.rollout.client import Registry, connect, find
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import takes_candidate
from tests.serving.local import until

README = Path(__file__).parents[2] / "README.md"
SAID = {"who": "ann", "why": "a test"}
SHIPPED = ("setpoint", "add")
DIRECTIONS = {
    number: Direction.load(f"directions/embedded/{name}.safetensors") for number, name in enumerate(SHIPPED, 1)
}


def example() -> str:
    """The README's only Python block."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return code


def test_it_is_short() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 25


def test_the_commands_of_the_swap_do_it(tmp_path: Path) -> None:
    commands = re.findall(r"^reins-serve (directions .*--store directions-store .*)$", README.read_text(), re.MULTILINE)
    live = []
    for command in commands:
        arguments = shlex.split(command.replace("directions-store", str(tmp_path / "store")), comments=True)
        if arguments[2] != "out/direction.safetensors":  # of another section
            done = CliRunner().invoke(cli.app, arguments)
            assert done.exit_code == 0, (command, done.output, done.exception)
            pointer = DirectionStore(str(tmp_path / "store")).find("embedded")
            live.append(None if pointer is None else pointer.live)
    one, two = (direction.sha256 for direction in DIRECTIONS.values())
    assert live == [None, None, one, two, one]


@pytest.fixture(scope="module")
def readme(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Registry]]:
    """A client of the README's deployment, with a store of its own in the place of `directions-store`, and its registry."""
    folder = tmp_path_factory.mktemp("readme")
    registry = connect(str(folder / "store"))
    for direction in DIRECTIONS.values():
        registry.publish(direction, **SAID)
    registry.promote("embedded", "1", **SAID)
    (folder / "readme_example.py").write_text(example().replace("directions-store", str(folder / "store")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import readme_example
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(
            readme_example
        )  # the replica's process does not have this folder on its path
        serve.run(readme_example.app, name="readme", route_prefix="/readme")
    try:
        with httpx.Client(base_url=server, timeout=60) as client:
            yield client, registry
    finally:
        serve.delete("readme")
        found = find()
        assert found is not None
        ray.kill(found._actor)


def clip(client: httpx.Client, job: str = "job") -> dict:
    prompt = "a red square moving left at night with an explosion"
    return client.get("/readme", params={"prompt": prompt, "job": job}).json()


def served(registry: Registry, **wanted: str | None) -> None:
    """Wait until its replica says that it serves these versions."""

    def reported() -> bool:
        replicas = registry.status("embedded")["replicas"]
        return [{name: replica[name] for name in wanted} for replica in replicas] == [wanted]

    until(reported)


def test_the_readmes_deployment_serves_a_proved_clip(readme: tuple[httpx.Client, Registry]) -> None:
    answer = clip(readme[0])
    assert answer["frames"] == 8
    assert answer["steering"]["proved"]
    assert answer["steering"]["applied"] == answer["steering"]["planned"] == 5
    assert answer["steering"]["sha256"] == DIRECTIONS[1].sha256


def test_it_swaps_and_gives_a_canary_its_share_and_is_counted(readme: tuple[httpx.Client, Registry]) -> None:
    client, registry = readme
    registry.promote("embedded", "2", **SAID)
    served(registry, live=DIRECTIONS[2].sha256)
    assert clip(client)["steering"]["sha256"] == DIRECTIONS[2].sha256
    registry.rollback("embedded", **SAID)
    registry.canary("embedded", "2", 0.5, **SAID)
    served(registry, live=DIRECTIONS[1].sha256, candidate=DIRECTIONS[2].sha256)
    for job in (f"job-{number}" for number in range(6)):
        assert clip(client, job)["steering"]["sha256"] == DIRECTIONS[1 + takes_candidate(job, 0.5)].sha256
    assert "ray_reins_direction_swaps_total" in exported(), "the replica's swaps are not among Ray's metrics"


def exported() -> str:
    """The page of the node's exporter."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    return httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
