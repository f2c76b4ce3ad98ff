"""`reins-serve models`: what the catalogue offers, and whether a checkpoint can be steered."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from reins_serve.console import console
from reins_serve.errors import ReinsError
from reins_serve.models import catalog
from reins_serve.models.catalog import CHECKPOINTS, CatalogEntry

app = typer.Typer(help=__doc__, pretty_exceptions_show_locals=False)


@app.callback(invoke_without_command=True)
def list_models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List the checkpoints of the catalogue; a question mark stands behind what could not be confirmed."""
    if context.invoked_subcommand is not None:
        return
    entries = list(catalog.entries().values())
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], indent=2, default=str))
        return
    table = Table("model", "tasks", "denoiser", "clip", "fps", "steps", "weights", "GPU", "licence", "commercial use")
    for entry in entries:
        table.add_row(*_row(entry))
    console(200).print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name in the catalogue.")]) -> None:
    """Show everything that the catalogue says of one checkpoint, as JSON."""
    print(json.dumps(_facts(catalog.get(name)), indent=2, default=str))


@app.command()
def check(
    checkpoint: Annotated[str, typer.Argument(help="Name in the catalogue, local folder, or hub id.")],
    task: Annotated[
        str | None, typer.Option(help="text-to-video or image-to-video; default: the first it does.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Width of the proof's clips; default: the catalogue's smallest.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Height, likewise.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames, likewise.")] = None,
    arguments: Annotated[str, typer.Option(help="Further arguments of the call, as a JSON object.")] = "{}",
    max_batch: Annotated[int | None, typer.Option(help="1 for a pipeline that makes one clip a call.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the catalogue's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object.")] = False,
) -> None:
    """Load a checkpoint and run the start-up proof on it, with random directions of every kind at half depth."""
    from reins_serve.models.loading import load
    from reins_serve.models.options import LoadingOptions
    from reins_serve.plugin import attach
    from reins_serve.steering.trial import trial_directions

    entry = _resolve(checkpoint)
    shape = {"width": width, "height": height, "num_frames": frames}
    entry = _fixed(entry, {name: value for name, value in shape.items() if value is not None})
    entry = replace(entry, arguments={**entry.arguments, **_object(arguments)}, max_batch=max_batch or entry.max_batch)
    catalog.register(entry)
    options = LoadingOptions.model_validate({"device": device, "dtype": dtype, "allow_unverified": True})
    pipeline = load(entry, options, task=task)
    steering = attach(pipeline, model=entry.name, directions=trial_directions(pipeline, _token_norms(pipeline, entry)))
    proofs = {name: asdict(proof) for name, proof in steering.proof.items()}
    if as_json:
        print(json.dumps({"checkpoint": checkpoint, "base": steering.base.model_dump(), "proof": proofs}, indent=2))
        return
    base = steering.base
    out = console(160)
    out.print(f"{checkpoint}: {type(pipeline).__name__}, {base.denoiser_class} ({base.denoiser}), {base.num_blocks} blocks x "
                  f"{base.width}, fingerprint {base.fingerprint}", highlight=False)  # fmt: skip
    table = Table("direction", "block", "pushes = plan", "error against float64", "displacement", "change of latents")
    for name, proof in steering.proof.items():
        blocks = ", ".join(map(str, steering.directions[name].blocks))
        row = (f"{proof.applications}", f"{proof.error:.1e}", f"{proof.displacement:.3g}", f"{proof.latent_change:.3g}")
        table.add_row(name, blocks, *row)
    out.print(table)
    clips = "two clips of one call are independent" if entry.max_batch != 1 else "one clip a call"
    out.print(f"proved: off is bit-identical, the window and the branches are those of the plan, {clips}.")


@app.command()
def pin(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names in the catalogue; default: all from the hub.")
    ] = None,
    file: Annotated[Path, typer.Option(help="Catalogue file whose revisions are rewritten.")] = CHECKPOINTS,
) -> None:
    """Ask the hub for the present commit of each checkpoint, and write it into the catalogue. Needs the network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    text = file.read_text()
    listed = re.findall(r"^  - name: (\S+)$", text, flags=re.MULTILINE)
    unknown = set(names or ()) - set(listed)
    if unknown:
        raise ReinsError(f"{file} has no checkpoint named {', '.join(sorted(unknown))}; it has: {', '.join(listed)}.")
    for name in names or listed:
        source = str(catalog.get(name).source)
        try:
            revision = HfApi().model_info(source).sha
        except (HfHubHTTPError, OSError) as error:
            raise ReinsError(
                f"The hub does not tell the revision of {source} ({error}). Nothing was written."
            ) from error
        entry = rf"(^  - name: {re.escape(name)}$(?:\n    .*)*?\n    revision: )\S+"
        text = re.sub(entry, rf"\g<1>{revision}", text, count=1, flags=re.MULTILINE)
        print(f"{name}: {source}@{revision}")
    file.write_text(text)


def _facts(entry: CatalogEntry) -> dict[str, Any]:
    return asdict(entry) | {"default_block": entry.default_block, "source": str(entry.source)}


def _row(entry: CatalogEntry) -> list[str]:
    def told(text: str, *fields: str) -> str:
        return text + "?" * bool(set(fields) & set(entry.unverified))

    experts = f"{entry.experts} x " if entry.experts > 1 else ""
    depth = f"{experts}{entry.num_blocks} x {entry.hidden_width}"
    weights = "" if entry.weight_bytes is None else f"{entry.weight_bytes / 1e9:.1f} GB"
    memory = "" if entry.gpu_memory_gib is None else f"{entry.gpu_memory_gib:g} GiB"
    short = {"text-to-video": "T2V", "image-to-video": "I2V"}
    return [
        entry.name,
        " ".join(short.get(task, task) for task in entry.tasks),
        told(depth, "num_blocks", "hidden_width"),
        told(f"{entry.width}x{entry.height}x{entry.num_frames}", "width", "height", "num_frames"),
        told(f"{entry.fps:g}", "fps"),
        told(str(entry.num_inference_steps), "num_inference_steps"),
        told(weights, "weight_bytes"),
        told(memory, "gpu_memory_gib"),
        told(entry.licence, "licence"),
        told(entry.commercial_use, "commercial_use"),
    ]


def _resolve(checkpoint: str) -> CatalogEntry:
    """The entry of a name or source; for another folder or id, the entry of its pipeline's family with another source."""
    known = catalog.entries()
    for entry in known.values():
        if checkpoint in (entry.name, str(entry.source)):
            return entry
    from diffusers import DiffusionPipeline

    try:
        kind = DiffusionPipeline.load_config(checkpoint)["_class_name"]
    except (OSError, KeyError) as error:
        raise ReinsError(
            f"{checkpoint} is no name of the catalogue, no folder in diffusers layout and no hub id that can be reached."
        ) from error
    for entry in known.values():
        for task, name in entry.pipelines.items():
            if name == kind:
                return replace(entry, name=checkpoint, source=checkpoint, revision=None, pipelines={task: name})
    return replace(catalog.EMBEDDED, name=checkpoint, source=checkpoint, pipelines={"text-to-video": kind},
                   arguments={}, pipeline_frames_offset=0)  # fmt: skip


def _fixed(entry: CatalogEntry, shape: dict[str, int]) -> CatalogEntry:
    """The entry with one clip as the only one that it makes, where the user says a shape."""
    if not shape:
        return entry
    names = ("width", "height", "num_frames")
    width, height, frames = (shape.get(name, own) for name, own in zip(names, entry.smallest, strict=True))
    return replace(
        entry, width=width, height=height, fixed_size=True, num_frames=frames, min_frames=frames, max_frames=frames
    )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ReinsError(
            f"--arguments must be a JSON object, such as '{{\"max_sequence_length\": 128}}'; it is {text!r}."
        )
    return value


def _token_norms(pipeline: Any, entry: CatalogEntry) -> list[float]:
    """Median norm of a token at half depth, from a short clip: the push's length must be in the model's own scale."""
    from reins_serve.calibration.capture import Capture
    from reins_serve.models.spec import middle_blocks
    from reins_serve.steering.direction import Window
    from reins_serve.steering.proof import clip_latents, prompts_of

    blocks = middle_blocks(pipeline)
    with Capture(pipeline, prompts_of(entry), blocks, Window(start=0, end=1)) as capture:
        clip_latents(pipeline, entry, capture.arguments)
    return [float(norm) for norm in capture.activations.token_norm[0]]
