"""A model of this application as the gateway knows it: its configuration, its catalogue entry and its directions."""

from collections.abc import Mapping
from types import MappingProxyType

from reins_serve.models.catalog import CatalogEntry
from reins_serve.plugin import load_directions, store_of
from reins_serve.rollout.watcher import Watcher
from reins_serve.serving.config import ModelConfig
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import check_policy


class ServedModel:
    """One entry of the configuration, with what it names.

    Attributes:
        directions: By the configuration's names, and as the store has it now where there is one.
        watcher: What follows the store; None where all directions are files.
    """

    def __init__(
        self, config: ModelConfig, entry: CatalogEntry, directions: Mapping[str, Direction], watcher: Watcher | None
    ) -> None:
        self.config = config
        self.entry = entry
        self.directions = directions
        self.watcher = watcher

    def swap(self, directions: Mapping[str, Direction], fraction: float = 0.0) -> None:
        """Take up other directions. Raises PolicyError, SteeringUnavailable."""
        check_policy(self.config.policy, directions)
        self.directions = MappingProxyType(dict(directions))

    def label(self, version: str | None, sha256: str | None) -> str:
        """What metrics call a version: its number in the store, or what the file calls itself."""
        number = None if self.watcher is None or sha256 is None else self.watcher.numbers.get(sha256)
        return version or "unknown" if number is None else f"v{number}"


def serve_model(config: ModelConfig) -> ServedModel:
    """Look up what the configuration of a model names.

    Raises:
        ReinsError: the catalogue has no such model (`model_not_found`).
        DirectionError: a direction file is missing, malformed, or made for another model.
        PolicyError, SteeringUnavailable: the policy cannot be carried out with these directions, or the store has no valid
            live one.
    """
    entry = config.catalog_entry()
    directions = load_directions(config.directions)
    address = store_of(config.sources)
    if address is None:
        check_policy(config.policy, directions)
        return ServedModel(config, entry, directions, None)
    watcher = Watcher(address, config.name, directions, replica="")
    first, _ = watcher.first(config.policy.required)
    served = ServedModel(config, entry, directions, watcher)
    watcher.begin(served, first)
    return served
