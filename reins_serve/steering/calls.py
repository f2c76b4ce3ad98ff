"""Which rows a call of a block carries: the guidance branch of the current call of a denoiser, and the layout of its rows.

A row is *conditional* when it carries the request's prompt and *unconditional* when it carries the negative prompt. So the
perturbed forwards of skip-layer, spatio-temporal and modality guidance are conditional: they see the same prompt, and leaving
them unsteered would turn the push itself into a guidance term.
"""

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager

from reins_serve.errors import SteeringNotApplied
from reins_serve.models.spec import Pipeline, denoisers_of, spec_of
from reins_serve.steering.blocks import announce
from reins_serve.steering.branches import BATCHED, COND, UNCOND

# Names that diffusers' pipelines and guiders give to a call by `cache_context`, and what its rows carry.
CONTEXTS = {
    "cond": COND,
    "uncond": UNCOND,
    "cond_uncond": BATCHED,
    "pred_cond": COND,
    "pred_uncond": UNCOND,
    "uncond_stg": COND,
    "uncond_modality": COND,
    "pred_cond_skip": COND,
    "pred_cond_seg": COND,
    "pred_cond_stg": COND,
    "pred_cond_modality": COND,
}
PLAIN = ("", "cond", "pred_cond", "cond_uncond")


class Calls:
    """The calls of one denoiser while a generation runs.

    Attributes:
        prompts: Rows of the generation.
        name: Name that the pipeline gave to the current call; empty where pipelines give none.
        names: Names of this step's calls so far.
    """

    def __init__(self, pipeline: Pipeline, denoiser: torch.nn.Module) -> None:
        self.spec = spec_of(denoiser)
        self.prompts = 0
        self.name = ""
        self.names: list[str] = []
        self._pipeline = pipeline
        self._kind: str | None = None
        self._guided: bool | None = None
        self._count = 0

    @property
    def guided(self) -> bool:
        """Whether the pipeline's call that is running uses classifier-free guidance: its own word, or else its scale.

        Read once a generation, in its first step: some pipelines change their scale from step to step, but not their rows.
        """
        if self._guided is None:
            own = getattr(self._pipeline, "do_classifier_free_guidance", None)
            self._guided = bool(getattr(self._pipeline, "guidance_scale", 1) > 1 if own is None else own)
        return self._guided

    def begin(self, prompts: int | None = None) -> None:
        """A step begins; with `prompts`, a generation."""
        if prompts is not None:
            self.prompts, self._guided = prompts, None
        self.names, self._count = [], 0

    def enter(self, name: str | None) -> None:
        """The pipeline says which call comes next (None: that the call is over)."""
        self.name, self._kind = name or "", None
        if name is None:
            return
        if name not in CONTEXTS:
            raise SteeringNotApplied(
                f"The pipeline names a call {name!r}, which steering does not know, so it cannot tell whose rows it carries."
            )
        self._kind = CONTEXTS[name]
        if name in PLAIN and (self._kind == BATCHED) != (self.spec.guidance == "batched"):
            raise SteeringNotApplied(
                f"The pipeline makes a call named {name!r}, which does not go with the spec's guidance layout "
                f"{self.spec.guidance!r}: correct the entry in SPECS."
            )
        self.names.append(name)

    def enter_in_order(self) -> None:
        """An unnamed call begins: the conditional one is the first of its step."""
        self._kind = UNCOND if self._count else COND
        self._count += 1

    def layout(self, rows: int) -> tuple[str, int]:
        """What `rows` rows of a block's output are: their kind, and how many rows (frames) a prompt has in it.

        Returns:
            `cond`, `uncond`, or `batched` for [unconditional, conditional], with the number of rows of each prompt.

        Raises:
            SteeringNotApplied: the number of rows is not that of the generation's prompts.
        """
        kind = self._kind or (BATCHED if self.spec.guidance == "batched" else None)
        if kind is None:
            raise SteeringNotApplied("The pipeline did not say which guidance branch it is calling; its spec is wrong.")
        if kind == BATCHED:
            # Frames in rows make the number of rows ambiguous; elsewhere the rows themselves say whether there are two halves.
            halves = self.guided if self.spec.frames_in_rows else rows == 2 * self.prompts
            kind = BATCHED if halves else COND
        copies, rest = divmod(rows, self.prompts * (2 if kind == BATCHED else 1))
        if rest or copies < 1 or (copies > 1 and not self.spec.frames_in_rows):
            raise SteeringNotApplied(
                f"A block was called with {rows} rows, the generation was opened for {self.prompts} prompts. "
                "Say generation(prompts=N) for N prompts (times videos per prompt)."
            )
        return kind, copies

    def made(self) -> list[tuple[str, str]]:
        """The calls of the step that just ended as (name, kind): those that were named, else what the spec declares."""
        guided = self.guided
        if self.names or self.spec.guidance == "sequential":
            calls = [(name, CONTEXTS[name]) for name in self.names]
        elif self.spec.guidance == "batched":
            calls = [("", BATCHED)]
        else:
            calls = [("", COND), ("", UNCOND)][: 1 + guided]
        return [(name, COND if kind == BATCHED and not guided else kind) for name, kind in calls]


class CallsHook(ModelHook):
    """Sits on a denoiser and tells `Calls` about each of its calls."""

    _is_stateful = True  # so that the pipeline's cache_context reaches the listener

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls
        self.listener = _Listener(calls)

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> tuple[tuple, dict]:
        if self._calls.spec.guidance == "ordered":
            self._calls.enter_in_order()
        return args, kwargs

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Nothing is kept between calls that a cache reset would have to clear."""
        return module


class _Listener(StateManager):
    """Learns a call's name from `cache_context`: diffusers hands it to each `StateManager` attribute of a stateful hook."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(BaseState())  # only the context is used, no state is kept
        self._calls = calls

    def set_context(self, context: CacheContext | None) -> None:
        super().set_context(context)
        self._calls.enter(context.name if context is not None else None)


def watch(pipeline: Pipeline, name: str) -> dict[str, Calls]:
    """Hook every denoiser of a pipeline under `name`. Returns its calls, by the denoiser's attribute."""
    watched = {}
    for attribute, denoiser in denoisers_of(pipeline).items():
        watched[attribute] = Calls(pipeline, denoiser)
        HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(CallsHook(watched[attribute]), name)
    announce(pipeline)
    return watched
