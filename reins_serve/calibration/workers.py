"""Workers of a recalibration: actors of Ray Data that generate clips of one model, and actors that judge them.

Work travels as one pickled object a row, one pipeline call each. A worker that dies is replaced and its call made again by
Ray; whatever a call writes has a name that follows from its content, so making it twice changes nothing.
"""

import hashlib
import itertools
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from reins_serve.calibration import judges
from reins_serve.calibration.activations import clip_id
from reins_serve.calibration.capture import Activations, Capture
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.prompt_sets import PromptRow
from reins_serve.calibration.statistics import psnr
from reins_serve.errors import ReinsError
from reins_serve.models import catalog
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import generate, request
from reins_serve.models.loading import load
from reins_serve.plugin import attach
from reins_serve.steering.direction import Base, Direction
from reins_serve.steering.fit import base_of
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.policy import SteeringPolicy, SteeringRow, unsteered

OFF = "off"
Finish = Callable[["Made", list["Judged"], Sequence[judges.Judge]], Any]


@dataclass(frozen=True)
class Ask:
    """One clip to be made: prompt, seed, and the condition under which it is made.

    Attributes:
        direction: Name of a direction given to `measure`; None: un-steered.
        condition: Under which name its figures are counted.
        reference: Seed of the un-steered clip of the same prompt that it is compared with; None: its own.
        show: Whether the frames shall come back.
        negative_prompt: What the clip shall not show; for measurements beside steering.
    """

    prompt: PromptRow
    seed: int
    condition: str = OFF
    direction: str | None = None
    strength: float = 0.0
    show: bool = False
    reference: int | None = None
    negative_prompt: str = ""

    @property
    def clip_id(self) -> str:
        """Names the clip in the store, and to a judge that looks verdicts up."""
        return clip_id(self.prompt.text, self.seed)

    @property
    def pair(self) -> tuple[str, int]:
        """What clips that are compared with each other share."""
        return self.prompt.text, self.seed if self.reference is None else self.reference


@dataclass(frozen=True)
class Made:
    """One call's clips: frames uint8 `[B, T, H, W, 3]`, what was captured, each clip's mean displacement, and the base model."""

    base: Base
    asks: tuple[Ask, ...]
    frames: np.ndarray
    activations: Activations | None
    displacements: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """One clip as the judges saw it.

    Attributes:
        unsafe: By judge, whether any label is at or above its threshold; a judge that has no verdict is absent.
        scores: Probability by `judge/label`; NaN where there is no verdict.
        kept: By attribute, whether what the prompt asked for is there.
        psnr: dB to the un-steered clip that it is compared with, where the same call made one; NaN otherwise.
        frames: uint8 `[T, H, W, 3]` where they were asked for.
    """

    ask: Ask
    unsafe: Mapping[str, bool]
    scores: Mapping[str, float]
    kept: Mapping[str, bool]
    displacement: float
    psnr: float
    frames: np.ndarray | None


def entry_of(config: RecalibrateConfig) -> CatalogEntry:
    """The model's catalogue entry, with the configuration's checkpoint in the place of its own."""
    entry = config.entry or catalog.get(config.model)
    return entry if config.source is None else replace(entry, source=config.source, revision=None)


class Generator:
    """Makes one call a row: with capture where no directions are given, steered otherwise.

    The model is loaded with the first call and not before, because an error of a constructor would end the worker and hide
    what was wrong.
    """

    def __init__(self, config: RecalibrateConfig, directions: Mapping[str, bytes], blocks: Sequence[int]) -> None:
        self._config, self._directions, self._blocks = config, directions, tuple(blocks)
        self._entry = entry_of(config)
        self._pipeline: Any = None
        self._steering: SteeringMiddleware | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        return {"made": [_answer(self._make, work) for work in batch["work"]]}

    def _load(self) -> None:
        torch.set_num_threads(self._config.workers.torch_threads)
        catalog.register(self._entry)
        pipeline = load(self._entry, self._config.loading, task=self._config.task)
        if self._directions:
            parsed = {name: Direction.parse(data) for name, data in self._directions.items()}
            steer = [d for d in parsed.values() if d.meta.role == "steer"]
            if not steer:
                raise ReinsError("Controls alone can't be attached: give a direction that steers, too.")
            parsed.setdefault("live", steer[0])
            self._steering = attach(pipeline, model=self._entry.name, directions=parsed, policy=SteeringPolicy())
        self._base = self._steering.base if self._steering is not None else base_of(pipeline)
        self._pipeline = pipeline

    def _make(self, asks: tuple[Ask, ...]) -> Made:
        if self._pipeline is None:
            self._load()
        # With the catalogue's defaults: clips for calibration are made as they are served.
        clips = [
            request(self._entry, ask.prompt.text, ask.seed, negative_prompt=ask.negative_prompt, image=ask.prompt.image)
            for ask in asks
        ]
        if self._steering is None and not self._blocks:
            return Made(self._base, asks, generate(self._pipeline, self._entry, clips), None, (0.0,) * len(asks))
        if self._steering is None:
            with Capture(self._pipeline, len(clips), self._blocks, self._config.window) as capture:
                frames = generate(self._pipeline, self._entry, clips, capture.arguments)
            return Made(self._base, asks, frames, capture.activations, (0.0,) * len(asks))
        rows = [
            unsteered("calibration") if ask.direction is None else SteeringRow(ask.direction, ask.strength)
            for ask in asks
        ]
        with self._steering.generation(rows=rows) as g:
            frames = generate(self._pipeline, self._entry, clips, g.arguments)
        return Made(self._base, asks, frames, None, tuple(record.displacement or 0.0 for record in g.records))


class Labeller:
    """Judges one call a row; `finish` turns what was seen into the row's result. Judges are loaded with the first call."""

    def __init__(self, config: RecalibrateConfig, both: bool, finish: Finish) -> None:
        self._config, self._finish = config, finish
        self._chosen = (config.judge, config.evaluator) if both else (config.judge,)
        self._judges: list[judges.Judge] = []

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        return {"result": [_answer(self._label, made) for made in batch["made"]]}

    def _label(self, made: Made) -> Any:
        if not self._judges:
            torch.set_num_threads(self._config.workers.torch_threads)
            self._judges = [judges.load(one) for one in self._chosen]
        clips, texts = list(made.frames), [ask.prompt.text for ask in made.asks]
        seeds, ids = [ask.seed for ask in made.asks], [ask.clip_id for ask in made.asks]
        verdicts = {judge.name: judges.run_judge(judge, clips, texts, ids=ids, seeds=seeds) for judge in self._judges}
        unsafe = {judge.name: _unsafe(judge, verdicts[judge.name]) for judge in self._judges}
        off = {ask.pair: clip for ask, clip in zip(made.asks, clips, strict=True) if ask.condition == OFF}
        judged = []
        for row, (ask, clip) in enumerate(zip(made.asks, clips, strict=True)):
            plain = off.get(ask.pair)
            kept: dict[str, bool] = {}
            for verdict in verdicts.values():
                kept = {name: bool(hits[row]) for name, hits in verdict.kept.items()} | kept
            judged.append(
                Judged(
                    ask,
                    {name: hits[row] for name, hits in unsafe.items() if row in hits},
                    {f"{n}/{label}": float(p[row]) for n, v in verdicts.items() for label, p in v.unsafe.items()},
                    kept,
                    made.displacements[row],
                    float("nan") if plain is None else float(psnr(plain[None], clip[None])[0]),
                    clip if ask.show else None,
                )
            )
        return self._finish(made, judged, self._judges)


def _unsafe(judge: judges.Judge, verdicts: judges.Verdicts) -> dict[int, bool]:
    """Whether a clip is unsafe, by its row; a row without a verdict is absent."""
    rows = np.flatnonzero(verdicts.judged)
    hits = verdicts.take(verdicts.judged).is_unsafe(judge.unsafe)
    return dict(zip(rows.tolist(), hits.tolist(), strict=True))


def run(
    config: RecalibrateConfig,
    calls: Sequence[tuple[Ask, ...]],
    finish: Finish,
    *,
    directions: Mapping[str, bytes] | None = None,
    blocks: Sequence[int] = (),
    both: bool = True,
) -> Iterator[Any]:
    """Make and judge every call on the cluster; yields each call's result as it is done, in no certain order.

    Args:
        finish: Pickled to the judging workers; what it returns is the result of a call.
        directions: Direction files by name; without any, calls are un-steered and captured at `blocks`.
        both: Whether the evaluator judges too.
    """
    workers = config.workers
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    rows = ray.data.from_items([{"work": pickle.dumps(call)} for call in calls], override_num_blocks=max(1, len(calls)))
    made = rows.map_batches(
        Generator,
        fn_constructor_args=(config, dict(directions or {}), tuple(blocks)),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers.generators),
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus,
    )
    judged = made.map_batches(
        Labeller,
        fn_constructor_args=(config, both, finish),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers.judges),
        num_cpus=min(workers.num_cpus, 1),
    )
    for row in judged.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, _Failed):
            raise ReinsError(result.message, code=result.code)
        yield result


@dataclass(frozen=True)
class _Failed:
    """An error that a worker raised on purpose, as a result: Ray would wrap it and lose what it says."""

    message: str
    code: str


def _answer(work: Callable[[Any], Any], given: bytes) -> bytes:
    """The pickled result of `work` on a pickled input, or the failure that it ended with, or was given."""
    value = pickle.loads(given)
    if isinstance(value, _Failed):
        return given
    try:
        return pickle.dumps(work(value))
    except ReinsError as error:
        return pickle.dumps(_Failed(str(error), error.code))


def in_calls(asks: Sequence[Ask], batch: int) -> list[tuple[Ask, ...]]:
    """Asks in calls of at most `batch`; neighbours that are compared with each other stay in one call where it has room.

    A call has one first frame, because most pipelines take only one: asks of one frame share calls wherever they stand.
    """
    by_frame: dict[bytes | None, list[Ask]] = {}
    for ask in asks:
        frame = ask.prompt.image
        key = None if frame is None else hashlib.sha256(frame.tobytes()).digest()
        by_frame.setdefault(key, []).append(ask)
    return [call for its in by_frame.values() for call in _full_calls(its, batch)]


def _full_calls(asks: Sequence[Ask], batch: int) -> list[tuple[Ask, ...]]:
    calls: list[tuple[Ask, ...]] = []
    current: list[Ask] = []
    for _, group in itertools.groupby(asks, key=lambda ask: ask.pair):
        together = list(group)
        if current and len(current) + len(together) > batch:
            calls.append(tuple(current))
            current = []
        current += together
        while len(current) > batch:
            calls.append(tuple(current[:batch]))
            current = current[batch:]
    return [*calls, tuple(current)] if current else calls


def measure(
    config: RecalibrateConfig,
    directions: Mapping[str, Direction],
    asks: Sequence[Ask],
    progress: Callable[[int], None] = lambda n: None,
) -> list[Judged]:
    """Make and judge clips under conditions; the result is in the order of the asks."""
    order = {(ask.prompt.text, ask.seed, ask.condition): place for place, ask in enumerate(asks)}
    found: list[Judged | None] = [None] * len(asks)
    data = {name: direction.data for name, direction in directions.items()}
    for judged in run(config, in_calls(asks, config.workers.batch), _plain, directions=data):
        for one in judged:
            found[order[one.ask.prompt.text, one.ask.seed, one.ask.condition]] = one
        progress(len(judged))
    return [one for one in found if one is not None]


def _plain(made: Made, judged: list[Judged], asked: Sequence[judges.Judge]) -> list[Judged]:
    return judged
