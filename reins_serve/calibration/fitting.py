"""From a fit to direction files: one per block and way of steering, at unit strength, with everything that a file must say."""

from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from reins_serve import __version__
from reins_serve.calibration.config import RecalibrateConfig, Tried
from reins_serve.calibration.fit_stage import Fitted
from reins_serve.calibration.supervised_pca import SupervisedPCA
from reins_serve.calibration.sweep import Candidate, Measured
from reins_serve.steering.direction import Base, BlockStatistics, Direction, DirectionMeta, Fit, Gate, Strength

MAX_LOSS = (
    0.02  # a larger dose ends the range of strengths where it loses this much of efficacy or of a benign attribute
)


def name_of(tried: Tried, block: int) -> str:
    """The name under which a way of steering at a block is tried."""
    return f"{tried.operation}-{tried.norm}-{tried.branches}-{block}"


def tried_directions(
    config: RecalibrateConfig,
    base: Base,
    fitted: Fitted,
    places: Sequence[Sequence[int]],
    fit: Fit,
) -> list[Direction]:
    """One direction for each place and way of steering.

    Args:
        places: Where to try; each is a captured block, or one of each expert.
    """
    made, model = [], fitted.model
    for place in places:
        rows = [fitted.blocks.index(block) for block in place]
        for tried in config.selection.tried:
            meta = DirectionMeta(
                format="reins.direction/1",
                name=name_of(tried, place[0]),
                model=config.model,
                version="0",
                role="steer",
                base=base,
                blocks=tuple(place),
                operation=tried.operation,
                norm=tried.norm,
                branches=tried.branches,
                window=config.window,
                strength=Strength(
                    unit="deficit" if tried.operation == "setpoint" else "ref_norm",
                    serving=tried.strengths[0],
                    max=2 * max(tried.strengths) * max((1.0, *config.selection.doses)),
                ),
                statistics=tuple(
                    BlockStatistics(
                        safe_mean=model.safe_mean_[r], unsafe_mean=model.unsafe_mean_[r], ref_norm=fitted.token_norm[r]
                    )
                    for r in rows
                ),
                fit=fit,
                gates={},
            )
            made.append(Direction.create(meta, torch.from_numpy(model.direction_[rows])))
    return made


def describe_fit(config: RecalibrateConfig, fitted: SupervisedPCA, clips: int, auc: float | None) -> Fit:
    """How a direction was found, for its file."""
    return Fit(
        method="supervised-pca",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"reins-serve {__version__}",
        prompts_safe=fitted.prompts_[0],
        prompts_unsafe=fitted.prompts_[1],
        clips=clips,
        judge=config.judge.kind,
        auc=auc,
        sources=(f"{config.prompts.kind}/fit",),
        seed=config.seed,
    )


def candidates(config: RecalibrateConfig, directions: Sequence[Direction]) -> list[Candidate]:
    """Every direction at every strength that the configuration tries for it."""
    strengths = {(t.operation, t.norm, t.branches): t.strengths for t in config.selection.tried}
    return [
        Candidate(d.name, strength)
        for d in directions
        for strength in strengths[d.meta.operation, d.meta.norm, d.meta.branches]
    ]


def largest_dose(doses: Sequence[Measured], serving: float) -> float:
    """`max_strength`: where a larger dose first loses efficacy or utility, the range ends before it."""
    reference = next(one for one in doses if one.candidate.strength == serving)
    largest = serving
    for one in sorted(doses, key=lambda m: m.candidate.strength):
        if one.candidate.strength <= serving:
            continue
        if max(one.unsafe.values()) > max(reference.unsafe.values()) + MAX_LOSS or one.loss > MAX_LOSS:
            break
        largest = one.candidate.strength
    return largest


def finished(
    direction: Direction,
    name: str,
    fit: Fit,
    serving: float,
    largest: float,
    gates: dict[str, Gate],
    parent: str | None,
) -> Direction:
    """The direction as it may serve: under its name, with its strengths and its gates."""
    update = {
        "name": name,
        "fit": fit,
        "strength": Strength(unit=direction.meta.strength.unit, serving=serving, max=largest),
        "gates": gates,
        "parent": parent,
    }
    return Direction.create(direction.meta.model_copy(update=update), direction.vectors)
