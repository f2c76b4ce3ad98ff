"""What the attack attacks: each operation as it ships, and the set-point without its guards, at two blocks, and of several fits.

For the last, each clip draws one of the set-points at the same blocks: that which ships, and those of fits of other clips, which
begin with either label where labels take turns. So no search knows what it will meet.
"""

import tempfile
from collections.abc import Mapping

from benchmarks.quality import Way, directions_of
from benchmarks.worlds import World
from reins_serve.calibration.collect import collect
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.fitting import describe_fit
from reins_serve.calibration.options import Basis, bases, options
from reins_serve.steering.direction import Direction

Served = dict[str, tuple[tuple[Direction, float], ...]]
"""Way -> directions with their strengths; of several, each clip draws one."""


def by_name(served: Served) -> dict[str, Direction]:
    """Every direction of every way."""
    return {direction.name: direction for its in served.values() for direction, _ in its}


def served_ways(config: RecalibrateConfig, world: World, shipped_only: bool, concept: str | None) -> Served:
    """What ships, the set-point without its guards and at two blocks, and a draw among set-points of several fits.

    Args:
        shipped_only: Leave out those that have to be fitted.
        concept: What the directions are for; None: for all concepts together.
    """
    shipped = {way: Direction.load(path) for way, path in world.away_from(config.model, concept).items()}
    live = shipped["set-point"]
    served: Served = {way: ((direction, direction.serving_strength),) for way, direction in shipped.items()}
    if live.meta.guard is not None:
        served["set-point, without its guards"] = ((unguarded(live), live.serving_strength),)
    return served if shipped_only else served | _fitted(config, live)


def _fitted(config: RecalibrateConfig, live: Direction) -> Served:
    with tempfile.TemporaryDirectory(prefix="reins-attack-") as folder:
        together, each = bases(config, folder, collect(config, folder, lambda *_: None), None, None)
    found = together.fitted
    described = describe_fit(config, found.model, found.clips, None)
    first = max(0, live.blocks[0] - 1)
    two = Way(
        "set-point, two blocks",
        "setpoint",
        end=live.meta.window.end,
        margin=live.meta.margin,
        places=((first, first + 1),),
    )
    (both,) = directions_of(two, config, found, described, live.meta.base)
    several = (live, *refits(config, live, together, each))
    return {
        two.name: ((both, live.serving_strength),),
        f"one of {len(several)} set-points for each clip": tuple((one, live.serving_strength) for one in several),
    }


def unguarded(direction: Direction) -> Direction:
    """The same without the blocks that guard."""
    meta, guard = direction.meta, direction.meta.guard
    assert guard is not None
    kept = [at for at, block in enumerate(meta.blocks) if block not in guard.blocks]
    update = {
        "name": f"{meta.name}-unguarded",
        "blocks": tuple(meta.blocks[at] for at in kept),
        "statistics": tuple(meta.statistics[at] for at in kept),
        "guard": None,
    }
    return Direction.create(meta.model_copy(update=update), direction.vectors[kept])


def refits(config: RecalibrateConfig, live: Direction, together: Basis, each: Mapping[str, Basis]) -> list[Direction]:
    """Directions like the one that ships, at its blocks, of other fits: beginning with any label, where labels take turns."""
    of, places = len(live.blocks), [(block,) for block in together.fitted.blocks]
    like = [one for one in config.selection.tried if (one.operation, one.in_a_row) == (live.operation, of)]
    selection = config.selection.model_copy(update={"tried": tuple(like[:1])})
    made = options(config.model_copy(update={"selection": selection}), live.meta.base, places, together, each)
    return [option.direction for option in made.values() if option.direction.blocks == live.blocks]
