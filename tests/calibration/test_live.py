"""Sampling of live traffic: un-steered, quiet, labelled at once, and never in the way of a job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from reins_serve.calibration.activations import open_activations, prompt_digest
from reins_serve.calibration.capture import Capture
from reins_serve.calibration.live import PENDING, LiveSampler, SamplingConfig
from reins_serve.models.generation import generate, request
from reins_serve.plugin import attach
from reins_serve.serving.config import ModelConfig
from reins_serve.steering.direction import Window
from tests import tiny


def sampler(tmp_path: Path, live: Mapping[str, Any] = {}, **changes: Any) -> LiveSampler:
    pipeline = tiny.pipeline()
    steering = attach(pipeline, model="tiny", directions={"live": tiny.direction(pipeline, **live)})
    config = SamplingConfig.model_validate({"fraction": 1.0, "url": str(tmp_path), "flush": 2} | changes)
    return LiveSampler(config, tiny.ENTRY, steering)


def clips(n: int = 2) -> list:
    return [request(tiny.ENTRY, "a red square", seed) for seed in range(n)]


def test_a_sample_is_what_an_unsteered_pipeline_shows(tmp_path: Path) -> None:
    live = sampler(tmp_path)
    live.offer(clips())
    live.run(busy=lambda: False)
    stored = open_activations(str(tmp_path), "tiny")
    (batch,) = stored.batches(columns=["seed", "source", "prompt"])
    bare = tiny.pipeline()
    for row, clip in enumerate(clips()):
        with Capture(bare, 1, [2], Window(start=0, end=0.5)) as capture:
            generate(bare, tiny.ENTRY, [clip], capture.arguments)
        assert np.array_equal(batch.pooled[row], capture.activations.pooled[0])
    assert batch.columns["source"].tolist() == ["live", "live"]
    assert live.stored == 2


def test_a_sample_is_captured_as_the_live_direction_s_clips_were(tmp_path: Path) -> None:
    half = Window(start=0, end=0.5)
    longer = {"window": Window(start=0, end=0.75), "fit": tiny.FIT | {"captured": half}}
    for name, live, window in (("longer", longer, half), ("unsaid", {"window": longer["window"]}, longer["window"])):
        sampling = sampler(tmp_path / name, live)
        sampling.offer(clips())
        sampling.run(busy=lambda: False)
        assert open_activations(str(tmp_path / name), "tiny").meta.window == window


def test_the_prompt_is_not_stored_unless_it_is_asked_for(tmp_path: Path) -> None:
    for keep, expected in ((False, None), (True, "a red square")):
        folder = tmp_path / str(keep)
        live = sampler(folder, keep_prompts=keep)
        live.offer(clips())
        live.run(busy=lambda: False)
        files = list(folder.rglob("*.parquet"))
        assert (b"a red square" in files[0].read_bytes()) is keep
        (batch,) = open_activations(str(folder), "tiny").batches(columns=["prompt"])
        assert set(batch.columns["prompt"]) == {expected}
        assert set(batch.columns["prompt_sha256"]) == {prompt_digest("a red square")}


def test_a_job_that_comes_ends_a_shadow_run_within_one_step_and_the_sample_is_kept(tmp_path: Path) -> None:
    live, steps = sampler(tmp_path), 0

    def busy() -> bool:
        nonlocal steps
        steps += 1
        return steps > 2  # quiet at the start and after the first step, then a job waits

    live.offer(clips(1))
    live.run(busy)
    assert (live.given_up, live.stored) == (1, 0)
    live.run(busy=lambda: False)
    live.flush()
    assert live.stored == 1


def test_nothing_is_sampled_while_jobs_wait_and_the_oldest_are_dropped(tmp_path: Path) -> None:
    live = sampler(tmp_path)
    live.offer(clips(PENDING + 3))
    live.run(busy=lambda: True)
    assert (live.dropped, live.stored) == (3, 0)


def test_a_sample_that_fails_costs_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    live = sampler(tmp_path)
    monkeypatch.setattr(live, "_labels", lambda *_: 1 / 0)
    live.offer(clips())
    live.run(busy=lambda: False)
    assert live.stored == 0
    assert "was not stored" in caplog.text


def test_a_share_of_the_requests_is_taken(tmp_path: Path) -> None:
    live = sampler(tmp_path, fraction=0.25)
    live._random.seed(0)
    live.offer(clips(64) * 4)
    assert len(live._pending) + live.dropped == pytest.approx(64, abs=20)


def test_the_embedded_judge_labels_the_unsteered_clip(tmp_path: Path) -> None:
    from reins_serve.models.catalog import EMBEDDED
    from reins_serve.models.loading import load

    pipeline = load(EMBEDDED)
    direction = Path("directions/embedded/setpoint.safetensors")
    steering = attach(pipeline, model="embedded", directions=direction)
    config = SamplingConfig(fraction=1, url=str(tmp_path), judge={"kind": "embedded-a"}, flush=1)  # type: ignore[arg-type]
    live = LiveSampler(config, EMBEDDED, steering)
    live.offer([request(EMBEDDED, "a red square moving left at sea with an explosion", 1)])
    live.run(busy=lambda: False)
    (batch,) = open_activations(str(tmp_path), "embedded").batches(columns=["unsafe/judge_a/explosion"])
    assert batch.columns["unsafe/judge_a/explosion"][0] > 0.5  # steering would have removed it


def test_a_compiled_or_cached_model_is_not_sampled() -> None:
    sampling = {"fraction": 0.1, "url": "somewhere"}
    with pytest.raises(ValidationError, match=r"leave loading\.compile and loading\.cache out"):
        ModelConfig.model_validate(
            {
                "name": "tiny",
                "directions": {"live": "x"},
                "sampling": sampling,
                "loading": {"compile": {"mode": "regional"}},
            }
        )
