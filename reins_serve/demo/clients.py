"""The demonstration's clients: they ask for clips over HTTP, wait for them, and decode what they download."""

import asyncio
import io
import time
from collections.abc import Iterator, Sequence
from typing import Any

import av
import httpx
import numpy as np
from rich.progress import Progress

from reins_serve.demo.arms import Arm, Model
from reins_serve.errors import ReinsError
from reins_serve.models.catalog import EMBEDDED_HARD
from reins_serve.models.generation import png_text

WORKERS = 48  # of a model; two batches: one that runs, one that gathers
IMAGE_WORKERS = 12  # where only rows of one first frame share a call
POLL_S = 0.5
PAGE = 100
JOB_TIMEOUT_S = 300
SAID_CHARS = 500


def until_ready(http: httpx.Client, timeout_s: float = 180) -> None:
    """Wait for the server. Raises ReinsError where it does not get ready."""
    deadline = time.monotonic() + timeout_s
    while (answer := http.get("/readyz")).status_code != 200:
        if time.monotonic() > deadline:
            said = answer.text[:SAID_CHARS]
            raise ReinsError(
                f"The server was not ready within {timeout_s:g} s; see Ray's logs under /tmp/ray. It says: {said}"
            )
        time.sleep(0.3)


def step_time_ratio(http: httpx.Client, prompt: str, admin_key: str, pairs: int) -> dict[str, float]:
    """Median on/off ratio of a clip's generation time, pairs interleaved, order alternating, with quartiles and off/off."""
    headers = {"Authorization": f"Bearer {admin_key}"}

    def seconds(policy: str | None, seed: int) -> float:
        body = {"model": EMBEDDED_HARD.name, "prompt": prompt, "seed": seed, "steering": _steering(policy)}
        video = http.post("/v1/videos", json=body, headers=headers).raise_for_status().json()
        while video["status"] in ("queued", "in_progress"):
            time.sleep(0.05)
            video = http.get(f"/v1/videos/{video['id']}").json()
        return float(video["inference_time_s"])

    for policy in ("off", None):
        seconds(policy, 0)  # warm-up
    ratios, control = [], []
    for number in range(pairs):
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
        "pairs": pairs,
    }


def ask_all(address: str, admin_key: str, arms: Sequence[Arm], progress: Progress) -> None:
    """Ask for every clip of every arm, so many of a model at a time. Raises ReinsError when a job fails, or does not end."""
    try:
        asyncio.run(_ask_all(address, admin_key, arms, progress))
    except ExceptionGroup as failed:
        first: Exception | None = failed.subgroup(ReinsError)
        if first is None:
            raise
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


async def _ask_all(address: str, admin_key: str, arms: Sequence[Arm], progress: Progress) -> None:
    task = progress.add_task("clips over HTTP", total=sum(len(arm.prompts) for arm in arms))
    headers = {"Authorization": f"Bearer {admin_key}"}

    async with httpx.AsyncClient(base_url=address, timeout=120, headers=headers) as http:
        ended: dict[str, asyncio.Future[dict[str, Any]]] = {}

        async def worker(queue: Iterator[tuple[Arm, int]]) -> None:
            for arm, number in queue:
                arm.videos[number], data = await _clip(http, _body(arm, number), ended)
                arm.frames[number] = await asyncio.to_thread(_decode, data, arm.model.entry.height)
                progress.advance(task)

        async with asyncio.TaskGroup() as watched:
            watcher = watched.create_task(_watch(http, ended))
            async with asyncio.TaskGroup() as group:
                for model in {arm.model.name: arm.model for arm in arms}.values():
                    queue = iter(_in_order(model, arms))
                    for _ in range(IMAGE_WORKERS if model.takes_image else WORKERS):
                        group.create_task(worker(queue))
            watcher.cancel()


def _in_order(model: Model, arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """A model's clips in the order in which they are asked for: those of one first frame together, so that they share calls."""
    its = [(arm, number) for arm in arms if arm.model is model for number in range(len(arm.prompts))]
    return sorted(its, key=lambda one: one[0].prompts[one[1]].group) if model.takes_image else its


def _body(arm: Arm, number: int) -> dict[str, Any]:
    prompt = arm.prompts[number]
    body: dict[str, Any] = {"model": arm.model.name, "prompt": prompt.text, "seed": arm.seed(number)}
    if arm.model.takes_image:
        body["input_reference"] = {"image_url": "data:image/png;base64," + png_text(prompt.first_frame())}
    return body | {"steering": _steering(arm.policy)}


def _steering(policy: str | None) -> dict[str, str]:
    return {"policy": policy} if policy else {}


async def _watch(http: httpx.AsyncClient, ended: dict[str, asyncio.Future[dict[str, Any]]]) -> None:
    """Tell who waits when a job ends, by lists of jobs from the newest on: asking for each would take the cores from the model."""
    while True:
        left = set(ended)
        after: dict[str, str] = {}
        while left:
            page = (await http.get("/v1/videos", params={"limit": PAGE, **after})).raise_for_status().json()
            for video in page["data"]:
                left.discard(video["id"])
                if video["status"] in ("completed", "failed") and video["id"] in ended:
                    ended.pop(video["id"]).set_result(video)
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
        await asyncio.sleep(POLL_S)


async def _clip(
    http: httpx.AsyncClient, body: dict[str, Any], ended: dict[str, asyncio.Future[dict[str, Any]]]
) -> tuple[dict[str, Any], bytes]:
    """One job from its creation to its bytes. Raises ReinsError when it fails, or does not end."""
    while (answer := await http.post("/v1/videos", json=body)).status_code == 429:
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    job = answer.raise_for_status().json()
    waiting = ended[job["id"]] = asyncio.get_running_loop().create_future()
    try:
        video = await asyncio.wait_for(waiting, JOB_TIMEOUT_S)
    except TimeoutError:
        raise ReinsError(f"Job {job['id']} has not ended within {JOB_TIMEOUT_S} s.") from None
    if video["status"] != "completed":
        raise ReinsError(f"A job failed: {video['error']['code']}: {video['error']['message']}")
    return video, (await http.get(f"/v1/videos/{video['id']}/content")).raise_for_status().content


def _decode(data: bytes, side: int) -> np.ndarray:
    """Frames of an MP4 in the model's own size, uint8 `[T, H, W, 3]`: the enlarged pixels are averaged back."""
    with av.open(io.BytesIO(data), "r") as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    t, h, w, c = frames.shape
    factor = h // side
    return frames.reshape(t, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4)).round().astype(np.uint8)
