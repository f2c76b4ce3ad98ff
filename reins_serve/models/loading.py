"""A checkpoint becomes a pipeline on a device; safetensors only.

Everything here comes before `attach`; what must come after it is in `acceleration.py`.
"""

import logging
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from reins_serve.errors import ReinsError
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.options import LoadingOptions, QuantizationOptions, check_switches
from reins_serve.models.spec import Pipeline, denoisers_of


def load(
    entry: CatalogEntry,
    options: LoadingOptions = LoadingOptions(),
    *,
    task: str | None = None,
    components: Mapping[str, Any] | None = None,
) -> Pipeline:
    """Load a catalogue entry's pipeline. Attach steering to it before `accelerate`.

    With `options.offload` the weights stay on the CPU, and `attach` makes its proof there.

    Args:
        task: One of the entry's tasks, which chooses the pipeline's class; None: the first.
        components: Parts that are loaded already, by the pipeline's name for them; they are passed to `from_pretrained`.

    Raises:
        ReinsError: a switch is refused or was not run, the entry has no such task, the checkpoint is missing, incomplete or
            not in safetensors, or its class cannot do what the options say.
    """
    dtype = options.dtype or entry.dtype
    check_switches(options, dtype)
    kind = _pipeline_class(entry, task)
    arguments: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True, "revision": entry.revision}
    if options.device_map is not None:
        arguments["device_map"] = options.device_map
    parts = dict(components or {})
    if options.quantization is not None:
        if options.quantization.kind == "gguf":
            parts |= _from_gguf(entry, kind, options.quantization, arguments["dtype"])
        else:
            arguments["quantization_config"] = _quantization(options.quantization)
    try:
        pipeline = kind.from_pretrained(str(entry.source), **arguments, **parts)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ReinsError(
            f"The checkpoint of {entry.name} could not be loaded from {entry.source} as {kind.__name__}: {error}. Check that "
            "the folder or repository is complete, in diffusers layout, with weights in safetensors."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if entry.pipeline_frames_offset:
        logging.getLogger(type(pipeline).__module__).addFilter(_not_about_rounding)
    _shift(pipeline, entry)
    _switch_vae(pipeline, options, entry)
    for denoiser in denoisers_of(pipeline).values():
        if options.attention_backend is not None:
            _set_attention_backend(denoiser, options.attention_backend)
    if options.device_map is None and options.offload is None:
        pipeline.to(options.device)
    return pipeline


def _pipeline_class(entry: CatalogEntry, task: str | None) -> Any:
    """The class that an entry names for a task; `DiffusionPipeline`, which reads it from the checkpoint, if diffusers has none."""
    task = entry.tasks[0] if task is None else task
    if task not in entry.tasks:
        raise ReinsError(f"{entry.name} does not do {task}; its tasks are: {', '.join(entry.tasks)}.", param="task")
    return getattr(diffusers, entry.pipelines[task], diffusers.DiffusionPipeline)


def _shift(pipeline: Pipeline, entry: CatalogEntry) -> None:
    """Give the schedule the entry's flow shift, under the name that the scheduler has for it."""
    scheduler = pipeline.scheduler
    name = next((name for name in ("flow_shift", "shift") if name in scheduler.config), None)
    if entry.flow_shift is not None and name is not None:
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, **{name: entry.flow_shift})


def _switch_vae(pipeline: Pipeline, options: LoadingOptions, entry: CatalogEntry) -> None:
    for name in ("tiling", "slicing"):
        if getattr(options, f"vae_{name}") or name in entry.vae:
            try:
                getattr(pipeline.vae, f"enable_{name}")()
            except (AttributeError, NotImplementedError) as error:
                raise ReinsError(
                    f"{type(pipeline.vae).__name__} cannot do vae_{name}; leave it out.", param="loading"
                ) from error


def _set_attention_backend(denoiser: Any, name: str) -> None:
    try:
        denoiser.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ReinsError(f"The attention backend {name!r} cannot be used here: {error}", param="loading") from error


def _quantization(options: QuantizationOptions) -> Any:
    """diffusers' configuration for quantisation while loading. Text encoders are transformers', with classes of their own."""
    arguments = dict(options.options)
    try:
        if options.kind == "torchao":
            import torchao.quantization

            named = arguments.pop("quant_type", "Int8WeightOnlyConfig")
            arguments["quant_type"] = getattr(torchao.quantization, named)()
        else:
            arguments.setdefault("load_in_8bit" if options.kind == "bitsandbytes_8bit" else "load_in_4bit", True)
        name = "TorchAoConfig" if options.kind == "torchao" else "BitsAndBytesConfig"
        mapping = {}
        for component in options.components:
            import transformers

            library = transformers if component.startswith("text_encoder") else diffusers
            mapping[component] = getattr(library, name)(**arguments)
        return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ReinsError(
            f"Quantisation by {options.kind} cannot be set up: {error}. Install its package, and correct the options.",
            param="loading",
        ) from error


def _from_gguf(entry: CatalogEntry, kind: Any, options: QuantizationOptions, dtype: torch.dtype) -> dict[str, Any]:
    """The components that are read from GGUF files."""
    files = options.options.get("file")
    if not isinstance(files, Mapping) or set(options.options) != {"file"}:
        raise ReinsError(
            "gguf needs `options: {file: {transformer: PATH}}`, a file for each component.", param="loading"
        )
    index = kind.load_config(str(entry.source), revision=entry.revision)
    try:
        return {
            component: getattr(diffusers, index[component][1]).from_single_file(
                str(file),
                quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
                config=str(entry.source),
                subfolder=component,
                dtype=dtype,
            )
            for component, file in files.items()
        }
    except (ImportError, OSError, KeyError, ValueError) as error:
        raise ReinsError(f"The GGUF files of {entry.name} cannot be loaded: {error}", param="loading") from error


def _not_about_rounding(record: logging.LogRecord) -> bool:
    """Drop Wan's warning that it rounds the number of frames: the catalogue counts on it, in every call."""
    return "num_frames - 1" not in record.getMessage()
