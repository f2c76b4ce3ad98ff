"""Hooks on the blocks of a pipeline, put on and taken off by name: those that steer, those that read, those that prove.

Blocks are numbered along the video path; of two experts the second's are numbered on after the first's.
"""

import inspect
from collections.abc import Mapping

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from reins_serve.errors import SteeringNotApplied
from reins_serve.models.spec import DenoiserSpec, Pipeline, denoisers_of, path_of


class VideoHook(ModelHook):
    """A hook that finds the video tokens `[R, S, D]` in its block's output, and can put others in their place."""

    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        self.spec = spec
        self._tail: int | None = None  # number of video tokens of the current call, behind history tokens
        self._tail_position = -1

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        if self.spec.tail is not None:
            self._tail_position = list(inspect.signature(type(module).forward).parameters).index(self.spec.tail) - 1
        return module

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> tuple[tuple, dict]:
        if self.spec.tail is not None:
            found = kwargs[self.spec.tail] if self.spec.tail in kwargs else args[self._tail_position]
            self._tail = int(found)  # type: ignore[call-overload]
        return args, kwargs

    def video(self, output: object) -> Tensor:
        """The video tokens in a block's output; history tokens before them are left out.

        Raises:
            SteeringNotApplied: the spec's element of the output is no `[R, S, D]` tensor.
        """
        hidden = output if self.spec.video is None else output[self.spec.video]  # type: ignore[index]
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise SteeringNotApplied(
                f"A block returns {_shape(output)}, and `video: {self.spec.video}` of its spec is no tensor of rows, tokens and "
                "channels in it: correct the entry in SPECS."
            )
        return hidden if self._tail is None else hidden[:, -self._tail :]

    def replaced(self, output: object, video: Tensor) -> object:
        """The output with other video tokens in the place of its own."""
        place = self.spec.video
        if self._tail is not None:
            hidden: Tensor = output if place is None else output[place]  # type: ignore[assignment, index]
            video = torch.cat([hidden[:, : -self._tail], video], dim=1)
        if place is None:
            return video
        return (*output[:place], video, *output[place + 1 :])  # type: ignore[index]


def _shape(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of {output.ndim} axes"
    return (
        f"a {type(output).__name__} of {[_shape(part) for part in output]}"
        if isinstance(output, tuple)
        else "no tensor"
    )


def add_hooks(pipeline: Pipeline, hooks: Mapping[int, ModelHook], name: str) -> None:
    """Register a hook at each numbered block (0 is the first). Later ones lie outside of earlier ones of other names."""
    path = path_of(pipeline)
    for block, hook in hooks.items():
        HookRegistry.check_if_exists_or_initialize(path[block][1]).register_hook(hook, name)
    announce(pipeline)


def remove_hooks(pipeline: Pipeline, name: str) -> None:
    """Remove the hooks of a name from every block that has one, and from the denoisers."""
    for module in (*denoisers_of(pipeline).values(), *(block for _, block in path_of(pipeline))):
        HookRegistry.check_if_exists_or_initialize(module).remove_hook(name, recurse=False)
    announce(pipeline)


def announce(pipeline: Pipeline) -> None:
    """Let each denoiser's `cache_context` look for hooks again: diffusers keeps a list of those it found before."""
    for denoiser in denoisers_of(pipeline).values():
        HookRegistry.check_if_exists_or_initialize(denoiser).invalidate_child_registries_cache()
