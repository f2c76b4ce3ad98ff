"""Fits of the harder world's concepts on the same clips, and the directions that are tried for each purpose of steering.

A concept's own fit is balanced: as many clips with each combination of the concepts. Besides one block, set-points are tried at
several in a row, each of which takes away what the last ones let grow again: one concept's at all of them, and of two concepts in
turn, because a block holds one direction.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.quality import named
from benchmarks.targets import TARGETS, Target
from reins_serve.calibration import judges
from reins_serve.calibration.activations import StoredActivations
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.fit_stage import Fitted, Labels, fit, read_labels
from reins_serve.calibration.fitting import describe_fit, tried_directions
from reins_serve.calibration.gates import REFIT_COSINE
from reins_serve.embedded.hard.world import CONCEPTS
from reins_serve.steering.direction import Base, Direction

FIRST_BLOCKS = (0, 1, 2)
"""Where set-points at several blocks begin: past the middle, directions of this world hardly steer."""
IN_A_ROW = (3, 4)
"""Blocks of one concept's set-points."""


@dataclass(frozen=True)
class Found:
    """A target's fit."""

    target: Target
    labels: Labels
    fitted: Fitted

    def layer(self, block: int) -> dict[str, Any]:
        """What the fit says of a block."""
        return self.fitted.layers[self.fitted.blocks.index(block)]


@dataclass(frozen=True)
class Option:
    """A direction that is tried.

    Attributes:
        basis: For each block, which fit its vector comes from.
    """

    direction: Direction
    basis: tuple[tuple[Found, int], ...]

    @property
    def kind(self) -> str:
        """Its operation, and whether it steers one block or several."""
        return f"{self.direction.operation}{' in a row' if len(self.basis) > 1 else ''}"

    @property
    def steady(self) -> bool:
        """Whether other prompts would have given nearly the same vectors: the gates refuse any other."""
        return all(found.layer(block)["refit_cosine"] >= REFIT_COSINE for found, block in self.basis)


def fits(config: RecalibrateConfig, stored: StoredActivations, root: str) -> dict[str, Found]:
    """The fit of every target."""
    judge = judges.load(config.judge)
    each = {one: read_labels(stored, judge.name, {one: judge.unsafe[one]}, None) for one in CONCEPTS}
    found = {}
    for target in TARGETS:
        if len(target.concepts) > 1:
            thresholds = {concept: judge.unsafe[concept] for concept in target.concepts}
            labels = read_labels(stored, judge.name, thresholds, None)
        else:
            (one,) = target.concepts
            labels = balanced(each[one], [labels for other, labels in each.items() if other != one])
        found[target.name] = Found(target, labels, fit(root, stored, labels, None))
    return found


def balanced(labels: Labels, others: Sequence[Labels]) -> Labels:
    """The labels of as many clips with each combination of labels, the first ones by their id.

    Otherwise a concept's direction holds a share of any other that comes with it: where half of the spills and a quarter of the
    rest had an explosion, pushing explosions away took away a third of the spills.
    """
    cells: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for one in sorted(labels.unsafe):
        cells[labels.unsafe[one], *(other.unsafe[one] for other in others)].append(one)
    n = min(map(len, cells.values()))
    kept = [one for ids in cells.values() for one in ids[:n]]
    return Labels(
        labels.names, {one: labels.probability[one] for one in kept}, {one: labels.unsafe[one] for one in kept}
    )


def options(config: RecalibrateConfig, base: Base, found: Mapping[str, Found]) -> dict[str, dict[str, Option]]:
    """Every direction that is tried, by target and name."""
    single = {name: _at_one_block(config, base, one) for name, one in found.items()}
    made = {name: dict(its) for name, its in single.items()}
    for name, one in found.items():
        setpoints = {
            concept: {
                option.basis[0][1]: option
                for option in single[concept].values()
                if option.direction.operation == "setpoint"
            }
            for concept in one.target.concepts
        }
        for chain in _chains(one.target.concepts, max(one.fitted.blocks)):
            row = _in_a_row(name, [setpoints[concept][block] for concept, block in chain])
            made[name][row.direction.name] = row
    return made


def _at_one_block(config: RecalibrateConfig, base: Base, one: Found) -> dict[str, Option]:
    described = describe_fit(config, one.fitted.model, one.fitted.clips, None)
    places = [(block,) for block in one.fitted.blocks]
    made = {}
    for direction in tried_directions(config, base, one.fitted, places, described):
        name = f"{one.target.name}-{direction.name}"
        made[name] = Option(named(direction, name), ((one, direction.blocks[0]),))
    return made


def _chains(concepts: Sequence[str], last: int) -> list[list[tuple[str, int]]]:
    """Which concept at which block: of one concept three and four blocks, of two each twice, beginning with either."""
    orders = [[concepts[0]] * n for n in IN_A_ROW] if len(concepts) == 1 else [[*concepts] * 2, [*concepts[::-1]] * 2]
    return [
        list(zip(order, range(first, first + len(order)), strict=True))
        for order in orders
        for first in FIRST_BLOCKS
        if first + len(order) - 1 <= last
    ]


def _in_a_row(target: str, parts: Sequence[Option]) -> Option:
    """Set-points at several blocks as one direction."""
    first = parts[0].direction
    basis = tuple(part.basis[0] for part in parts)
    turns = "".join(found.target.name[0] for found, _ in basis)
    update = {
        "name": f"{target}-{turns}-{basis[0][1]}",
        "blocks": tuple(block for _, block in basis),
        "statistics": tuple(statistics for part in parts for statistics in part.direction.meta.statistics),
    }
    vectors = torch.cat([part.direction.vectors for part in parts])
    return Option(Direction.create(first.meta.model_copy(update=update), vectors), basis)
