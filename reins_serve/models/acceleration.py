"""What makes a steered pipeline faster or smaller, after `attach`: eight-bit storage, caches, compilation, offload, sharing.

In that order: a step cache lies outside of the steering hooks, so that an output it uses again holds its push once;
compilation takes both in; offload and context parallelism move what they find.
"""

import inspect
import re
from collections.abc import Iterator

import diffusers
import torch
import torch.distributed as dist
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.taylorseer_cache import _TRANSFORMER_BLOCK_IDENTIFIERS

from reins_serve.errors import ReinsError
from reins_serve.models.options import CacheOptions, CompileOptions, LoadingOptions, OffloadOptions, check_switches
from reins_serve.models.spec import Denoiser, Pipeline, blocks_of, denoisers_of, spec_of

RECOMPILE_LIMIT = 64
# diffusers gives its text attention a mask for each head, where under Ulysses a process has a part of the heads (`shared_attention`
# has LTX's in another way).
MASKED_BY_HEAD = "LTX2VideoTransformer3DModel"
BLOCK_CACHES = ("first_block", "mag", "sea")  # these leave whole blocks out; the others, parts of a block


def accelerate(pipeline: Pipeline, options: LoadingOptions) -> None:
    """Switch on what the options say for every denoiser of a pipeline that `attach` has proved. `confirm` it afterwards.

    Raises:
        ReinsError: a class cannot do it, or it cannot be done with steering; says why, and nothing has been changed.
    """
    denoisers = denoisers_of(pipeline)
    check_switches(options, str(next(iter(denoisers.values())).dtype).removeprefix("torch."))
    refusal = next(_refusals(pipeline, options), None)
    if refusal is not None:
        raise ReinsError(f"{refusal} Leave it out of `loading`, or choose another.", param="loading")
    for denoiser in denoisers.values():
        if options.layerwise_casting is not None:  # not on loading: a direction knows the weights as they were stored
            storage = getattr(torch, options.layerwise_casting)
            denoiser.enable_layerwise_casting(storage_dtype=storage, compute_dtype=denoiser.dtype)
        if options.cache is not None:
            denoiser.enable_cache(options.cache.build(current_timestep_callback=lambda: pipeline.current_timestep))
        if options.compile is not None:
            _compile(denoiser, options.compile)
    if options.offload is not None:
        _offload(pipeline, options.offload, torch.device(options.device))
    for denoiser in denoisers.values():
        if options.context_parallel is not None:
            from reins_serve.models.shared_attention import prepare_sharing  # it imports all of diffusers' denoisers

            shared = diffusers.ContextParallelConfig(**options.context_parallel.model_dump())
            denoiser.enable_parallelism(config=shared, cp_plan=prepare_sharing(denoiser))


def _compile(denoiser: Denoiser, options: CompileOptions) -> None:
    arguments = options.model_dump(include={"fullgraph", "dynamic", "backend"})
    if options.inductor_mode is not None:
        arguments["mode"] = options.inductor_mode
    # A batch size has four graphs: both branches, with and without a push. torch gives up compiling after eight.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    if options.mode == "whole":
        denoiser.compile(**arguments)
    elif getattr(denoiser, "_repeated_blocks", None):
        denoiser.compile_repeated_blocks(**arguments)
    else:
        for block in blocks_of(denoiser):
            block.compile(**arguments)


def _offload(pipeline: Pipeline, options: OffloadOptions, device: torch.device) -> None:
    if options.kind == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif options.kind == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        arguments = options.model_dump(exclude={"kind", "exclude_modules"})
        pipeline.enable_group_offload(
            onload_device=device, exclude_modules=list(options.exclude_modules) or None, **arguments
        )


def _refusals(pipeline: Pipeline, options: LoadingOptions) -> Iterator[str]:
    """What this pipeline cannot do, as sentences."""
    if options.offload is not None and torch.device(options.device).type == "cpu":
        if options.offload.kind != "group":
            yield f"{options.offload.kind} offload moves weights to an accelerator, and the device is the CPU."
        if options.offload.use_stream:
            yield "Group offload with a stream needs an accelerator, and the device is the CPU."
    if options.compile is not None and options.compile.backend not in torch._dynamo.list_backends(exclude_tags=()):
        yield f"torch.compile has no backend {options.compile.backend!r}."
    if options.compile is not None and options.compile.fullgraph and options.cache is not None:
        yield "A step cache decides in Python what it leaves out, so compile.fullgraph is not possible."
    for denoiser in denoisers_of(pipeline).values():
        if options.cache is not None:
            yield from _cache_refusals(pipeline, denoiser, options.cache)
        if options.context_parallel is not None:
            yield from _parallel_refusals(denoiser, options)


def _cache_refusals(pipeline: Pipeline, denoiser: Denoiser, options: CacheOptions) -> Iterator[str]:
    kind, name, name_of_pipeline = options.kind, type(denoiser).__name__, type(pipeline).__name__
    source = inspect.getsource(type(pipeline).__call__)
    if not hasattr(denoiser, "enable_cache"):
        yield f"{name} has no step caches in diffusers."
    if kind == "pyramid_attention":
        if spec_of(denoiser).guidance != "batched" or source.count("cache_context(") > 1:
            yield (
                f"{name_of_pipeline} calls {name} more than once in a step, and a pyramid_attention cache would give one call "
                "the attention of another."
            )
        if not hasattr(pipeline, "current_timestep"):
            yield f"{name_of_pipeline} does not tell its timestep, which a pyramid_attention cache goes by."
        return
    if "cache_context(" not in source:
        yield f"{name_of_pipeline} does not tell its calls of {name} apart, as a {kind} cache needs."
    if kind == "taylorseer" and not _matched(denoiser, options):
        yield f"A taylorseer cache finds nothing to cache in {name}: set its cache_identifiers, or use_lite_mode."
    if kind in BLOCK_CACHES:
        for block in {type(block) for block in blocks_of(denoiser)}:
            try:
                TransformerBlockRegistry.get(block)
            except ValueError:
                yield f"diffusers does not know how a {kind} cache would leave out a {block.__name__}."
        if spec_of(denoiser).decoder is not None:
            yield f"{name} ends in a decoder that begins from the input again, and a {kind} cache adds what the path changed."
    if kind == "sea":
        config = denoiser.config
        same = config.get("in_channels") == config.get("out_channels")
        if name != "WanTransformer3DModel" or not same or '"sigma":' not in source:
            yield "A sea cache can read the latents and the noise level of Wan's text-to-video pipelines only."


def _matched(denoiser: Denoiser, options: CacheOptions) -> bool:
    """Whether a taylorseer cache would sit on any module. Its default names end in `attn`, which many classes number."""
    config = options.build()
    names = (*(config.skip_predict_identifiers or ()), *(config.cache_identifiers or _TRANSFORMER_BLOCK_IDENTIFIERS))
    return config.use_lite_mode or any(re.fullmatch(n, module) for n in names for module, _ in denoiser.named_modules())


def _parallel_refusals(denoiser: Denoiser, options: LoadingOptions) -> Iterator[str]:
    assert options.context_parallel is not None
    name = type(denoiser).__name__
    if getattr(denoiser, "_cp_plan", None) is None:
        yield f"diffusers has no plan by which {name} could share its tokens between processes (context_parallel)."
    if name == MASKED_BY_HEAD:
        yield f"diffusers masks all heads of {name} in each process, which fails under context_parallel."
    if options.context_parallel.ring_degree > 1 and options.attention_backend in (None, "native"):
        yield "context_parallel by ring_degree needs an attention_backend that returns log-sum-exps; native does not."
    if options.cache is not None and options.cache.kind == "first_block":
        yield "Under context_parallel each process would decide for itself what a first_block cache leaves out."
    wanted = options.context_parallel.ulysses_degree * options.context_parallel.ring_degree
    found = dist.get_world_size() if dist.is_initialized() else 1
    if found != wanted:
        yield f"context_parallel is set to {wanted} processes, and there are {found}: start them with torchrun."
