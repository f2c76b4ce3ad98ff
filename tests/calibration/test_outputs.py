"""Delivered clips, judged by a sample: verdicts go to the versions, and nothing is delayed or taken for safe."""

import threading
from typing import Any

import numpy as np
import pytest

from reins_serve.calibration import judges
from reins_serve.calibration.judges import Verdicts
from reins_serve.calibration.outputs import WAITING, OutputJudge
from reins_serve.calibration.sampling import JudgingConfig
from reins_serve.models.generation import request
from tests import tiny
from tests.serving.local import until

CONFIG = JudgingConfig.model_validate({"fraction": 1, "judge": {"kind": "embedded-a"}})
BRIGHT = 128


class Brightness:
    """A judge of three lines: bright clips are unsafe, black ones it cannot judge."""

    name, revision, deterministic, may_skip = "brightness", "1", True, True
    unsafe, kept = {"bright": 0.5}, ()

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()

    def judge(self, clips: Any, prompts: Any, **_: Any) -> Verdicts:
        self.free.wait(60)
        means = np.array([clip.mean() for clip in clips])
        if (means == 255).any():
            raise ValueError("too bright to look at")
        probability = np.where(means == 0, np.nan, means >= BRIGHT).astype(np.float32)
        return Verdicts({"bright": probability}, {}, means == 0)


class Heard:
    """Stands for a generation, and notes what it is told."""

    def __init__(self) -> None:
        self.verdicts: list[tuple[bool, int]] = []

    def judged(self, unsafe: bool, row: int) -> None:
        self.verdicts.append((unsafe, row))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Brightness:
    made = Brightness()
    monkeypatch.setattr(judges, "load", lambda config: made)
    return made


def batch(*values: int) -> tuple[list, np.ndarray]:
    frames = np.stack([np.full((2, 4, 4, 3), value, dtype=np.uint8) for value in values])
    return [request(tiny.ENTRY, "a red square", seed) for seed in range(len(values))], frames


def test_each_row_gets_its_own_verdict_and_what_cannot_be_judged_gets_none(judge: Brightness) -> None:
    outputs, heard = OutputJudge(CONFIG), Heard()
    outputs.offer(heard, *batch(1, 200, 0))
    until(lambda: outputs.judged + outputs.dropped == 3)
    assert heard.verdicts == [(False, 0), (True, 1)]
    assert (outputs.judged, outputs.dropped) == (2, 1)


def test_a_judge_that_fails_counts_for_nothing_and_goes_on(judge: Brightness, caplog: pytest.LogCaptureFixture) -> None:
    outputs, heard = OutputJudge(CONFIG), Heard()
    outputs.offer(heard, *batch(255, 200))
    until(lambda: outputs.judged + outputs.dropped == 2)
    assert heard.verdicts == [(True, 1)]
    assert "a clip was not judged" in caplog.text


def test_a_judge_that_cannot_keep_up_leaves_clips_out_and_holds_nobody_back(judge: Brightness) -> None:
    outputs, heard = OutputJudge(CONFIG), Heard()
    judge.free.clear()
    for _ in range(5):
        outputs.offer(heard, *batch(1, 1, 1, 1))  # returns at once
    assert outputs.dropped >= 20 - WAITING - 1
    judge.free.set()
    until(lambda: outputs.judged + outputs.dropped == 20)
    assert len(heard.verdicts) == outputs.judged <= WAITING + 1


def test_a_share_of_the_clips_is_taken(judge: Brightness) -> None:
    outputs, heard = OutputJudge(CONFIG.model_copy(update={"fraction": 0.25})), Heard()
    outputs._random.seed(0)
    for _ in range(64):
        outputs.offer(heard, *batch(1, 1, 1, 1))
        until(lambda: outputs._waiting.empty())
    assert outputs.judged + outputs.dropped == pytest.approx(64, abs=20)
