"""Every metric's name and meaning.

Totals are counted by the gateway and served by prometheus-client at `/metrics`. A replica's inner figures go out through
`ray.serve.metrics`, which puts `ray_` before the name and adds application, deployment and replica as labels. Base units
throughout; no ids, prompts or paths as labels.
"""

from dataclasses import dataclass
from typing import Literal

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
SIZES = (1, 2, 4, 8, 16, 32, 64)
GAPS = (-2, -1, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3)
LENGTHS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


@dataclass(frozen=True)
class Metric:
    """One metric: its exported name, what it says, its labels, and a histogram's upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
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
DIRECTION_INFO = Metric(
    "reins_direction_info", "gauge", "1 for each direction that is served.", ("model", "version", "channel")
)

# Exported by each replica through Ray.
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
    DIRECTION_INFO,
)
EXPORTED_BY_REPLICAS = (DENOISE_STEP, STAGE)
