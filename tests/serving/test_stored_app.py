"""The application on Ray Serve with a store: a direction published over HTTP reaches its replica through the registry."""

from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from reins_serve.rollout.client import find
from reins_serve.rollout.storage import DirectionStore
from reins_serve.serving.app import build
from reins_serve.serving.config import ModelConfig, hash_key
from reins_serve.steering.direction import Direction
from tests.serving.conftest import ADMIN_KEY
from tests.serving.local import application, create, finished, metric, until

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
SHIPPED = Path("directions/embedded")


@pytest.mark.slow
def test_the_application_follows_its_store(server: str, embedded_model: ModelConfig, tmp_path: Path) -> None:
    store = DirectionStore(str(tmp_path / "store"))
    live, other = (Direction.load(SHIPPED / f"{name}.safetensors") for name in ("setpoint", "add"))
    store.publish(live, who="ann", why="a test")
    store.promote("embedded", "1", who="ann", why="a test")
    model = embedded_model.model_dump(exclude={"policy"}) | {"store": store.url, "directions": {}, "num_cpus": 0}
    config = application(ModelConfig.model_validate(model), tmp_path / "clips", admin_key_sha256=hash_key(ADMIN_KEY))
    serve.run(build(config), name="stored", route_prefix="/stored")
    try:
        with httpx.Client(base_url=f"{server}/stored", timeout=60) as http:
            assert finished(http, create(http))["steering"]["sha256"] == live.sha256
            said = {"why": "a test", "override": "it is one"}
            answer = http.post("/v1/directions", files={"file": other.data}, data={"why": "a test"}, headers=ADMIN)
            assert answer.json()["number"] == 2
            answer = http.post("/v1/directions/embedded/promote", json=said | {"version": "2"}, headers=ADMIN)
            assert answer.status_code == 200, answer.text

            def everywhere() -> bool:
                (listed,) = http.get("/v1/directions", headers=ADMIN).json()["data"]
                return [r["live"] for r in listed["serving"]["replicas"]] == [other.sha256]

            until(everywhere)
            video = finished(http, create(http))
            assert (video["steering"]["sha256"], video["steering"]["proved"]) == (other.sha256, True)
            count = 'reins_version_generations_total{model="embedded",outcome="steered",version="v%d"}'
            assert [metric(http, count % number) for number in (1, 2)] == [1, 1]
            assert metric(http, 'reins_registry_up{model="embedded"}') == 1
    finally:
        serve.delete("stored")
        registry = find()
        assert registry is not None
        ray.kill(registry._actor)
