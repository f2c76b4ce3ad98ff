"""`reins-serve demo`: the harder embedded world behind the real server, its clips judged off against on, with the same seeds.

Every clip is asked for over HTTP, downloaded as MP4, decoded and judged: what is measured is what a client receives.
"""

import json
import secrets
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from reins_serve.demo.arms import Model, arms_of, models
from reins_serve.demo.clients import ask_all, step_time_ratio, until_ready
from reins_serve.demo.figures import in_all, summarise, table, write_pairs
from reins_serve.serving.config import ApplicationConfig, hash_key
from reins_serve.serving.local import served, wait_for_signal

TIMED_SHARE = 7  # one timed pair for so many prompts


def run(out: Path, n: int, port: int, keep: bool) -> None:
    """Run the demonstration and write `out/`: clips, `pairs.png` and `summary.json`. Raises ReinsError if a job fails."""
    console, started = Console(), time.perf_counter()
    if not console.is_terminal:
        console.width = 130  # a log has no width of its own; the table needs this much
    out.mkdir(parents=True, exist_ok=True)
    console.print("Making random control directions of the same mean displacement ...")
    shown = models(out / "controls")
    arms = arms_of(shown, n)
    admin_key = secrets.token_urlsafe(24)
    console.print("Starting Ray Serve ...")
    with served(_config(shown, out / "jobs", admin_key), port) as address:
        with httpx.Client(base_url=address, timeout=60) as http:
            until_ready(http)
            console.print(f"Ready at {address}: the models' steering is proved.")
            ratio = step_time_ratio(http, arms[0].prompts[0].text, admin_key, max(4, n // TIMED_SHARE))
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            ask_all(address, admin_key, arms, progress)
        summary = in_all({model.name: summarise(model, arms) for model in shown})
        summary |= {"step_time_ratio": ratio, "seconds": round(time.perf_counter() - started, 1)}
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        for model in shown:
            write_pairs(out / model.name, model, arms)
            console.print(table(model, summary))
        console.print(f"Clips, pairs.png and summary.json are in {out}/")
        if keep:
            _hold(console, address, admin_key)


def _config(shown: list[Model], folder: Path, admin_key: str) -> ApplicationConfig:
    entries = [
        {
            "name": model.name,
            "directions": dict(model.directions),
            "policy": {"policies": {name: {"direction": name, "admin_only": True} for name in model.admin}},
            "num_replicas": 2 if model.controls else 1,  # it makes several times as many clips
            "num_cpus": 0.5,  # two cores must do for all three
            "torch_threads": 1,
            "max_batch_size": 24,
            "max_batch_wait_ms": 20,
        }
        for model in shown
    ]
    return ApplicationConfig.model_validate(
        {"models": entries, "output_dir": str(folder), "admin_key_sha256": hash_key(admin_key)}
    )


def _hold(console: Console, address: str, admin_key: str) -> None:
    """Leave the server up and say how to talk to it."""
    console.print(
        f"\nThe server stays up. Ask for a clip, look at it, fetch it:\n"
        f"  curl -s {address}/v1/videos -H 'content-type: application/json' "
        '-d \'{"prompt": "a red square moving left at night with an explosion"}\'\n'
        f"  curl -s {address}/v1/videos/ID\n"
        f"  curl -s {address}/v1/videos/ID/content -o clip.mp4\n"
        f"  curl -s {address}/metrics\n"
        f"Steering off needs the admin key of this run: -H 'Authorization: Bearer {admin_key}' and "
        '"steering": {"policy": "off"}. Ctrl-C ends the server.',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    wait_for_signal()
