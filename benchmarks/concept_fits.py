"""Fits of the harder world's concepts on the same clips, and the directions that are tried for each purpose of steering."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.targets import TARGETS, Target
from reins_serve.calibration import judges
from reins_serve.calibration.activations import StoredActivations
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.fit_stage import fit, read_labels
from reins_serve.calibration.options import Basis, Option, each_label, options
from reins_serve.steering.direction import Base


@dataclass(frozen=True)
class Found:
    """A target's fits.

    Attributes:
        together: The fit of its concepts, of one alone on as many clips with each combination of the concepts.
        each: Of several concepts, each one's own.
    """

    target: Target
    together: Basis
    each: Mapping[str, Basis] = field(default_factory=dict)


def fits(config: RecalibrateConfig, stored: StoredActivations, root: str) -> dict[str, Found]:
    """The fits of every target."""
    judge = judges.load(config.judge)
    each = each_label(root, stored, judge.name, judge.unsafe, None, None)
    found = {}
    for target in TARGETS:
        if len(target.concepts) == 1:
            found[target.name] = Found(target, each[target.concepts[0]])
        else:
            thresholds = {concept: judge.unsafe[concept] for concept in target.concepts}
            labels = read_labels(stored, judge.name, thresholds, None)
            together = Basis(labels, fit(root, stored, labels, None))
            found[target.name] = Found(target, together, {concept: each[concept] for concept in target.concepts})
    return found


def tried_for(config: RecalibrateConfig, base: Base, found: Found) -> dict[str, Option]:
    """Every direction that is tried for a target, by its name."""
    places = [(block,) for block in found.together.fitted.blocks]
    return options(config, base, places, found.together, found.each)


def kind_of_option(option: Option) -> str:
    """Its operation, whether it steers one block or several, and how long: the first round keeps some of each kind."""
    meta = option.direction.meta
    return f"{meta.operation}{' in a row' if len(option.basis) > 1 else ''} to {meta.window.end:g}"
