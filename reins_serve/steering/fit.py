"""Whether a direction belongs to a pipeline: what a direction file says of its base model, read from a loaded one."""

from reins_serve.errors import DirectionError
from reins_serve.models.fingerprint import fingerprint
from reins_serve.models.spec import Pipeline, denoisers_of, path_of, width_of
from reins_serve.steering.direction import Base, Direction

_WORDS = {
    "denoiser": "denoiser",
    "denoiser_class": "denoiser class",
    "width": "width",
    "num_blocks": "number of blocks",
    "fingerprint": "fingerprint of the weights",
}


def base_of(pipeline: Pipeline) -> Base:
    """What a direction fitted on this pipeline says of its base model; of two experts, of both together."""
    denoisers = denoisers_of(pipeline)
    return Base(
        fingerprint=fingerprint(pipeline),
        denoiser="+".join(denoisers),
        denoiser_class=type(next(iter(denoisers.values()))).__name__,
        width=width_of(pipeline),
        num_blocks=len(path_of(pipeline)),
    )


def check_base(direction: Direction, base: Base, whose: str = "the loaded model's") -> None:
    """Refuse a direction that says another thing of its base model. Raises DirectionError."""
    for name, word in _WORDS.items():
        wanted, actual = getattr(direction.meta.base, name), getattr(base, name)
        if wanted != actual:
            raise DirectionError(
                f"The direction {direction.name} was fitted for another model: its {word} is {wanted}, {whose} is {actual}. Load "
                "the model it belongs to, or refit it with `reins-serve recalibrate`."
            )


def check_fit(direction: Direction, pipeline: Pipeline, base: Base) -> None:
    """Refuse a direction of another model, or one that leaves an expert unsteered. Raises DirectionError.

    Args:
        base: `base_of` the pipeline.
    """
    check_base(direction, base)
    path = path_of(pipeline)
    missing = set(denoisers_of(pipeline)) - {path[block][0] for block in direction.blocks}
    if missing:
        raise DirectionError(
            f"The direction {direction.name} has no vector for {', '.join(sorted(missing))}: each expert makes some of the steps "
            f"and needs one. Blocks are numbered on from one expert to the next, 0 to {len(path) - 1}; refit it for both."
        )
