"""The deployment that holds one model: it loads, proves and confirms, then generates in batches in a thread.

Serve sends requests to a replica only once its constructor has returned, and this one returns only once the start-up proof
has passed; Serve runs it outside the actor's own event loop, so a long load blocks no health check. Clips go back through the
stream of messages, not through a shared folder: then nodes need no common disk, and one process alone writes files and records.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import torch

from reins_serve import plugin
from reins_serve.content_credentials import CredentialsSigner
from reins_serve.errors import GenerationCancelled, ReinsError, SteeringNotApplied
from reins_serve.models import loading, video
from reins_serve.models.acceleration import accelerate
from reins_serve.models.generation import ClipRequest, generate
from reins_serve.plugin import Direction, GenerationRecord, SteeringRow
from reins_serve.provenance import provenance
from reins_serve.serving.batching import Batch, Batcher, Ticket
from reins_serve.serving.config import ModelConfig
from reins_serve.serving.inner_metrics import InnerMetrics
from reins_serve.serving.memory import free_memory, out_of_memory
from reins_serve.serving.messages import Clip, Failure, Message, Progress, Started
from reins_serve.serving.privacy import quieten, without_texts
from reins_serve.steering.confirm import confirm

UNPROVED_LIMIT = 3
STARVED_LIMIT = 3
PROGRESS_INTERVAL_S = 0.5  # a heartbeat writes it that often; each message costs both processes about a millisecond
SHEET_FRAMES, SHEET_SIDE = 16, 128

FAILURES: dict[str, str] = {
    "steering_not_applied": "The steering of this clip could not be proved, so the clip was discarded.",
    "steering_unavailable": "There is no valid steering direction for this clip.",
    "out_of_memory": "The model ran out of memory; ask for a smaller or shorter clip.",
    "internal_error": "Something went wrong inside the server; its log says what.",
}

logger = logging.getLogger(__name__)


class Outcome(Enum):
    """What came of one pipeline call."""

    DONE = auto()
    CANCELLED = auto()
    FAILED = auto()
    OUT_OF_MEMORY = auto()  # of a batch of several, and nobody was told yet


@dataclass(frozen=True)
class _Row:
    """One clip that a ticket stands for, and where its messages go."""

    clip: ClipRequest
    steering: SteeringRow
    emit: Callable[[Message], None]


class VideoReplica:
    """One loaded, steered model.

    Raises (from the constructor, so that the replica never becomes ready):
        ReinsError: the checkpoint cannot be loaded or accelerated as configured, a direction does not belong to it, or the
            start-up proof failed, with or without acceleration.
    """

    def __init__(self, config: ModelConfig) -> None:
        began = time.perf_counter()
        if config.torch_threads is not None:
            torch.set_num_threads(config.torch_threads)
        self._config = config
        self._signer = CredentialsSigner(config.c2pa) if config.c2pa is not None else None
        if not config.log_prompts:
            quieten()
        self._entry = config.catalog_entry()
        self._pipeline = loading.load(self._entry, config.loading, task=config.task)
        self._steering = plugin.attach(
            self._pipeline,
            model=config.name,
            directions=config.sources,
            policy=config.policy,
            trusted_keys=config.trusted_keys,
        )
        accelerate(self._pipeline, config.loading)
        confirm(self._steering, self._entry)
        self._sampler: Any = None
        if config.sampling is not None:
            from reins_serve.calibration.live import LiveSampler  # with Parquet: only where traffic is sampled

            self._sampler = LiveSampler(config.sampling, self._entry, self._steering)
        self._unproved = self._starved = 0
        self._outputs: Any = None
        if config.judging is not None:
            from reins_serve.calibration.outputs import OutputJudge

            self._outputs = OutputJudge(config.judging)
        self._metrics = InnerMetrics(config.name)
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="reins-encoder")
        self._batcher: Batcher[_Row] = Batcher(self._run, config.max_batch_size, config.max_batch_wait_ms / 1000)
        self._metrics.stage("load", time.perf_counter() - began)

    def proved(self) -> bool:
        """Whether the start-up proof passed; the gateway's `/readyz` asks."""
        return self._steering.proof is not None

    def check_health(self) -> None:
        """Serve replaces a replica whose health check raises: this one, after several batches in a row without proof, or clips
        in a row that memory did not hold: then some of it may have leaked."""
        if self._unproved >= UNPROVED_LIMIT:
            raise SteeringNotApplied(
                f"{self._unproved} batches in a row could not be proved: this replica must be replaced."
            )
        if self._starved >= STARVED_LIMIT:
            raise ReinsError(
                f"{self._starved} clips in a row did not fit into memory, each on its own: this replica must be replaced.",
                code="out_of_memory",
            )

    async def generate(self, clip: ClipRequest, steering: SteeringRow) -> AsyncIterator[Message]:
        """Generate one clip, in a batch with others where that is possible.

        The stream ends after a `Clip` or a `Failure`. When the caller leaves it, a clip that shares its batch with others
        finishes unseen; one that does not is stopped at the end of the present denoising step.
        """
        loop = asyncio.get_running_loop()
        messages: asyncio.Queue[Message] = asyncio.Queue()
        row = _Row(clip, steering, lambda message: _post(loop, messages, message))
        ticket = Ticket(row, clip.batch_key)
        self._batcher.submit(ticket)
        try:
            while True:
                message = await messages.get()
                yield message
                if isinstance(message, Clip | Failure):
                    return
        finally:
            self._batcher.cancel(ticket)

    def _run(self, batch: Batch[_Row]) -> None:
        """Generate one batch, in the batcher's thread. One that does not fit into memory is tried again clip by clip, once."""
        _tell(batch, Started())
        if self._generate(batch) is Outcome.OUT_OF_MEMORY:
            for ticket in batch.tickets:
                if not ticket.cancelled:
                    self._generate(Batch((ticket,)))
        if self._sampler is not None:
            self._sampler.run(busy=lambda: self._batcher.waiting > 0)

    def _generate(self, batch: Batch[_Row]) -> Outcome:
        """One pipeline call. Its clips, or why there are none, go to those who asked, unless several ran out of memory."""
        rows = [ticket.work for ticket in batch.tickets]
        began = last = time.perf_counter()
        reported = began

        def on_step(done: int, total: int) -> None:
            nonlocal last, reported
            now = time.perf_counter()
            self._metrics.denoise_step(now - last)
            last = now
            if now - reported >= PROGRESS_INTERVAL_S:
                reported = now
                _tell(batch, Progress(done, total))

        directions: list[Direction | None] = [None] * len(rows)
        try:
            opened = self._steering.generation(rows=[row.steering for row in rows], on_step=on_step, cancel=batch)
            directions = opened.directions
            with opened as generation:
                frames = generate(self._pipeline, self._entry, [row.clip for row in rows], generation.arguments)
            records = generation.records
            for row, record in zip(rows, records, strict=True):
                _check(row.steering, record)
        except GenerationCancelled:
            return Outcome.CANCELLED
        except Exception as error:
            self._unproved += isinstance(error, SteeringNotApplied)
            self._log(error, [row.clip for row in rows])
            if out_of_memory(error):
                free_memory(error)
                if len(rows) > 1:
                    logger.warning("a batch of %d did not fit into memory; its clips are made one by one", len(rows))
                    return Outcome.OUT_OF_MEMORY
                self._starved += 1
            for ticket, direction in zip(batch.tickets, directions, strict=True):
                if not ticket.cancelled:
                    ticket.work.emit(failure(error, direction))
            return Outcome.FAILED
        self._unproved = self._starved = 0
        seconds = time.perf_counter() - began
        self._metrics.stage("generate", seconds)
        for ticket, clip_frames, record in zip(batch.tickets, frames, records, strict=True):
            self._encoder.submit(self._deliver, ticket, clip_frames, record, seconds, len(rows))
        if self._outputs is not None:
            self._outputs.offer(generation, [row.clip for row in rows], frames)
        if self._sampler is not None:
            self._sampler.offer([row.clip for row in rows])
        return Outcome.DONE

    def _deliver(
        self, ticket: Ticket[_Row], frames: np.ndarray, record: GenerationRecord, seconds: float, batch_size: int
    ) -> None:
        """Encode one clip and send it, in the encoder's thread, while the next batch denoises."""
        if ticket.cancelled:
            return
        began = time.perf_counter()
        try:
            message: Message = Clip(
                video=self._mp4(frames, record, ticket.work.clip),
                thumbnail=video.thumbnail(frames),
                spritesheet=_spritesheet(frames),
                record=record,
                inference_time_s=seconds,
                batch_size=batch_size,
            )
        except Exception as error:
            self._log(error, [ticket.work.clip])
            message = failure(error)
        self._metrics.stage("encode", time.perf_counter() - began)
        ticket.work.emit(message)

    def _log(self, error: Exception, clips: list[ClipRequest]) -> None:
        logger.error("a generation failed\n%s", without_texts(error, () if self._config.log_prompts else clips))

    def _mp4(self, frames: np.ndarray, record: GenerationRecord, clip: ClipRequest) -> bytes:
        made = provenance(self._entry.name, record, clip, self._config.file_metadata)
        data = video.mp4(frames, self._entry.fps, made.tags)
        return data if self._signer is None else self._signer.sign(data, made)


def failure(error: Exception, direction: Direction | None = None) -> Failure:
    """What a job's user is told of an exception, and what was to steer the clip."""
    code = error.code if isinstance(error, ReinsError) else "internal_error"
    if out_of_memory(error):
        code = "out_of_memory"
    code = code if code in FAILURES else "internal_error"
    if direction is None:
        return Failure(code, FAILURES[code])
    return Failure(code, FAILURES[code], direction.version, direction.sha256)


def _spritesheet(frames: np.ndarray) -> bytes:
    """PNG of at most `SHEET_FRAMES` frames side by side, from uint8 `[T, H, W, 3]`; large frames are thinned out."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), SHEET_FRAMES)).round().astype(int)]
    side = min(frames.shape[1:3])
    stride = max(1, side // SHEET_SIDE)
    return video.contact_sheet([("", chosen[:, ::stride, ::stride])], scale=max(1, SHEET_SIDE // side))


def _check(asked: SteeringRow, record: GenerationRecord) -> None:
    """A row that was to be steered must come with its proof, whatever made the record."""
    if asked.direction is not None and not (record.steered and record.proved):
        raise SteeringNotApplied("A clip that was to be steered came without its proof.")


def _tell(batch: Batch[_Row], message: Message) -> None:
    for ticket in batch.tickets:
        if not ticket.cancelled:
            ticket.work.emit(message)


def _post(loop: asyncio.AbstractEventLoop, messages: "asyncio.Queue[Message]", message: Message) -> None:
    """Hand a message from a thread to the event loop; a loop that is gone has nobody left who waits."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(messages.put_nowait, message)
