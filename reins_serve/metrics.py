"""Every metric's name and meaning.

Totals are counted in the jobs' database, and every gateway serves them with prometheus-client at `/metrics`. A replica's inner
figures go out through `ray.serve.metrics`, which puts `ray_` before the name and adds application, deployment and replica as
labels. Base units throughout; no ids, prompts or paths as labels. Counts are kept for good: a metric whose labels change
needs another name.
"""

from dataclasses import dataclass
from typing import Literal

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
SIZES = (1, 2, 4, 8, 16, 32, 64)
GAPS = (-2, -1, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3)
SHARES = (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
LENGTHS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


@dataclass(frozen=True)
class Metric:
    """One metric: its exported name, what it says, its labels, and a histogram's upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# Served by the gateway.
GENERATIONS = Metric(
    "reins_generations_total", "counter", "Jobs that ended: completed, failed or cancelled.", ("model", "outcome")
)
STEERED = Metric(
    "reins_steered_generations_total",
    "counter",
    "Completed clips whose steering is proved, by version of the direction.",
    ("model", "version"),
)
UNSTEERED = Metric(
    "reins_unsteered_generations_total",
    "counter",
    "Completed clips that were not steered, and why.",
    ("model", "reason"),
)
STEERING_STEPS = Metric(
    "reins_steering_steps_total", "counter", "Denoising steps of completed clips that were steered.", ("model",)
)
STEERING_FAILURES = Metric(
    "reins_steering_failures_total",
    "counter",
    "Jobs that failed because their steering was missing or unproved.",
    ("model", "reason"),
)
FRAMES = Metric("reins_frames_total", "counter", "Frames of completed clips.", ("model",))
RUNNING = Metric("reins_requests_running", "gauge", "Jobs that are being generated.", ("model",))
WAITING = Metric("reins_requests_waiting", "gauge", "Jobs that are queued.", ("model",))
QUEUE_WAIT = Metric(
    "reins_queue_wait_seconds", "histogram", "From the job's record to the first denoising step.", ("model",), SECONDS
)
GENERATION_SECONDS = Metric(
    "reins_generation_seconds",
    "histogram",
    "Wall time of the pipeline call that made a completed clip.",
    ("model",),
    SECONDS,
)
BATCH_SIZE = Metric(
    "reins_batch_size",
    "histogram",
    "Clips that shared the pipeline call of a completed clip, itself included.",
    ("model",),
    SIZES,
)
DISPLACEMENT = Metric(
    "reins_steering_displacement",
    "histogram",
    "Mean effective displacement of a token per push, in the hidden states' scale.",
    ("model",),
    LENGTHS,
)
SCORE = Metric(
    "reins_steering_score",
    "histogram",
    "Mean projection on the direction before the push: 0 at the unsafe class's mean, 1 at the safe one's.",
    ("model",),
    GAPS,
)
GUARDED = Metric(
    "reins_steering_guarded",
    "histogram",
    "Share of the guards' calls in which one found the clip unsafe on its way; of clips whose direction has guards.",
    ("model",),
    SHARES,
)
DIRECTION_INFO = Metric(
    "reins_direction_info", "gauge", "1 for each direction that is served.", ("model", "version", "channel")
)

DIRECTION_AGE = Metric(
    "reins_direction_age_seconds", "gauge", "Time since the direction that is live was fitted.", ("model",)
)
DIRECTION_GATE = Metric(
    "reins_direction_gate",
    "gauge",
    "What the live direction's fit measured for one of its gates; a gate without a number is absent.",
    ("model", "gate"),
)
STEERING_REQUIRED = Metric(
    "reins_steering_required",
    "gauge",
    "1 for a model that makes no clip without a direction, 0 for one that may.",
    ("model",),
)
REGISTRY_UP = Metric(
    "reins_registry_up", "gauge", "1 while the registry of directions answers this process.", ("model",)
)
VERSION_GENERATIONS = Metric(
    "reins_version_generations_total",
    "counter",
    "Jobs that one version of the direction was to steer: steered (and proved) or failed.",
    ("model", "version", "outcome"),
)
VERSION_SCORE = Metric(
    "reins_version_score",
    "summary",
    "Mean projection before the push, as reins_steering_score, by version: sum over count is the mean.",
    ("model", "version"),
)

# Exported by each replica through Ray.
DIRECTION_SWAPS = Metric(
    "reins_direction_swaps_total",
    "counter",
    "Moves of the pointer that a replica took up (swapped) or would not take up (refused).",
    ("model", "result"),
)
DIRECTION_SWAP_SECONDS = Metric(
    "reins_direction_swap_seconds",
    "histogram",
    "From the move of the pointer to the replica that generates with it, by the two machines' clocks.",
    ("model",),
    SECONDS,
)
DENOISE_STEP = Metric(
    "reins_denoise_step_seconds", "histogram", "Wall time of one denoising step of a batch.", ("model",), SECONDS
)
STAGE = Metric(
    "reins_stage_seconds", "histogram", "Wall time of one stage: load, generate or encode.", ("model", "stage"), SECONDS
)

SERVED_BY_GATEWAY = (
    GENERATIONS,
    STEERED,
    UNSTEERED,
    STEERING_STEPS,
    STEERING_FAILURES,
    FRAMES,
    RUNNING,
    WAITING,
    QUEUE_WAIT,
    GENERATION_SECONDS,
    BATCH_SIZE,
    DISPLACEMENT,
    SCORE,
    GUARDED,
    DIRECTION_INFO,
    DIRECTION_AGE,
    DIRECTION_GATE,
    STEERING_REQUIRED,
    REGISTRY_UP,
    VERSION_GENERATIONS,
    VERSION_SCORE,
)
EXPORTED_BY_REPLICAS = (DENOISE_STEP, STAGE)
EXPORTED_BY_WATCHERS = (
    DIRECTION_SWAPS,
    DIRECTION_SWAP_SECONDS,
    REGISTRY_UP,
)  # of replicas and gateways that follow a store
BY_NAME = {metric.name: metric for metric in SERVED_BY_GATEWAY}
