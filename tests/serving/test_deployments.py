"""The configurations in `deployments/`: each fits Serve's schema and ours, and every family of the catalogue has one."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from reins_serve.models import catalog
from reins_serve.serving.config import ApplicationConfig

FILES = sorted(Path("deployments").glob("*.yaml"))


@cache
def read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def applications(file: Path) -> list[ApplicationConfig]:
    return [ApplicationConfig.model_validate(application["args"]) for application in read(file)["applications"]]


def unknown(given: Any, schema: type[BaseModel]) -> list[str]:
    """Words of a document that Serve's schema does not have; Serve itself passes over some of them in silence."""
    return [name for name in given if name not in schema.model_fields]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_serve_and_the_application_know_every_word(file: Path) -> None:
    schema = ServeDeploySchema.model_validate(read(file))
    assert not unknown(read(file), ServeDeploySchema)
    for given, application in zip(read(file)["applications"], schema.applications, strict=True):
        assert not unknown(given, type(application))
        assert application.import_path == "reins_serve.serving.app:build"
    for config in applications(file):
        for model in config.models:
            entry = model.catalog_entry()
            assert model.num_gpus > 0 or entry.name.startswith("embedded")
            assert model.policy.required


def test_every_denoiser_of_the_catalogue_has_a_deployment() -> None:
    names = [model.name for file in FILES for config in applications(file) for model in config.models]
    served = {catalog.get(name).denoiser for name in names}
    assert {entry.denoiser for entry in catalog.entries().values() if entry.num_blocks is not None} <= served


def test_the_fleet_serves_three_models_from_one_store_and_one_database() -> None:
    (config,) = applications(Path("deployments/fleet.yaml"))
    assert len({model.name for model in config.models}) == 3
    assert config.num_gateways > 1
    assert config.database_url.startswith("postgresql")
    assert config.store is not None


def test_a_misspelt_word_is_found() -> None:
    given = read(FILES[0]) | {"htp_options": {}}
    assert unknown(given, ServeDeploySchema) == ["htp_options"]
