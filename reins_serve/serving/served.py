"""A model of this application as the gateway knows it: its configuration, its catalogue entry and its directions."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from reins_serve.errors import ReinsError
from reins_serve.models.catalog import CatalogEntry
from reins_serve.rollout.given import load_directions, store_of
from reins_serve.rollout.signatures import Trust
from reins_serve.rollout.watcher import Watcher
from reins_serve.serving.config import ModelConfig
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import check_policy

logger = logging.getLogger(__name__)


class ServedModel:
    """One entry of the configuration, with what it names.

    Attributes:
        directions: By the configuration's names, and as the store has it now where there is one.
        watcher: What follows the store; None where all directions are files.
        outcomes: None, because the gateway generates nothing.
    """

    outcomes = None

    def __init__(
        self, config: ModelConfig, entry: CatalogEntry, directions: Mapping[str, Direction], watcher: Watcher | None
    ) -> None:
        self.config = config
        self.entry = entry
        self.directions = directions
        self.watcher = watcher

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its replicas do: the configured task, and others of the same pipeline."""
        pipelines = self.entry.pipelines
        chosen = pipelines[self.config.task or self.entry.tasks[0]]
        return tuple(task for task, pipeline in pipelines.items() if pipeline == chosen)

    @property
    def image(self) -> Literal["none", "optional", "required"]:
        """Whether a clip begins with an image."""
        if self.entry.optional_image:
            return "optional"
        return "none" if "text-to-video" in self.tasks else "required"

    def swap(self, directions: Mapping[str, Direction], fraction: float = 0.0, epoch: int = 0) -> None:
        """Take up other directions. Raises PolicyError, SteeringUnavailable."""
        check_policy(self.config.policy, directions)
        self.directions = MappingProxyType(dict(directions))

    def could_start(self) -> bool:
        """Whether a replica that starts now would find the directions that it needs. Reads storage."""
        try:
            serve_model(self.config)
        except ReinsError as error:
            logger.warning("no replica of %s could start: %s", self.config.name, error)
            return False
        return True

    def label(self, version: str | None, sha256: str | None) -> str:
        """What metrics call a version: its number in the store, or what the file calls itself."""
        number = None if self.watcher is None or sha256 is None else self.watcher.numbers.get(sha256)
        return version or "unknown" if number is None else f"v{number}"


def serve_model(config: ModelConfig) -> ServedModel:
    """Look up what the configuration of a model names.

    Raises:
        ReinsError: the catalogue has no such model (`model_not_found`).
        DirectionError: a direction file is missing, malformed, made for another model, or not signed by a trusted key.
        PolicyError, SteeringUnavailable: the policy cannot be carried out with these directions, or the store has no valid
            live one.
    """
    entry = config.catalog_entry()
    directions = load_directions(config.directions, Trust.of(config.trusted_keys))
    address = store_of(config.sources)
    if address is None:
        check_policy(config.policy, directions)
        return ServedModel(config, entry, directions, None)
    watcher = Watcher(address, config.name, directions, replica="", trust=Trust.of(config.trusted_keys))
    first, _ = watcher.first(config.policy.required)
    served = ServedModel(config, entry, directions, watcher)
    watcher.begin(served, first)
    return served
