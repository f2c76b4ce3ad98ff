"""The command `reins-serve`: one clip in this process, a server, or the demonstration of what steering buys and costs."""

import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from reins_serve import cli_directions, cli_images, cli_models, cli_remote
from reins_serve.errors import ReinsError
from reins_serve.serving.config import find_file

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False, help=__doc__)
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_directions.app, name="directions")
app.add_typer(cli_remote.jobs, name="jobs")
app.command()(cli_remote.status)
DIRECTION = "directions/{model}/setpoint.safetensors"


def main() -> None:
    """Run the command; errors made on purpose become one line on standard error and exit status 1."""
    try:
        app()
    except ReinsError as error:
        Console(stderr=True).print(f"reins-serve: {error}", style="red", markup=False, highlight=False)
        raise SystemExit(1) from None


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the clip shall show.")],
    out: Annotated[Path, typer.Option(help="MP4 file to write.")] = Path("clip.mp4"),
    model: Annotated[
        str | None, typer.Option(help="Name in the catalogue; default: embedded, or the server's first.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Address of a server that makes the clip; default: this process makes it.")
    ] = None,
    direction: Annotated[
        Path | None, typer.Option(help="Direction file, in this process; default: the one that ships.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="A steering policy that the server offers.")] = None,
    strength: Annotated[float | None, typer.Option(help="Within the direction's range; default: its own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal clips.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="First frame, for models that continue one: PNG, JPEG or WebP.")
    ] = None,
) -> None:
    """Generate one steered clip, in this process without Ray or on a server, and print the record that proves its steering."""
    if not out.parent.is_dir():
        raise ReinsError(f"The folder {out.parent} does not exist; create it, or choose another --out.")
    seed = secrets.randbelow(2**31) if seed is None else seed
    if server is None:
        if policy is not None:
            raise ReinsError("Policies are a server's: name one with --server, or leave --policy out.")
        name, record = _generate_here(prompt, out, model or "embedded", direction, strength, seed, image)
    else:
        if direction is not None:
            raise ReinsError("A server steers with directions of its own: leave --direction out.")
        steering = {"policy": policy, "strength": strength}
        video = cli_remote.generate_there(
            server,
            {"prompt": prompt, "model": model, "seed": seed, "steering": steering, **cli_images.field_of(image)},
            out,
        )
        name, record = video.model, video.steering.model_dump()
    print(json.dumps({"file": str(out), "model": name, "seed": seed, "steering": record}, indent=2))


def _generate_here(
    prompt: str,
    out: Path,
    model: str,
    direction: Path | None,
    strength: float | None,
    seed: int,
    image: Path | None,
) -> tuple[str, dict[str, Any]]:
    """Make the clip in this process; the model's name and the record of its steering."""
    from reins_serve.models import catalog, generation
    from reins_serve.models.loading import load
    from reins_serve.models.video import write_mp4
    from reins_serve.plugin import attach
    from reins_serve.provenance import provenance

    entry = catalog.get(model)
    made_from = cli_images.task_of(entry, image)
    frame = cli_images.frame_of(entry, image)
    with Progress(transient=True) as progress:
        task = progress.add_task("loading", total=None)
        file = direction or find_file(DIRECTION.format(model=model))
        steering = attach(load(entry, task=made_from), model=model, directions=file)
        wanted = generation.request(entry, prompt, seed, **frame)
        progress.update(task, description="denoising", total=wanted.num_inference_steps)
        with steering.generation(
            strength=strength, on_step=lambda done, total: progress.update(task, completed=done, total=total)
        ) as g:
            frames = generation.generate(steering.pipeline, entry, [wanted], g.arguments)
    made = provenance(model, g.record, wanted, private=("prompt", "seed"))
    write_mp4(frames[0], out, entry.fps, made.tags)
    return model, asdict(g.record)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="MP4 file.")],
    trust: Annotated[
        Path | None, typer.Option(help="PEM file of the roots whose Content Credentials are trusted.")
    ] = None,
) -> None:
    """Print what a clip's file says of its making, as JSON: its tags, and its Content Credentials (C2PA) where it has some.

    Tags are what the file says; anybody can change them. Content Credentials are signed: the exit status is 1 where they do not
    hold, or where --trust is given and nobody trusted vouches for them.
    """
    from reins_serve import content_credentials, provenance

    made = provenance.read(file)
    try:
        credentials: dict[str, Any] | None = content_credentials.check(file, trust)
    except content_credentials.PackageMissing as error:
        if trust is not None:
            raise
        credentials = {"state": "not checked", "problems": [str(error)]}
    facts = None if made is None else {name: value for name, value in asdict(made).items() if value is not None}
    print(json.dumps({"file": str(file), "says": facts, "content_credentials": credentials}, indent=2))
    state = None if credentials is None else credentials["state"]
    if state == "invalid" or (trust is not None and state != "trusted"):
        raise typer.Exit(1)


@app.command()
def up(config: Annotated[Path, typer.Argument(help="Serve configuration, such as deployments/embedded.yaml.")]) -> None:
    """Start Ray here, serve a configuration, and stay until interrupted. `serve run CONFIG` does it on a cluster."""
    from reins_serve.serving.local import run_forever

    run_forever(config)


@app.command()
def recalibrate(
    config: Annotated[Path, typer.Argument(help="Configuration, such as directions/embedded/recalibrate.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for the direction, its report and what the stages keep.")],
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="Show that the gates refuse random labels.")
    ] = False,
    override: Annotated[
        str | None, typer.Option(help="Reason why a direction may serve although a gate failed.")
    ] = None,
    until: Annotated[str, typer.Option(help="Last stage: collect, fit, selection, evaluation or publish.")] = "publish",
) -> None:
    """Recompute a model's direction from fresh clips, on this machine or on the Ray cluster of RAY_ADDRESS.

    The exit status is 1 where a gate failed.
    """
    from reins_serve.calibration.command import run

    raise typer.Exit(run(config, out, shuffle_labels, override, until))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for clips, pictures and figures.")] = Path("demo-out"),
    n: Annotated[int, typer.Option(min=8, help="Prompts of each kind; a third of them from a first frame, too.")] = 72,
    port: Annotated[int, typer.Option(help="Port of the server on 127.0.0.1.")] = 8000,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up afterwards.")] = False,
) -> None:
    """Serve the harder embedded world and show over HTTP what steering buys and costs, off against on with the same seeds."""
    from reins_serve.demo import run

    run(out, n, port, keep)


if __name__ == "__main__":
    main()
