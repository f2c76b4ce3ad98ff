"""The confirmation: after a proved pipeline was accelerated, its final configuration runs off, on and off again.

The proof's taps cannot be there: they would be compiled with the blocks. What is left to show is that the counter still
agrees with the plan, that the push reaches the clip, and that it leaves nothing behind. The runs also compile the graphs
that each direction will serve with.
"""

import torch
from torch import Tensor

from reins_serve.errors import SteeringNotApplied
from reins_serve.models.catalog import CatalogEntry
from reins_serve.steering.generation import Generation
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.plan import GenerationRecord, RowPlan
from reins_serve.steering.policy import SteeringRow, unsteered
from reins_serve.steering.proof import clip_latents, prompts_of, steps_of, variants


def confirm(middleware: SteeringMiddleware, entry: CatalogEntry) -> None:
    """Make the proof's clips off, then with each direction, then off again.

    Raises:
        SteeringNotApplied: a run was not steered as planned, its clip equals the one without, or the clips without that were
            made before and after it differ.
    """
    if not middleware.directions:
        return
    off = [RowPlan(unsteered("confirm"), None)] * prompts_of(entry)

    def run(plans: list[RowPlan]) -> tuple[Tensor, GenerationRecord]:
        with Generation(middleware.hooked, plans) as g:
            latents = clip_latents(middleware.pipeline, entry, g.arguments)
        return latents, g.record

    before, _ = run(off)
    for name, direction in middleware.directions.items():
        # As in the proof: a set-point may find these clips safe already, and then pushes nothing as it serves.
        for tried in (direction, *variants(direction)):
            if not tried.meta.window.steps(steps_of(middleware.pipeline)):
                continue
            latents, record = run([RowPlan(SteeringRow(name, direction.serving_strength), tried), *off[1:]])
            if not record.proved:
                raise SteeringNotApplied(f"A clip steered by {direction.name} came without its proof.")
            if not torch.equal(latents[0], before[0]):
                break
        else:
            raise SteeringNotApplied(
                f"In its final configuration this pipeline makes the same clip with {direction.name} as without: compilation, a "
                "cache or offload has cut steering off. Leave it out of `loading`."
            )
    after, _ = run(off)
    if not torch.equal(after, before):
        raise SteeringNotApplied(
            "In its final configuration this pipeline makes another clip after a steered one than before it: a cache or a "
            "compiled graph keeps something of the push. Leave it out of `loading`."
        )
