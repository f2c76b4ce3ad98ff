"""`reins-serve jobs list|show|cancel` and `reins-serve status`: what a server has to do, and how it stands."""

import json
import os
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from reins_serve.console import console
from reins_serve.errors import ReinsError
from reins_serve.metrics import RUNNING, WAITING
from reins_serve.serving.client import Client
from reins_serve.serving.schema import Video

KEY_ENV = "REINS_API_KEY"
SERVER_HELP = f"Address of the server. A key that it needs is read from {KEY_ENV}."
DEFAULT_SERVER = "http://127.0.0.1:8000"

jobs = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, help="The jobs of a server.")

Server = Annotated[str, typer.Option("--server", envvar="REINS_SERVER", help=SERVER_HELP)]
Job = Annotated[str, typer.Argument(help="The job's id, video_….")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def connect(server: str) -> Client:
    """A client with the key of the environment; on a command line everybody could read it."""
    return Client(server, os.environ.get(KEY_ENV) or None)


@jobs.command("list")
def list_jobs(
    server: Server = DEFAULT_SERVER,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show your newest jobs, the latest first."""
    found: list[Video] = []
    with connect(server) as client:
        while len(found) < limit:
            page = client.jobs(min(100, limit - len(found)), found[-1].id if found else None)
            found += page.data
            if not page.has_more:
                break
    if as_json:
        print(json.dumps([video.model_dump() for video in found], indent=2))
        return
    table = Table("id", "model", "status", "made", "took", "steering", "what")
    for video in found:
        made = datetime.fromtimestamp(video.created_at).isoformat(" ", "seconds")
        took = "" if video.inference_time_s is None else f"{video.inference_time_s:.1f} s"
        table.add_row(video.id, video.model, _status(video), made, took, _steering(video), _what(video))
    console(200).print(table)


@jobs.command("show")
def show_job(job: Job, server: Server = DEFAULT_SERVER) -> None:
    """Print all that the server knows of a job, as JSON."""
    with connect(server) as client:
        print(client.retrieve(job).model_dump_json(indent=2))


@jobs.command("cancel")
def cancel_job(job: Job, server: Server = DEFAULT_SERVER) -> None:
    """Forget a job and its files; a running one stops at the next denoising step."""
    with connect(server) as client:
        print(client.delete(job).model_dump_json(indent=2))


def status(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Say whether a server is ready, what it serves, what steers it and how much waits; the exit status is 1 while it is not ready.

    With the admin key in REINS_API_KEY it also says which replica has which version.
    """
    with connect(server) as client:
        reason = client.not_ready()
        models = client.models()
        text = client.metrics()
        try:
            stored = {item["model"]: item for item in client.directions()}
        except ReinsError as error:
            if error.code not in ("admin_only", "invalid_api_key"):
                raise
            stored = {}
    waiting, running = (_by_model(text, metric.name) for metric in (WAITING, RUNNING))
    told = [
        {
            "model": model.id,
            "queued": waiting.get(model.id, 0),
            "in_progress": running.get(model.id, 0),
            "direction": None if model.direction is None else model.direction.model_dump(),
            "steering_required": model.steering_required,
            "store": stored.get(model.id),
        }
        for model in models
    ]
    if as_json:
        print(json.dumps({"ready": reason is None, "reason": reason, "models": told}, indent=2))
    else:
        _print_status(server, reason, told)
    if reason is not None:
        raise typer.Exit(1)


def generate_there(server: str, body: dict[str, Any], out: Path) -> Video:
    """Have a server make a clip, with a progress bar, and write it to `out`; Ctrl-C cancels the job.

    Raises:
        ReinsError: the server refuses it, or the job fails; says why.
    """
    with connect(server) as client, Progress(transient=True, console=Console(stderr=True)) as progress:
        job = client.create(body)
        bar = progress.add_task("queued", total=100)
        try:
            for event in client.follow(job.id):
                ahead = f" ({event.queue_position} before it)" if event.queue_position else ""
                progress.update(bar, description=event.status.replace("_", " ") + ahead, completed=event.progress)
        except KeyboardInterrupt:
            client.delete(job.id)
            raise ReinsError(f"Cancelled; the job {job.id} is deleted.") from None
        if event.status == "deleted":
            raise ReinsError(f"The job {job.id} was deleted by somebody else.")
        video = client.retrieve(job.id)
        if video.error is not None:
            raise ReinsError(f"The job {job.id} failed: {video.error.message} [{video.error.code}]")
        client.download(job.id, out)
        return video


def _by_model(text: str, name: str) -> dict[str, int]:
    """The samples of a gauge that has a label `model`."""
    families = (family for family in text_string_to_metric_families(text) if family.name == name)
    return {sample.labels["model"]: int(sample.value) for family in families for sample in family.samples}


def _status(video: Video) -> str:
    if video.error is not None:
        return f"failed: {video.error.code}"
    return f"{video.progress} %" if video.status == "in_progress" else video.status


def _steering(video: Video) -> str:
    state = video.steering
    if state.steered is None:
        return f"{state.policy} (planned)"
    return f"{state.version} × {state.strength:g}" if state.steered else f"off: {state.reason}"


def _what(video: Video) -> str:
    return f"{video.size}, {video.seconds} s, {video.num_inference_steps} steps"


def _print_status(server: str, reason: str | None, told: list[dict[str, Any]]) -> None:
    print(f"{server}: ready" if reason is None else f"{server}: {reason}")
    table = Table("model", "waiting", "running", "direction", "strength", "replicas that have it")
    for model in told:
        live = model["direction"]
        name = "none" if live is None else f"{live['name']} {live['version']} ({live['sha256'][:12]})"
        strength = "" if live is None else f"{live['serving_strength']:g}"
        serving = (model["store"] or {}).get("serving") or {"replicas": []}
        counts = Counter(replica["live"] for replica in serving["replicas"])
        replicas = ", ".join(f"{(sha256 or 'none')[:12]}: {count}" for sha256, count in counts.items())
        table.add_row(model["model"], str(model["queued"]), str(model["in_progress"]), name, strength, replicas)
    console(200).print(table)
