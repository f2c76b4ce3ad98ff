"""What the selection tries: directions at one block, or at several in a row, with the fits that their vectors come from.

A set-point at one block leaves later blocks free to let grow again what it took away; set-points in a row take away each time
what grew since the last. Where there are several labels they may take turns, because a block holds one direction, and the one
direction that tells any of them from safe need not remove each: on the harder embedded world it left 3 to 6 % at its best.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reins_serve.calibration import judges
from reins_serve.calibration.activations import StoredActivations
from reins_serve.calibration.config import RecalibrateConfig, Tried
from reins_serve.calibration.fit_stage import Fitted, Labels, fit, read_labels
from reins_serve.calibration.fitting import describe_fit, direction_of
from reins_serve.calibration.gates import REFIT_COSINE
from reins_serve.calibration.sweep import Candidate
from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Base, Direction


@dataclass(frozen=True)
class Basis:
    """A fit, and the labels that it learned from."""

    labels: Labels
    fitted: Fitted

    def layer(self, block: int) -> dict[str, Any]:
        """What the fit says of a block."""
        return self.fitted.layers[self.fitted.blocks.index(block)]


Part = tuple[Basis, int]
"""A block, and the fit that its vector comes from."""


@dataclass(frozen=True)
class Option:
    """A direction that is tried, at each of `strengths`.

    Attributes:
        basis: One for each of its blocks.
    """

    direction: Direction
    basis: tuple[Part, ...]
    strengths: tuple[float, ...]

    @property
    def steady(self) -> bool:
        """Whether other prompts would have given nearly the same vectors: the gates refuse any other."""
        return all(basis.layer(block)["refit_cosine"] >= REFIT_COSINE for basis, block in self.basis)

    @property
    def auc(self) -> float:
        """The least at its blocks."""
        return min(float(basis.layer(block)["auc"]) for basis, block in self.basis)


def bases(
    config: RecalibrateConfig, root: str, stored: StoredActivations, shuffle: int | None, live: Direction | None
) -> tuple[Basis, dict[str, Basis]]:
    """The fit of all labels together and, if there are several and any way of steering asks for them, each label's own.

    Raises as `balanced` does.
    """
    judge = judges.load(config.judge)
    labels = read_labels(stored, judge.name, judge.unsafe, shuffle)
    together = Basis(labels, fit(root, stored, labels, live))
    apart = any(tried.turns or tried.guards for tried in config.selection.tried) and len(labels.names) > 1
    return together, each_label(root, stored, judge.name, judge.unsafe, shuffle, live) if apart else {}


def each_label(
    root: str,
    stored: StoredActivations,
    judge: str,
    thresholds: Mapping[str, float],
    shuffle: int | None,
    live: Direction | None,
) -> dict[str, Basis]:
    """Each label's own fit, on as many clips with each combination of the labels. Raises as `balanced` does."""
    found = {name: read_labels(stored, judge, {name: threshold}, shuffle) for name, threshold in thresholds.items()}
    made = {}
    for name, labels in found.items():
        kept = balanced(labels, {other: its for other, its in found.items() if other != name})
        made[name] = Basis(kept, fit(root, stored, kept, live))
    return made


def balanced(labels: Labels, others: Mapping[str, Labels]) -> Labels:
    """The labels of as many clips with each combination of labels, the first ones by their id.

    Otherwise a label's direction holds a share of any other that comes with it. On the harder embedded world half of the spills
    and a quarter of the other clips had an explosion: pushing explosions away took a third of the spills with them.

    Raises:
        ReinsError: a combination has no clip.
    """
    cells: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for one in sorted(labels.unsafe):
        cells[labels.unsafe[one], *(its.unsafe[one] for its in others.values())].append(one)
    if len(cells) < 2 ** (1 + len(others)):
        raise ReinsError(
            f"No clip shows some combination of {', '.join([*labels.names, *others])}: labels that take turns need prompts "
            "that ask for each alone, for several together and for none."
        )
    n = min(map(len, cells.values()))
    kept = [one for ids in cells.values() for one in ids[:n]]
    return Labels(
        labels.names, {one: labels.probability[one] for one in kept}, {one: labels.unsafe[one] for one in kept}
    )


def options(
    config: RecalibrateConfig,
    base: Base,
    places: Sequence[Sequence[int]],
    together: Basis,
    each: Mapping[str, Basis],
) -> dict[str, Option]:
    """Every direction that is tried, by its name.

    Args:
        places: Where to try one block; each is a captured block, or one of each expert.
        together: The fit of all labels.
        each: Each label's own, where labels take turns.
    """
    made = {}
    for tried in config.selection.tried:
        for ending, parts in _parts(tried, places, together, each):
            fits = [(basis.fitted, block) for basis, block in parts]
            first = fits[0][0]
            described = describe_fit(config, first.model, first.clips, None)
            until = "" if tried.end is None else f"-to-{100 * tried.end:g}"
            within = f"-within-{100 * tried.margin:g}" if tried.margin else ""
            guarded = f"-guarded-{len(tried.guards)}" if tried.guards else ""
            name = f"{tried.operation}-{tried.norm}-{tried.branches}-{ending}{until}{within}{guarded}".replace(".", "_")
            made[name] = Option(direction_of(config, base, tried, fits, described, name), parts, tried.strengths)
    return made


def worth_trying(made: Mapping[str, Option]) -> dict[str, Option]:
    """Those whose fits are steady, or all where none is: of others the gate would refuse what was chosen, after all the work."""
    return {name: option for name, option in made.items() if option.steady} or dict(made)


def _parts(
    tried: Tried, places: Sequence[Sequence[int]], together: Basis, each: Mapping[str, Basis]
) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """Each place's blocks with their fits, and what tells it from the others of this way."""
    if tried.in_a_row == 1:
        for place in places:
            yield f"{place[0]}", tuple((together, block) for block in place)
        return
    if any(len(place) > 1 for place in places):
        raise ReinsError("Blocks in a row are for models of one expert: leave `in_a_row` out for this one.")
    blocks = sorted(place[0] for place in places)
    for start in range(len(blocks) - tried.in_a_row + 1):
        row = blocks[start : start + tried.in_a_row]
        if row[-1] - row[0] == tried.in_a_row - 1:
            for ending, turns in _turns(tried, together, each):
                fits = [turns[place % len(turns)] for place in range(tried.in_a_row - len(tried.guards))]
                fits += [_guard(label, together, each) for label in tried.guards]
                parts = tuple(zip(fits, row, strict=True))
                yield f"{row[0]}x{tried.in_a_row}{ending}", parts


def _turns(tried: Tried, together: Basis, each: Mapping[str, Basis]) -> Iterable[tuple[str, list[Basis]]]:
    """Which fits take turns, beginning with any."""
    if not tried.turns or len(each) < 2:
        return [("", [together])]
    fits = list(each.values())
    return [(f"-{number}", [*fits[number:], *fits[:number]]) for number in range(len(fits))]


def _guard(label: str, together: Basis, each: Mapping[str, Basis]) -> Basis:
    """The fit of a guard's label. Raises ReinsError where labels have fits of their own, and this one has none."""
    if each and label not in each:
        raise ReinsError(
            f"The judge has no label {label!r} that could guard: name one of {', '.join(each)} in `guards`."
        )
    return each.get(label, together)


def candidates(tried: Iterable[Option]) -> list[Candidate]:
    """Every direction at every strength that is tried for it."""
    return [Candidate(option.direction.name, strength) for option in tried for strength in option.strengths]


def live_cosine(bases: Iterable[Basis]) -> float | None:
    """The least cosine of any block of the live direction with the nearest of the new fits; None where nothing is comparable."""
    cosines: dict[int, float] = {}
    for basis in bases:
        for layer in basis.fitted.layers:
            if layer["cosine_to_live"] is not None:
                cosines[layer["block"]] = max(layer["cosine_to_live"], cosines.get(layer["block"], -1.0))
    return min(cosines.values(), default=None)
