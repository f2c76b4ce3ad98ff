"""Where the video tokens of a denoiser are: one small entry per transformer class, and the lookup that finds them in a model.

To add a class of your own, register an entry before loading:

    from reins_serve.models.spec import SPECS, DenoiserSpec
    SPECS["MyVideoTransformer"] = DenoiserSpec(blocks=("blocks",), guidance="sequential")
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from reins_serve.errors import ReinsError

# A loaded diffusers pipeline. Its components are attributes that the base class does not declare.
Pipeline: TypeAlias = Any
Denoiser: TypeAlias = Any  # its transformer, likewise
Guidance = Literal["batched", "sequential"]


@dataclass(frozen=True)
class DenoiserSpec:
    """How one transformer class lays out its video stream.

    Attributes:
        blocks: Names of the module lists on the video path, in the order in which tokens pass them.
        guidance: `batched`: one call per step on `[unconditional, conditional]` rows; `sequential`: one call per branch,
            each inside a `cache_context` named `cond` or `uncond`.
        video: Index of the video tokens `[R, S, D]` in a block's output tuple; None when the output is that tensor.
        width: Name of the configuration field that holds D; None when D is heads times head dimension.
    """

    blocks: tuple[str, ...]
    guidance: Guidance
    video: int | None = None
    width: str | None = None


SPECS: MutableMapping[str, DenoiserSpec] = {
    "WanTransformer3DModel": DenoiserSpec(blocks=("blocks",), guidance="sequential"),
}


def spec_of(denoiser: torch.nn.Module) -> DenoiserSpec:
    """Return the entry of a denoiser's class. Raises ReinsError with instructions for a class that has none."""
    name = type(denoiser).__name__
    try:
        return SPECS[name]
    except KeyError:
        raise ReinsError(
            f"{name} is not a known video denoiser, so steering cannot tell where its video tokens are. Known: "
            f"{', '.join(sorted(SPECS))}. Add `reins_serve.models.spec.SPECS[{name!r}] = DenoiserSpec(blocks=(...), guidance=...)`."
        ) from None


def blocks_of(denoiser: torch.nn.Module) -> list[torch.nn.Module]:
    """The transformer blocks on the video path, first to last."""
    blocks: list[torch.nn.Module] = []
    for name in spec_of(denoiser).blocks:
        part = getattr(denoiser, name, None)
        if part is None:
            raise ReinsError(f"{type(denoiser).__name__} has no block list {name!r}: correct its entry in SPECS.")
        blocks.extend(part)
    return blocks


def width_of(denoiser: Denoiser) -> int:
    """D, the width of the video tokens, from the denoiser's configuration."""
    config, field = denoiser.config, spec_of(denoiser).width
    return int(config[field]) if field else int(config["num_attention_heads"] * config["attention_head_dim"])
