"""`reins-serve demo`: the embedded model behind the real server, its clips judged off against on, with the same seeds.

Every clip is asked for over HTTP, downloaded as MP4, decoded and judged: what is measured is what a client receives.
"""

import asyncio
import io
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from reins_serve.calibration.controls import mean_displacement, random_control
from reins_serve.calibration.statistics import Rate, psnr
from reins_serve.embedded.judge import JudgeA, JudgeB
from reins_serve.embedded.measure import attributes_right
from reins_serve.embedded.prompts import Prompt, prompts
from reins_serve.errors import ReinsError
from reins_serve.models.catalog import EMBEDDED
from reins_serve.models.generation import request
from reins_serve.models.loading import load
from reins_serve.models.video import contact_sheet, write_mp4
from reins_serve.plugin import Direction, attach
from reins_serve.serving.config import ApplicationConfig, find_file, hash_key
from reins_serve.serving.local import served, wait_for_signal

CONTROLS = 5
CONTROL_SHARE = 2  # each control draw gets half of the prompts: five draws are many clips already
WORKERS = 48  # two batches: one that runs, one that gathers
POLL_S = 0.5
JOB_TIMEOUT_S = 300
TIMED_PAIRS = 16
SEEDS = {"unsafe": 41_000_000, "benign": 42_000_000}
FILES = {"live": "directions/embedded/setpoint.safetensors", "add": "directions/embedded/add.safetensors"}


@dataclass
class Arm:
    """Clips of one kind of prompt under one policy: frames `[T, H, W, 3]` and the video objects, by prompt number."""

    policy: str | None
    kind: str
    share: int = 1  # one in `share` prompts is asked, the first ones
    frames: dict[int, np.ndarray] = field(default_factory=dict)
    videos: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def clips(self) -> np.ndarray:
        """uint8 `[N, T, H, W, 3]` in the prompts' order."""
        return np.stack([self.frames[number] for number in sorted(self.frames)])


Arms = dict[tuple[str | None, str], Arm]


def run(out: Path, n: int, port: int, keep: bool) -> None:
    """Run the demonstration and write `out/`: clips, `pairs.png` and `summary.json`. Raises ReinsError if a job fails."""
    console, started = Console(), time.perf_counter()
    if not console.is_terminal:
        console.width = 130  # a log has no width of its own; the table needs this much
    out.mkdir(parents=True, exist_ok=True)
    asked = {kind: prompts("evaluate", kind == "unsafe", n, seed=7) for kind in SEEDS}
    live = Direction.load(find_file(FILES["live"]))
    console.print("Making random control directions of the same mean displacement ...")
    controls = _controls(live, out / "controls")
    admin_key = secrets.token_urlsafe(24)
    config = _config(controls, out / "jobs", admin_key)
    console.print("Starting Ray Serve ...")
    with served(config, port) as address:
        with httpx.Client(base_url=address, timeout=60) as http:
            _until_ready(http)
            console.print(f"Ready at {address}: the model's steering is proved.")
            ratio = _step_time_ratio(http, asked["benign"][0].text, admin_key)
        arms: Arms = {(None, kind): Arm(None, kind) for kind in SEEDS}
        arms |= {(policy, kind): Arm(policy, kind) for policy in ("off", "add") for kind in SEEDS}
        arms |= {(name, "unsafe"): Arm(name, "unsafe", CONTROL_SHARE) for name in controls}
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            asyncio.run(_ask_all(address, admin_key, list(arms.values()), asked, progress))
        summary = _summarise(arms, asked, live, list(controls))
        summary |= {"step_time_ratio": ratio, "seconds": round(time.perf_counter() - started, 1)}
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        _write_pairs(out, arms, asked)
        console.print(_table(summary, n))
        console.print(f"Clips, pairs.png and summary.json are in {out}/")
        if keep:
            _hold(console, address, admin_key)


def _controls(live: Direction, folder: Path) -> dict[str, Path]:
    """Random controls on disk, matched to the live direction in mean displacement on clips of selection prompts."""
    middleware = attach(load(EMBEDDED), model=EMBEDDED.name, directions={"live": live})
    requests = [request(EMBEDDED, p.text, 40_000_000 + i) for i, p in enumerate(prompts("select", True, 48))]
    displacement = mean_displacement(middleware, EMBEDDED, requests, "live")
    paths = {}
    for seed in range(CONTROLS):
        paths[f"random-{seed}"] = folder / f"random-{seed}.safetensors"
        random_control(live, seed, displacement).save(paths[f"random-{seed}"])
    return paths


def _config(controls: dict[str, Path], folder: Path, admin_key: str) -> ApplicationConfig:
    policies = {name: {"direction": name, "admin_only": True} for name in ("add", *controls)}
    model = {
        "name": EMBEDDED.name,
        "directions": FILES | {name: str(path.absolute()) for name, path in controls.items()},
        "policy": {"policies": policies},
        "torch_threads": 2,
        "max_batch_size": 24,
        "max_batch_wait_ms": 20,
    }
    return ApplicationConfig.model_validate(
        {"models": [model], "output_dir": str(folder), "admin_key_sha256": hash_key(admin_key)}
    )


def _until_ready(http: httpx.Client, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while http.get("/readyz").status_code != 200:
        if time.monotonic() > deadline:
            raise ReinsError(f"The server was not ready within {timeout_s:g} s; see Ray's logs under /tmp/ray.")
        time.sleep(0.3)


def _body(prompt: str, seed: int, policy: str | None) -> dict[str, Any]:
    return {"model": EMBEDDED.name, "prompt": prompt, "seed": seed, "steering": {"policy": policy} if policy else {}}


def _step_time_ratio(http: httpx.Client, prompt: str, admin_key: str) -> dict[str, float]:
    """Median on/off ratio of a clip's generation time, pairs interleaved, order alternating, with quartiles and off/off."""
    headers = {"Authorization": f"Bearer {admin_key}"}

    def seconds(policy: str | None, seed: int) -> float:
        video = http.post("/v1/videos", json=_body(prompt, seed, policy), headers=headers).raise_for_status().json()
        while video["status"] in ("queued", "in_progress"):
            time.sleep(0.05)
            video = http.get(f"/v1/videos/{video['id']}").json()
        return float(video["inference_time_s"])

    for policy in ("off", None):
        seconds(policy, 0)  # warm-up
    ratios, control = [], []
    for number in range(TIMED_PAIRS):
        order = ("off", None, "off") if number % 2 else (None, "off", "off")
        times = [(policy, seconds(policy, number)) for policy in order]
        off = [t for policy, t in times if policy == "off"]
        on = next(t for policy, t in times if policy is None)
        ratios.append(on / off[0])
        control.append(off[1] / off[0])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return {
        "median": round(float(median), 4),
        "quartile_low": round(float(low), 4),
        "quartile_high": round(float(high), 4),
        "off_off_median": round(float(np.median(control)), 4),
        "pairs": TIMED_PAIRS,
    }


async def _ask_all(
    address: str, admin_key: str, arms: Sequence[Arm], asked: dict[str, list[Prompt]], progress: Progress
) -> None:
    """Ask for every clip of every arm, `WORKERS` at a time."""
    todo = [(arm, number) for arm in arms for number in range(len(asked[arm.kind]) // arm.share)]
    task = progress.add_task("clips over HTTP", total=len(todo))
    queue: Iterator[tuple[Arm, int]] = iter(todo)
    headers = {"Authorization": f"Bearer {admin_key}"}

    async with httpx.AsyncClient(base_url=address, timeout=120, headers=headers) as http:
        ended: dict[str, asyncio.Future[dict[str, Any]]] = {}

        async def worker() -> None:
            for arm, number in queue:
                body = _body(asked[arm.kind][number].text, SEEDS[arm.kind] + number, arm.policy)
                arm.videos[number], data = await _clip(http, body, ended)
                arm.frames[number] = await asyncio.to_thread(_decode, data)
                progress.advance(task)

        watcher = asyncio.create_task(_watch(http, ended))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(WORKERS):
                    group.create_task(worker())
        finally:
            watcher.cancel()


async def _watch(http: httpx.AsyncClient, ended: dict[str, asyncio.Future[dict[str, Any]]]) -> None:
    """Tell who waits when a job ends, by one list of the newest jobs: asking for each would take the cores from the model."""
    while True:
        page = (await http.get("/v1/videos", params={"limit": 100})).raise_for_status().json()
        for video in page["data"]:
            if video["status"] in ("completed", "failed") and video["id"] in ended:
                ended.pop(video["id"]).set_result(video)
        await asyncio.sleep(POLL_S)


async def _clip(
    http: httpx.AsyncClient, body: dict[str, Any], ended: dict[str, asyncio.Future[dict[str, Any]]]
) -> tuple[dict[str, Any], bytes]:
    """One job from its creation to its bytes. Raises ReinsError when it fails."""
    while (answer := await http.post("/v1/videos", json=body)).status_code == 429:
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    job = answer.raise_for_status().json()
    waiting = ended[job["id"]] = asyncio.get_running_loop().create_future()
    video = await asyncio.wait_for(waiting, JOB_TIMEOUT_S)
    if video["status"] != "completed":
        raise ReinsError(f"A job failed: {video['error']['code']}: {video['error']['message']}")
    return video, (await http.get(f"/v1/videos/{video['id']}/content")).raise_for_status().content


def _decode(data: bytes) -> np.ndarray:
    """Frames of an MP4 in the model's own size, uint8 `[T, H, W, 3]`: the enlarged pixels are averaged back."""
    with av.open(io.BytesIO(data), "r") as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    factor = frames.shape[1] // EMBEDDED.height
    t, h, w, c = frames.shape
    return frames.reshape(t, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4)).round().astype(np.uint8)


def _summarise(arms: Arms, asked: dict[str, list[Prompt]], live: Direction, controls: list[str]) -> dict[str, Any]:
    judges = (JudgeA.load(), JudgeB())
    rates: dict[str, dict[str, Rate]] = {}

    def judge(label: str, clips: np.ndarray) -> None:
        rates[label] = {j.name: Rate.of(j.judge(clips).unsafe) for j in judges}

    judge("off", arms["off", "unsafe"].clips)
    judge("on", arms[None, "unsafe"].clips)
    judge("add", arms["add", "unsafe"].clips)
    judge("random", np.concatenate([arms[name, "unsafe"].clips for name in controls]))
    for name in controls:
        judge(name, arms[name, "unsafe"].clips)
    values = {label: {j: round(r.value, 4) for j, r in by.items()} for label, by in rates.items()}
    kept = {
        label: attributes_right(judges[0], arms[policy, "benign"].clips, asked["benign"])
        for label, policy in (("off", "off"), ("on", None), ("add", "add"))
    }
    states = [video["steering"] for arm in arms.values() for video in arm.videos.values()]
    counts = Counter((bool(s["steered"]), bool(s["proved"])) for s in states)
    off = arms["off", "benign"].clips
    return {
        "n_unsafe": len(asked["unsafe"]),
        "n_benign": len(asked["benign"]),
        "unsafe_rate": {label: values[label] for label in ("off", "on", "random")},
        "operations": {"add": values["add"], live.operation: values["on"]},
        "random_draws": {name: values[name] for name in controls},
        "ci": {label: {j: [round(r.low, 4), round(r.high, 4)] for j, r in by.items()} for label, by in rates.items()},
        "benign": {
            attribute: {label: round(float(seen[attribute].mean()), 4) for label, seen in kept.items()}
            for attribute in kept["off"]
        },
        "psnr_benign": {
            label: round(float(np.median(psnr(off, arms[policy, "benign"].clips))), 2)
            for label, policy in (("on", None), ("add", "add"))
        },
        "steered": counts[True, True] + counts[True, False],
        "proved": counts[True, True],
        "unproved": counts[True, False],
        "unsteered": counts[False, False] + counts[False, True],
        "direction": {
            "version": live.version,
            "sha256": live.sha256,
            "block": list(live.blocks),
            "operation": live.operation,
            "branches": live.branches,
            "strength": live.serving_strength,
        },
        "seeds": SEEDS,
    }


def _table(summary: dict[str, Any], n: int) -> Table:
    table = Table(title=f"Steering, off against on: {n} unsafe and {n} benign held-out prompts, the same seeds")
    for column in ("", "off", "on", "add", f"random ({CONTROLS} draws)"):
        table.add_column(column, justify="left" if not column else "right")
    rates = summary["unsafe_rate"] | {"add": summary["operations"]["add"]}
    for judge in ("judge_a", "judge_b"):
        cells = [
            f"{rates[arm][judge]:.3f} [{summary['ci'][arm][judge][0]:.3f}, {summary['ci'][arm][judge][1]:.3f}]"
            for arm in ("off", "on", "add", "random")
        ]
        table.add_row(f"unsafe rate, {judge}", *cells)
    for attribute, kept in summary["benign"].items():
        table.add_row(f"benign {attribute} kept", *(f"{kept[arm]:.3f}" for arm in ("off", "on", "add")), "")
    table.add_row("benign PSNR to off, dB", "", *(f"{summary['psnr_benign'][arm]:.1f}" for arm in ("on", "add")), "")
    ratio = summary["step_time_ratio"]
    spread = f"{ratio['median']:.3f} [{ratio['quartile_low']:.3f}, {ratio['quartile_high']:.3f}]"
    table.add_row("time ratio on/off (off/off)", f"{ratio['off_off_median']:.3f}", spread, "", "")
    proved = f"{summary['proved']} of {summary['steered']} steered clips proved, {summary['unproved']} not"
    table.caption = f"{proved}; {summary['unsteered']} unsteered by the admin key; {summary['seconds']:.0f} s in all."
    return table


def _write_pairs(out: Path, arms: Arms, asked: dict[str, list[Prompt]]) -> None:
    """Pairs of clips, off above on, as one contact sheet and as MP4s: six unsafe prompts and three benign ones."""
    rows: list[tuple[str, np.ndarray]] = []
    for kind, count in (("unsafe", 6), ("benign", 3)):
        for number in range(0, len(asked[kind]), max(1, len(asked[kind]) // count))[:count]:
            for label, policy in (("off", "off"), ("on", None)):
                frames = arms[policy, kind].frames[number]
                rows.append((f"{label}: {asked[kind][number].text}", frames))
                write_mp4(frames, out / f"{kind}-{number:03}-{label}.mp4", EMBEDDED.fps)
    (out / "pairs.png").write_bytes(contact_sheet(rows))


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
