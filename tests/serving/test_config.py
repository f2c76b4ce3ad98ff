"""The configuration refuses what it does not know, and its paths do not depend on who reads them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from reins_serve.errors import DirectionError, ReinsError
from reins_serve.models import catalog
from reins_serve.models.spec import SPECS
from reins_serve.serving.config import (
    SOURCE_ROOT,
    ApplicationConfig,
    ModelConfig,
    find_file,
    hash_key,
    resolved,
)
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.served import serve_model
from tests.zoo import others
from tests.zoo.directions import direction

MODEL = {"name": "embedded", "directions": {"live": "live.safetensors"}}


def config(**changes: Any) -> ApplicationConfig:
    return ApplicationConfig.model_validate({"models": [MODEL | changes]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batchsize": 4},
        {"loading": {"device_mapp": "cuda"}},
        {"policy": {"require": False}},
        {"policy": {"policies": {"mild": {"strenght": 1}}}},
    ],
    ids=str,
)
def test_an_unknown_word_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        config(**wrong)


def test_required_steering_needs_a_live_direction() -> None:
    with pytest.raises(ValidationError, match=r"directions\.live"):
        config(directions={"add": "add.safetensors"})
    assert not config(directions={}, policy={"required": False}).models[0].policy.required


def test_a_model_is_listed_once_and_there_is_at_least_one() -> None:
    with pytest.raises(ValidationError, match="num_replicas"):
        ApplicationConfig.model_validate({"models": [MODEL, MODEL]})
    with pytest.raises(ValidationError):
        ApplicationConfig.model_validate({"models": []})


def test_keys_are_configured_by_digest_only() -> None:
    with pytest.raises(ValidationError):
        ApplicationConfig.model_validate({"models": [MODEL], "admin_key_sha256": "a plain key"})
    made = ApplicationConfig.model_validate(
        {"models": [MODEL], "api_keys": [{"name": "alice", "sha256": hash_key("key")}]}
    )
    assert "key" not in str(made.api_keys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_replicas": 2, "autoscaling": {"max_replicas": 3}}, "not both"),
        ({"autoscaling": {"min_replicas": 2, "max_replicas": 1}}, "below min_replicas"),
        ({"autoscaling": {"max_replicas": 1, "min": 0}}, "Extra inputs"),
        ({"loading": {"device": "cuda", "context_parallel": {"ulysses_degree": 2}}}, "one process for each GPU"),
    ],
    ids=str,
)
def test_replicas_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"database": "postgresql://me:secret@host/jobs"}, "PGPASSWORD"),
        ({"database": "postgresql://me@host/jobs?password=secret"}, "PGPASSWORD"),
        ({"database": "mysql://me@host/jobs"}, "SQLite or PostgreSQL"),
        ({"database": "jobs.sqlite3"}, "no URL"),
        ({"output_dir": "s3://bucket/clips"}, "name a database"),
    ],
    ids=["password", "password in the query", "another kind", "a path", "no place"],
)
def test_places_for_jobs_and_clips_that_would_not_do_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as raised:
        ApplicationConfig.model_validate({"models": [MODEL], **changes})
    assert "secret" not in str(raised.value.errors(include_input=False))


def test_jobs_lie_beside_the_clips_unless_the_configuration_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "live.safetensors").touch()
    assert resolved(config()).database_url == f"sqlite:///{tmp_path}/reins-clips/jobs.sqlite3"
    for given, absolute in (
        ("sqlite:///jobs.sqlite3", f"sqlite:///{tmp_path}/jobs.sqlite3"),
        ("postgresql://me@host/jobs", "postgresql://me@host/jobs"),
    ):
        made = ApplicationConfig.model_validate({"models": [MODEL], "database": given})
        assert resolved(made).database_url == absolute


def test_relative_paths_are_found_in_the_working_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_file("deployments/embedded.yaml") == SOURCE_ROOT / "deployments/embedded.yaml"
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments/embedded.yaml").touch()
    assert find_file("deployments/embedded.yaml") == tmp_path / "deployments/embedded.yaml"


def test_a_missing_direction_file_is_named_with_the_places_that_were_tried(tmp_path: Path) -> None:
    with pytest.raises(DirectionError, match=str(tmp_path)):
        resolved(config(directions={"live": str(tmp_path / "live.safetensors")}))


def test_resolved_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "live.safetensors").touch()
    made = resolved(config())
    assert made.models[0].directions == {"live": str(tmp_path / "live.safetensors")}
    assert made.output_dir == str(tmp_path / "reins-clips")


@pytest.mark.parametrize("file", sorted((SOURCE_ROOT / "deployments").glob("*.yaml")), ids=lambda file: file.name)
def test_every_deployment_file_suits_serve_and_our_schema(file: Path) -> None:
    document = yaml.safe_load(file.read_text())
    for application in ServeDeploySchema.model_validate(document).applications:
        assert application.import_path == "reins_serve.serving.app:build"
        resolved(ApplicationConfig.model_validate(application.args))


def test_a_model_of_a_class_that_steering_does_not_know_is_served_from_yaml_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in others.CASES if case.name == "anyflow")
    pipeline = case.build(0)
    pipeline.save_pretrained(tmp_path / "model")
    text = f"""
        name: mine
        directions: {{live: {tmp_path}/live.safetensors}}
        specs:
          AnyFlowTransformer3DModel: {{blocks: [blocks], guidance: batched}}
        entry: {{name: mine, source: {tmp_path}/model, pipelines: {{text-to-video: AnyFlowPipeline}}, fps: 16, width: 16,
          height: 16, size_multiple: 16, min_side: 16, max_side: 32, num_frames: 5, max_frames: 9, frame_multiple: 4,
          num_inference_steps: 4, guidance_scale: 4.0, dtype: float32, arguments: {{max_sequence_length: 16}}}}
    """
    model = ModelConfig.model_validate(yaml.safe_load(text))
    monkeypatch.setitem(SPECS, "AnyFlowTransformer3DModel", model.specs["AnyFlowTransformer3DModel"])
    direction(pipeline, name="mine").save(tmp_path / "live.safetensors")
    del SPECS["AnyFlowTransformer3DModel"]  # from here on only the configuration knows it
    replica = VideoReplica(model)
    assert replica.proved()
    assert serve_model(model).entry.name == "mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "latte-1", "max_batch_size": 2}, "lower max_batch_size"),
        ({"name": "allegro", "task": "image-to-video"}, "its tasks are: text-to-video"),
        ({"name": "nothing"}, "There is no model"),
    ],
    ids=str,
)
def test_a_configuration_that_its_model_cannot_carry_out_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ReinsError, match=words):
        config(**changes).models[0].catalog_entry()


@pytest.mark.parametrize("name", ["wan2.2-ti2v-5b", "wan2.1-i2v-14b-480p"])
def test_a_model_that_begins_with_an_image_may_be_served(name: str) -> None:
    assert config(name=name, task="image-to-video").models[0].catalog_entry().name == name


def test_an_entry_of_ones_own_has_the_models_name() -> None:
    entry = {name: getattr(catalog.EMBEDDED, name) for name in catalog.CatalogEntry.__dataclass_fields__}
    with pytest.raises(ValidationError, match="the same name"):
        config(name="mine", entry=entry | {"name": "other"})
