"""How a checkpoint is loaded and accelerated: diffusers' own switches as one strict configuration, and where each was run.

A word that is not known here is an error. `SWITCHES` says of each switch where steering was proved with it by this
project's tests; one that was not run needs `allow_unverified: true`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from reins_serve.errors import ReinsError

DType = Literal["float32", "bfloat16", "float16"]
CACHES = {
    "first_block": "FirstBlockCacheConfig",
    "mag": "MagCacheConfig",
    "pyramid_attention": "PyramidAttentionBroadcastConfig",
    "taylorseer": "TaylorSeerCacheConfig",
    "sea": "SeaCacheConfig",
    "faster": "FasterCacheConfig",
}

# Where each switch was run with steering proved: "cpu", "gpu", "not run", or "refused" (`REFUSED` says why).
SWITCHES: Mapping[str, Literal["cpu", "gpu", "refused", "not run"]] = {
    "device.cpu": "cpu",
    "device.cuda": "not run",
    "dtype.float32": "cpu",
    "dtype.bfloat16": "cpu",
    "dtype.float16": "cpu",
    "device_map.cpu": "cpu",
    "device_map.cuda": "not run",
    "device_map.balanced": "not run",
    "attention_backend.native": "cpu",
    "attention_backend._native_math": "cpu",
    "compile.regional": "cpu",
    "compile.whole": "cpu",
    "compile.backend.eager": "cpu",
    "compile.backend.aot_eager": "cpu",
    "compile.backend.inductor": "cpu",
    "compile.inductor_mode.reduce-overhead": "not run",
    "compile.inductor_mode.max-autotune": "not run",
    "compile.inductor_mode.max-autotune-no-cudagraphs": "not run",
    "cache.first_block": "cpu",
    "cache.mag": "cpu",
    "cache.pyramid_attention": "cpu",
    "cache.taylorseer": "cpu",
    "cache.sea": "cpu",
    "cache.faster": "refused",
    "offload.model": "not run",
    "offload.sequential": "not run",
    "offload.group.block_level": "cpu",
    "offload.group.leaf_level": "cpu",
    "offload.group.use_stream": "not run",
    "vae_tiling": "cpu",
    "vae_slicing": "cpu",
    "layerwise_casting.float8_e4m3fn": "cpu",
    "layerwise_casting.float8_e5m2": "cpu",
    "quantization.torchao": "cpu",
    "quantization.gguf": "cpu",
    "quantization.bitsandbytes_8bit": "not run",
    "quantization.bitsandbytes_4bit": "not run",
    "context_parallel.ulysses": "cpu",
    "context_parallel.ring": "not run",
}
REFUSED: Mapping[str, str] = {
    "cache.faster": "it leaves the unconditional rows out of some calls and guesses them from steered conditional ones, and "
    "with is_guidance_distilled it fails after the reset that steering needs at the edge of its window",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CompileOptions(_Strict):
    """`torch.compile` of the denoisers.

    Attributes:
        mode: `regional`: each transformer block, quick to compile; `whole`: the denoiser in one.
        fullgraph, dynamic, backend: As in `torch.compile`.
        inductor_mode: `torch.compile`'s `mode`, such as `reduce-overhead` (CUDA graphs).
    """

    mode: Literal["regional", "whole"] = "regional"
    fullgraph: bool = False
    dynamic: bool | None = None
    backend: str = "inductor"
    inductor_mode: str | None = None


class CacheOptions(_Strict):
    """A step cache. `options` are fields of diffusers' configuration class of that kind, such as `threshold`.

    Steering resets the cache at each edge of the window, and `mag` then counts its steps from 0 again. What a cache leaves out
    it decides for a whole batch, so a clip may depend on those that share its call.
    """

    kind: Literal["first_block", "mag", "pyramid_attention", "taylorseer", "sea", "faster"]
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _buildable(self) -> "CacheOptions":
        self.build()
        return self

    def build(self, **callbacks: Any) -> Any:
        """A new configuration object of diffusers. `callbacks` fill those of its fields that it has."""
        import diffusers  # seconds, which a process that loads no model does without

        cls = getattr(diffusers, CACHES[self.kind])
        hints = get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls) if not f.name.startswith("_")]
        offered = [name for name in names if not name.endswith("_callback")]
        values: dict[str, Any] = {name: callback for name, callback in callbacks.items() if name in names}
        for name, value in self.options.items():
            if name not in offered:
                raise ValueError(f"{cls.__name__} has no option {name!r}; it has: {', '.join(offered)}")
            if name.endswith("_dtype") and isinstance(value, str):
                value = getattr(torch, value, value)
            adapter = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
            try:
                values[name] = adapter.validate_python(value)
            except ValidationError as error:
                raise ValueError(f"{cls.__name__}.{name}: {error.errors()[0]['msg']}") from error
        return cls(**values)


class OffloadOptions(_Strict):
    """Weights wait on the CPU (or on a disk) and visit `device` when they are used.

    Attributes:
        kind: `model`: one component at a time; `sequential`: one layer at a time; `group`: groups of blocks or layers.
        offload_type, num_blocks_per_group, non_blocking, use_stream, record_stream, low_cpu_mem_usage, offload_to_disk_path,
        exclude_modules: As in diffusers' `enable_group_offload`; for `group` only.
    """

    kind: Literal["model", "sequential", "group"]
    offload_type: Literal["block_level", "leaf_level"] = "block_level"
    num_blocks_per_group: int | None = Field(None, ge=1)
    non_blocking: bool = False
    use_stream: bool = False
    record_stream: bool = False
    low_cpu_mem_usage: bool = False
    offload_to_disk_path: str | None = None
    exclude_modules: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _sensible(self) -> "OffloadOptions":
        fields = type(self).model_fields.items()
        extra = [name for name, field in fields if name != "kind" and getattr(self, name) != field.default]
        if self.kind != "group" and extra:
            raise ValueError(f"{', '.join(extra)}: for kind: group only")
        if self.kind == "group" and self.offload_type == "block_level" and self.num_blocks_per_group is None:
            raise ValueError("block_level offload needs num_blocks_per_group")
        return self


class QuantizationOptions(_Strict):
    """Weights in fewer bits. A direction belongs to the weights as loaded: fit it on the quantised model.

    Attributes:
        kind: torchao or bitsandbytes quantise while loading; gguf reads a file of quantised weights.
        options: Arguments of diffusers' configuration class of that kind. For torchao, `quant_type` is the name of a class in
            `torchao.quantization`, such as `Int8WeightOnlyConfig`. For gguf, `file` names the file by component.
        components: What is quantised.
    """

    kind: Literal["torchao", "bitsandbytes_8bit", "bitsandbytes_4bit", "gguf"]
    options: dict[str, Any] = Field(default_factory=dict)
    components: tuple[str, ...] = ("transformer", "transformer_2")


class ContextParallelOptions(_Strict):
    """The processes that share one clip's tokens, by Ulysses attention or by ring attention."""

    ulysses_degree: int = Field(1, ge=1)
    ring_degree: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _parallel(self) -> "ContextParallelOptions":
        if self.ulysses_degree * self.ring_degree < 2:
            raise ValueError("give ulysses_degree or ring_degree; the product is the number of processes, at least 2")
        return self


class LoadingOptions(_Strict):
    """How a checkpoint becomes a running pipeline. `load` applies the first group, `accelerate` the second, after `attach`.

    Attributes:
        dtype: Floating type of the weights; None: the catalogue entry's.
        device: Where the pipeline runs: `cpu`, `cuda` or `cuda:N`.
        device_map: diffusers' placement of the components while loading, in the place of `device`.
        attention_backend: Name for the denoisers' `set_attention_backend`.
        vae_tiling, vae_slicing: Decode in tiles, or one clip at a time.
        layerwise_casting: Type in which the denoisers' weights wait between their uses, such as `float8_e4m3fn`;
            switched on by `accelerate`, so that a direction knows the weights as they were stored.
        quantization: Weights in fewer bits.
        compile, cache, offload, context_parallel: What `accelerate` switches on, see there.
        allow_unverified: Also use switches that `SWITCHES` says were not run.
    """

    dtype: DType | None = None
    device: str = "cpu"
    device_map: Literal["cpu", "cuda", "balanced"] | None = None
    attention_backend: str | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False
    layerwise_casting: Literal["float8_e4m3fn", "float8_e5m2"] | None = None
    quantization: QuantizationOptions | None = None

    compile: CompileOptions | None = None
    cache: CacheOptions | None = None
    offload: OffloadOptions | None = None
    context_parallel: ContextParallelOptions | None = None

    allow_unverified: bool = False

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        try:
            return str(torch.device(device))
        except RuntimeError as error:
            raise ValueError(f"{device!r} is no device; say cpu, cuda or cuda:N") from error

    @model_validator(mode="after")
    def _compatible(self) -> "LoadingOptions":
        if self.device_map is not None and (self.device != "cpu" or self.offload is not None):
            raise ValueError("device_map stands alone: leave device and offload out")
        if self.quantization is not None and self.layerwise_casting is not None:
            raise ValueError("quantization and layerwise_casting both choose how weights are stored: leave one out")
        return self


def switches_of(options: LoadingOptions, dtype: str) -> list[str]:
    """The names, as in `SWITCHES`, of all that a configuration uses; `dtype` is the floating type that it comes to."""
    used = [f"dtype.{dtype}"]
    if options.device_map is None:
        used.append(f"device.{torch.device(options.device).type}")
    for name in ("device_map", "attention_backend", "layerwise_casting"):
        if (value := getattr(options, name)) is not None:
            used.append(f"{name}.{value}")
    used += [name for name in ("vae_tiling", "vae_slicing") if getattr(options, name)]
    if options.quantization is not None:
        used.append(f"quantization.{options.quantization.kind}")
    if options.compile is not None:
        used += [f"compile.{options.compile.mode}", f"compile.backend.{options.compile.backend}"]
        if options.compile.inductor_mode not in (None, "default"):
            used.append(f"compile.inductor_mode.{options.compile.inductor_mode}")
    if options.cache is not None:
        used.append(f"cache.{options.cache.kind}")
    if options.offload is not None:
        group = options.offload.kind == "group"
        used.append(f"offload.group.{options.offload.offload_type}" if group else f"offload.{options.offload.kind}")
        if options.offload.use_stream:
            used.append("offload.group.use_stream")
    if options.context_parallel is not None:
        for name in ("ulysses", "ring"):
            if getattr(options.context_parallel, f"{name}_degree") > 1:
                used.append(f"context_parallel.{name}")
    return used


def check_switches(options: LoadingOptions, dtype: str) -> None:
    """Refuse what is refused everywhere, and what was never run unless the operator allows it. Raises ReinsError."""
    used = switches_of(options, dtype)
    for name in used:
        if name in REFUSED:
            raise ReinsError(f"{name} cannot be used with steering: {REFUSED[name]}. Leave it out.", param="loading")
    unverified = [name for name in used if SWITCHES.get(name, "not run") == "not run"]
    if unverified and not options.allow_unverified:
        raise ReinsError(
            f"No test has proved steering with {', '.join(unverified)}. Say `loading.allow_unverified: true` to use it; the "
            "replica then still proves itself before it is ready. Or leave it out.",
            param="loading",
        )
