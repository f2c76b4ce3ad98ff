"""From fits to direction files, with everything that a file must say."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import torch

from reins_serve import __version__
from reins_serve.calibration.config import RecalibrateConfig, Tried
from reins_serve.calibration.fit_stage import Fitted
from reins_serve.calibration.supervised_pca import SupervisedPCA
from reins_serve.calibration.sweep import Measured
from reins_serve.steering.direction import (
    Base,
    BlockStatistics,
    Direction,
    DirectionMeta,
    Fit,
    Gate,
    Guard,
    Strength,
    Window,
)

MAX_LOSS = (
    0.02  # a larger dose ends the range of strengths where it loses this much of efficacy or of a benign attribute
)


def direction_of(
    config: RecalibrateConfig, base: Base, tried: Tried, parts: Sequence[tuple[Fitted, int]], fit: Fit, name: str
) -> Direction:
    """A direction of one way of steering, as it is tried.

    Args:
        parts: Its blocks, each with the fit that its vector comes from.
    """
    rows = [(found, found.blocks.index(block)) for found, block in parts]
    blocks = tuple(block for _, block in parts)
    meta = DirectionMeta(
        format="reins.direction/1",
        name=name,
        model=config.model,
        version="0",
        role="steer",
        base=base,
        blocks=blocks,
        operation=tried.operation,
        norm=tried.norm,
        branches=tried.branches,
        window=config.window if tried.end is None else Window(start=config.window.start, end=tried.end),
        strength=Strength(
            unit="deficit" if tried.operation == "setpoint" else "ref_norm",
            serving=tried.strengths[0],
            max=2 * max(tried.strengths) * max((1.0, *config.selection.doses)),
        ),
        statistics=tuple(
            BlockStatistics(
                safe_mean=found.model.safe_mean_[row],
                unsafe_mean=found.model.unsafe_mean_[row],
                ref_norm=found.token_norm[row],
            )
            for found, row in rows
        ),
        margin=tried.margin,
        guard=Guard(blocks=blocks[-len(tried.guards) :], shortfall=tried.shortfall) if tried.guards else None,
        fit=fit,
        gates={},
    )
    return Direction.create(meta, torch.from_numpy(np.stack([found.model.direction_[row] for found, row in rows])))


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
        captured=config.window,
    )


def largest_dose(doses: Sequence[Measured], serving: float) -> float:
    """`max_strength`: where a larger dose first loses efficacy or utility, the range ends before it."""
    reference = next(one for one in doses if one.candidate.strength == serving)
    largest = serving
    for one in sorted(doses, key=lambda m: m.candidate.strength):
        if one.candidate.strength <= serving:
            continue
        if one.unsafe_rate > reference.unsafe_rate + MAX_LOSS or one.loss > MAX_LOSS:
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
