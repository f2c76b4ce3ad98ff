"""What the served OpenAPI document promises, held to by schemathesis: examples, boundaries, fuzzing, and chains of requests."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reins_serve.rollout.storage import DirectionStore
from reins_serve.serving.config import ModelConfig, hash_key
from reins_serve.serving.replica import VideoReplica
from tests.serving.conftest import ADMIN_KEY
from tests.serving.local import application, by_storage_alone, keys, listening, local_app, stop_following

# A body that fits its schema may still be wrong: a model has its own sizes, and a file called a direction need not be one.
BEYOND_A_SCHEMA = "positive_data_acceptance"
EXAMPLES = 10  # of each operation in the fuzzing phase; the boundaries are covered besides


@pytest.fixture
def address(tiny_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with API keys, an admin key and a store of directions, without a registry."""
    by_storage_alone(monkeypatch)
    store = DirectionStore(str(tmp_path / "store"))
    store.publish(Path(tiny_model.directions["live"]).read_bytes(), who="ann", why="a test")
    store.promote("tiny", "1", who="ann", why="a test", override="it is one")
    served = {"name": "tiny", "store": store.url, "torch_threads": 1, "max_batch_size": 4, "max_queued": 10_000}
    model = ModelConfig.model_validate(served)
    config = application(
        model, tmp_path / "clips", api_keys=keys("mine"), admin_key_sha256=hash_key(ADMIN_KEY), drain_s=0
    )
    replica = VideoReplica(model)
    with listening(local_app(replica, config)) as made:
        yield made
    stop_following(replica)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["mine", ADMIN_KEY], ids=["caller", "admin"])
def test_every_answer_is_as_the_document_says(address: str, key: str, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("st")), "run", f"{address}/openapi.json",
        "--header", f"Authorization: Bearer {key}",
        "--phases", "examples,coverage,fuzzing,stateful",
        "--checks", "all", "--exclude-checks", BEYOND_A_SCHEMA,
        "--max-examples", str(EXAMPLES), "--max-time", "60", "--request-timeout", "60", "--max-response-time", "45",
        "--seed", "1", "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for phase in ("Coverage", "Fuzzing", "Stateful"):
        assert f"✅  {phase}" in done.stdout, done.stdout
    assert "Tested: 17" in done.stdout
