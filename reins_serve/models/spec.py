"""Where the video tokens of a denoiser are: one small entry per transformer class, and the lookup that finds them in a pipeline.

To add a class of your own, register an entry before loading (or write the same words under `spec:` in a deployment's YAML):

    from reins_serve.models.spec import SPECS, DenoiserSpec

    SPECS["MyVideoTransformer"] = DenoiserSpec(
        blocks=("layers",),      # attribute names of the module lists that the video tokens pass, in order
        guidance="sequential",   # cond and uncond in calls of their own; "batched": one call on [uncond, cond] rows
        video=0,                 # a block returns a tuple, its element 0 holds the video tokens; leave out for a bare tensor
        width="model_dim",       # configuration field with their width; leave out for heads x head dimension
    )

`reins-serve models check FOLDER` then loads a checkpoint and proves the entry right or wrong in seconds: a wrong block list,
element, width or guidance layout fails the start-up proof. Everything else is discovered on the loaded pipeline: a second
denoiser (`transformer_2`), a guider, a step callback, the names of the call's arguments.
"""

import math
from collections.abc import MutableMapping
from typing import Any, Literal, TypeAlias

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reins_serve.errors import ReinsError
from reins_serve.models.others import OTHERS, Refused

# A loaded diffusers pipeline. Its components are attributes that the base class does not declare.
Pipeline: TypeAlias = Any
Denoiser: TypeAlias = Any  # its transformer, likewise
Guidance = Literal["batched", "sequential", "ordered"]
DENOISERS = ("transformer", "transformer_2")
REFUSED_PIPELINES = {
    "HeliosPyramidPipeline": "its steps begin again at 0 in each stage of each chunk, so there is no first half of denoising",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DenoiserSpec:
    """How one transformer class lays out its video stream.

    Attributes:
        blocks: Names of the module lists on the video path, in the order in which tokens pass them.
        guidance: `batched`: one call per step on `[unconditional, conditional]` rows; `sequential`: one call per branch,
            each inside a `cache_context` that names it (guiders do so too); `ordered`: one call per branch that nothing
            names, the conditional one first.
        video: Index of the video tokens `[R, S, D]` in a block's output tuple; None when the output is that tensor.
        width: Name of the configuration field that holds D; None when D is heads times head dimension.
        tail: Name of the block's argument that says how many tokens at the end are the video's; those before are history.
        frames_in_rows: Rows are (branch, prompt, frame) with the tokens of one frame each.
        decoder: Name of the configuration field with the number of blocks at the end of the path that do not carry the
            stream on, and are left out of it.
        chunked: The pipeline may make a long clip of several chunks, in each of which the steps begin again at 0.
    """

    blocks: tuple[str, ...]
    guidance: Guidance
    video: int | None = None
    width: str | None = None
    tail: str | None = None
    frames_in_rows: bool = False
    decoder: str | None = None
    chunked: bool = False


SPECS: MutableMapping[str, DenoiserSpec] = {
    "AllegroTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="batched"),
    "CogVideoXTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="batched", video=0),
    "CosmosTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="ordered"),
    "EasyAnimateTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="batched", video=0),
    "HeliosTransformer3DModel": DenoiserSpec(
        blocks=("blocks",), guidance="sequential", tail="original_context_length", chunked=True
    ),
    "HunyuanVideoTransformer3DModel": DenoiserSpec(
        blocks=("transformer_blocks", "single_transformer_blocks"), guidance="sequential", video=0
    ),
    "HunyuanVideo15Transformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="sequential", video=0),
    "Kandinsky5Transformer3DModel": DenoiserSpec(
        blocks=("visual_transformer_blocks",), guidance="ordered", width="model_dim"
    ),
    "LatteTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="batched", frames_in_rows=True),
    "LTXVideoTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="batched"),
    "LTX2VideoTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="batched", video=0),
    "MochiTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="batched", video=0),
    "MotifVideoTransformer3DModel": DenoiserSpec(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        guidance="sequential",
        video=0,
        decoder="num_decoder_layers",
    ),
    "SanaVideoTransformer3DModel": DenoiserSpec(blocks=("transformer_blocks",), guidance="batched"),
    "SkyReelsV2Transformer3DModel": DenoiserSpec(blocks=("blocks",), guidance="sequential", chunked=True),
    "WanTransformer3DModel": DenoiserSpec(blocks=("blocks",), guidance="sequential"),
}


def spec_of(denoiser: torch.nn.Module) -> DenoiserSpec:
    """Return the entry of a denoiser's class. Raises ReinsError with instructions for a class that has none."""
    name = type(denoiser).__name__
    if name in SPECS:
        return SPECS[name]
    other = OTHERS.get(name)
    if isinstance(other, Refused):
        raise ReinsError(f"{name} cannot be steered: {other}")
    raise ReinsError(
        f"{name} has no entry in SPECS, so steering cannot tell where its video tokens are. "
        + (f"What is known of it: {other} " if other else "")
        + f"Add `reins_serve.models.spec.SPECS[{name!r}] = DenoiserSpec(blocks=(...), guidance=...)` or `spec:` in the "
        f"deployment's YAML, then run `reins-serve models check`. Known: {', '.join(sorted(SPECS))}."
    )


def denoisers_of(pipeline: Pipeline) -> dict[str, Denoiser]:
    """A pipeline's denoisers by attribute: one, or two experts that share the steps.

    Raises:
        ReinsError: it has none, or is of a class that cannot be steered whatever its denoiser.
    """
    refused = REFUSED_PIPELINES.get(type(pipeline).__name__)
    if refused:
        raise ReinsError(f"{type(pipeline).__name__} cannot be steered: {refused}.")
    found = {name: getattr(pipeline, name, None) for name in DENOISERS}
    present = {name: denoiser for name, denoiser in found.items() if denoiser is not None}
    if not present:
        unet = OTHERS.get(type(getattr(pipeline, "unet", None)).__name__, "")
        raise ReinsError(
            f"{type(pipeline).__name__} has no video transformer ({' or '.join(DENOISERS)}): it cannot be steered. {unet}".strip()
        )
    return present


def blocks_of(denoiser: Denoiser) -> list[torch.nn.Module]:
    """The transformer blocks on the video path of one denoiser, first to last."""
    spec = spec_of(denoiser)
    blocks: list[torch.nn.Module] = []
    for name in spec.blocks:
        part = getattr(denoiser, name, None)
        if part is None:
            raise ReinsError(f"{type(denoiser).__name__} has no block list {name!r}: correct its entry in SPECS.")
        blocks.extend(part)
    return blocks[: len(blocks) - int(denoiser.config[spec.decoder])] if spec.decoder else blocks


def path_of(pipeline: Pipeline) -> list[tuple[str, torch.nn.Module]]:
    """Every block on the video path with its denoiser's attribute. Two experts are numbered on, the second after the first."""
    return [(name, block) for name, denoiser in denoisers_of(pipeline).items() for block in blocks_of(denoiser)]


def middle_blocks(pipeline: Pipeline) -> tuple[int, ...]:
    """The block at half of the depth of each denoiser: where the paper steers."""
    lengths = [len(blocks_of(denoiser)) for denoiser in denoisers_of(pipeline).values()]
    return tuple(sum(lengths[:place]) + length // 2 for place, length in enumerate(lengths))


def width_of(pipeline: Pipeline) -> int:
    """D, the width of the video tokens, from the denoisers' configuration. Raises ReinsError where experts differ."""
    widths = {_width(denoiser) for denoiser in denoisers_of(pipeline).values()}
    if len(widths) != 1:
        raise ReinsError(f"The experts of this pipeline differ in width ({sorted(widths)}): that is not offered.")
    return widths.pop()


def _width(denoiser: Denoiser) -> int:
    field = spec_of(denoiser).width
    fields = (field,) if field else ("num_attention_heads", "attention_head_dim")
    missing = [name for name in fields if name not in denoiser.config]
    if missing:
        raise ReinsError(
            f"The configuration of {type(denoiser).__name__} has no {' and no '.join(missing)}: name the field that holds the "
            "width of its video tokens as `width` in its entry in SPECS."
        )
    return math.prod(int(denoiser.config[name]) for name in fields)
