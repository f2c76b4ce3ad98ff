"""What the demonstration shows: its models with their directions, and the arms, each one kind of prompt under one policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reins_serve.calibration.controls import mean_displacement, random_control
from reins_serve.embedded.hard.prompts import Prompt, prompts, prompts_in_turn
from reins_serve.embedded.hard.world import CONCEPTS
from reins_serve.models.catalog import EMBEDDED_HARD, EMBEDDED_HARD_I2V, CatalogEntry
from reins_serve.models.generation import request
from reins_serve.models.loading import load
from reins_serve.plugin import Direction, attach
from reins_serve.serving.config import find_file

ADMIN_SHARE = 2  # the addition, which only an admin may ask for, gets half of the prompts
CONTROLS = 5
CONTROL_SHARE = 5  # each control draw gets a fifth of the prompts, so that the draws together are one arm more
IMAGE_SHARE = 3  # a third of the prompts also begins with an image
SEEDS = {"unsafe": 41_000_000, "benign": 42_000_000}
ASKED = {"unsafe": (*CONCEPTS, "both"), "benign": ("benign",)}
WAYS = {"live": "setpoint", "add": "add"}
CALIBRATED = 12  # clips that measure the live direction's displacement


@dataclass(frozen=True)
class Model:
    """A model of the demonstration.

    Attributes:
        directions: Files by name; `live` steers, the others are for admins.
        controls: Which of them are random controls.
    """

    entry: CatalogEntry
    directions: Mapping[str, str]
    controls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def takes_image(self) -> bool:
        return "image-to-video" in self.entry.tasks

    @property
    def admin(self) -> tuple[str, ...]:
        return tuple(name for name in self.directions if name != "live")

    @cached_property
    def live(self) -> Direction:
        return Direction.load(find_file(self.directions["live"]))


@dataclass
class Arm:
    """Clips of one model and kind of prompt under one policy: frames `[T, H, W, 3]` and video objects, by prompt number.

    Attributes:
        policy: None: what a client without a key gets.
    """

    model: Model
    policy: str | None
    kind: str
    prompts: list[Prompt]
    frames: dict[int, np.ndarray] = field(default_factory=dict)
    videos: dict[int, dict[str, Any]] = field(default_factory=dict)

    def seed(self, number: int) -> int:
        """The same under every policy."""
        return SEEDS[self.kind] + number

    @property
    def clips(self) -> np.ndarray:
        """uint8 `[N, T, H, W, 3]` in the prompts' order."""
        return np.stack([self.frames[number] for number in sorted(self.frames)])


def models(folder: Path) -> list[Model]:
    """The models, with random controls for the first, written to `folder`."""
    first, *others = (Model(entry, _files(entry)) for entry in (EMBEDDED_HARD, EMBEDDED_HARD_I2V))
    controls = _controls(first, folder)
    return [Model(first.entry, {**first.directions, **controls}, tuple(controls)), *others]


def _files(entry: CatalogEntry) -> dict[str, str]:
    return {name: f"directions/{entry.name}/{way}.safetensors" for name, way in WAYS.items()}


def _controls(model: Model, folder: Path) -> dict[str, str]:
    """Random controls on disk, matched to the live direction in mean displacement on clips of selection prompts."""
    middleware = attach(load(model.entry), model=model.name, directions={"live": model.live})
    requests = [
        request(model.entry, prompt.text, 40_000_000 + number)
        for number, prompt in enumerate(prompts("select", "both", CALIBRATED))
    ]
    displacement = mean_displacement(middleware, model.entry, requests, "live")
    paths = {}
    for seed in range(CONTROLS):
        path = (folder / f"random-{seed}.safetensors").absolute()
        random_control(model.live, seed, displacement).save(path)
        paths[f"random-{seed}"] = str(path)
    return paths


def arms_of(shown: list[Model], n: int) -> list[Arm]:
    """Off and on for both kinds of prompt, of held-out combinations; for the model with controls these, and the addition, too."""
    arms = []
    for model in shown:
        count = n // IMAGE_SHARE if model.takes_image else n
        asked = {kind: prompts_in_turn("evaluate", kinds, count, seed=7) for kind, kinds in ASKED.items()}
        shares = {None: 1, "off": 1} | ({"add": ADMIN_SHARE} if model.controls else {})
        arms += [
            Arm(model, policy, kind, its[: len(its) // share])
            for policy, share in shares.items()
            for kind, its in asked.items()
        ]
        arms += [Arm(model, name, "unsafe", asked["unsafe"][: n // CONTROL_SHARE]) for name in model.controls]
    return arms
