"""What a gateway's page says of its directions and its policy."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from reins_serve.serving.config import ModelConfig
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.totals import Totals
from reins_serve.steering.direction import Direction
from tests import tiny
from tests.serving.local import application, metric, served

SHIPPED = Direction.load(Path("directions/embedded/setpoint.safetensors"))


def gates(totals: Totals) -> dict[str, float]:
    families = text_string_to_metric_families(totals.text([], {}, {}).decode())
    return {s.labels["gate"]: s.value for f in families if f.name == "reins_direction_gate" for s in f.samples}


def test_the_live_directions_gates_are_shown_until_another_is_live() -> None:
    totals = Totals()
    totals.serves("embedded", {"live": SHIPPED, "other": tiny.direction(tiny.pipeline())})
    measured = {name: gate.value for name, gate in SHIPPED.meta.gates.items() if gate.value is not None}
    assert measured
    assert gates(totals) == pytest.approx(measured)
    totals.serves("embedded", {"other": SHIPPED})
    assert gates(totals) == {}


def test_a_model_says_whether_it_requires_steering(
    client: TestClient, replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    assert metric(client, 'reins_steering_required{model="tiny"}') == 1
    free = tiny_model.model_copy(update={"policy": tiny_model.policy.model_copy(update={"required": False})})
    with served(replica, application(free, tmp_path / "free")) as other:
        assert 'reins_steering_required{model="tiny"} 0.0' in other.get("/metrics").text
