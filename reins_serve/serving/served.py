"""A model of this application as the gateway knows it: its configuration, its catalogue entry and its directions."""

from collections.abc import Mapping
from dataclasses import dataclass

from reins_serve.models.catalog import CatalogEntry
from reins_serve.plugin import load_directions
from reins_serve.serving.config import ModelConfig
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import check_policy


@dataclass(frozen=True)
class ServedModel:
    """One entry of the configuration, with what it names; `directions` are by the configuration's names."""

    config: ModelConfig
    entry: CatalogEntry
    directions: Mapping[str, Direction]


def serve_model(config: ModelConfig) -> ServedModel:
    """Look up what the configuration of a model names.

    Raises:
        ReinsError: the catalogue has no such model (`model_not_found`).
        DirectionError: a direction file is missing, malformed, or made for another model.
        PolicyError, SteeringUnavailable: the policy cannot be carried out with these directions.
    """
    entry = config.catalog_entry()
    directions = load_directions(config.directions)
    check_policy(config.policy, directions)
    return ServedModel(config, entry, directions)
