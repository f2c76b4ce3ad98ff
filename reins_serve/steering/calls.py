"""Which rows a call of a block carries: the guidance branch of the current call, and the layout of its rows."""

from diffusers.hooks.hooks import BaseState, CacheContext, StateManager

from reins_serve.errors import SteeringNotApplied
from reins_serve.models.spec import Guidance

COND, UNCOND, BATCHED = "cond", "uncond", "batched"


class Calls:
    """What is known of a denoiser's calls while a generation runs.

    Attributes:
        prompts: Rows of the generation; 0 while none is open.
        branch: Guidance branch of the current call, where calls are sequential.
    """

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self.prompts = 0
        self.branch: str | None = None

    def layout(self, rows: int) -> str:
        """`cond`, `uncond`, or `batched` for [unconditional, conditional]. Raises SteeringNotApplied where it is neither."""
        if self.guidance == "batched" and rows == 2 * self.prompts:
            return BATCHED
        if rows != self.prompts:
            raise SteeringNotApplied(
                f"A block was called with {rows} rows, the generation was opened for {self.prompts} prompts. "
                "Say generation(prompts=N) for N prompts (times videos per prompt)."
            )
        if self.guidance == "batched":
            return COND
        if self.branch not in (COND, UNCOND):
            raise SteeringNotApplied("The pipeline did not say which guidance branch it is calling; its spec is wrong.")
        return self.branch


class BranchListener(StateManager):
    """Learns the guidance branch from the `cache_context` that sequential pipelines put around each call.

    diffusers hands the context to every `StateManager` that is an attribute of a stateful hook.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__(BaseState())  # only the context is used, no state is kept
        self._calls = calls

    def set_context(self, context: CacheContext | None) -> None:
        super().set_context(context)
        self._calls.branch = context.name if context is not None else None
