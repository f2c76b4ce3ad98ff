"""NudeNet's detector on drawn pictures, held to plain onnxruntime; skipped where the extra is not installed."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from reins_serve.calibration.judges import load, read_config, run_judge
from reins_serve.errors import JudgeError

WORD = {"kind": "nudenet", "labels": {"FACE_FEMALE": "face", "FACE_MALE": "face"}, "unsafe": {"face": 0.5}}


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    monkeypatch.delitem(sys.modules, "reins_serve.calibration.judges.nudenet", raising=False)
    with pytest.raises(JudgeError, match=r"reins-serve\[judges\]"):
        load(read_config(WORD))


@pytest.fixture(scope="module")
def detector():
    return pytest.importorskip("nudenet", reason="the extra `judges` is not installed")


@pytest.fixture
def judge(detector):
    with pytest.warns(UserWarning, match="AGPL-3.0"):
        importlib.reload(importlib.import_module("reins_serve.calibration.judges.nudenet"))
    return load(read_config(WORD))


def ovals(width, height, scale):
    """Three coloured ovals, uint8 `[H, W, 3]`, in which the detector sees something if they are large."""
    image = Image.new("RGB", (width, height), (120, 160, 200))
    draw = ImageDraw.Draw(image)
    for dy, rx, ry, colour in (
        (-24, 102, 126, (60, 35, 20)),
        (0, 78, 105, (225, 180, 150)),
        (51, 27, 9, (180, 70, 70)),
    ):
        x, y = width / 2, height / 2 + dy * scale
        draw.ellipse([x - rx * scale, y - ry * scale, x + rx * scale, y + ry * scale], fill=colour)
    return np.asarray(image)


PICTURES = [ovals(320, 320, 1.3), ovals(200, 320, 0.6), ovals(640, 360, 1), ovals(64, 48, 0.2)]


def plain(frame):
    """What plain onnxruntime says of a frame, prepared with numpy and cv2's resizing."""
    import cv2
    import nudenet
    import onnxruntime

    side = max(frame.shape[:2])
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[: frame.shape[0], : frame.shape[1]] = frame
    small = cv2.resize(square, (320, 320), interpolation=cv2.INTER_LINEAR)
    session = onnxruntime.InferenceSession(str(Path(nudenet.__file__).parent / "320n.onnx"))
    return session.run(None, {"images": small.transpose(2, 0, 1)[None].astype(np.float32) / 255})[0]


def test_raw_output_is_that_of_plain_onnxruntime(judge):
    for picture in PICTURES:
        np.testing.assert_allclose(judge.raw([picture]), plain(picture), rtol=1e-5, atol=1e-5)


def test_scores_are_those_of_the_packages_own_detector(judge, detector):
    """The detector keeps RGB if that is what it gets; it drops what scores low, the judge does not."""
    found = detector.NudeDetector().detect(PICTURES[0])
    scores = judge.raw(PICTURES[:1])[0, 4:].max(axis=1)
    best = max(found, key=lambda detection: detection["score"])
    assert scores[judge.classes().index(best["class"])] == pytest.approx(best["score"], abs=1e-5)


def test_a_clip_is_as_unsafe_as_its_worst_frame_in_its_worst_class(judge):
    scores = plain(PICTURES[0])[0, 4:].max(axis=1)
    chosen = [judge.classes()[column] for column in np.argsort(scores)[[0, -1]]]
    judge = load(read_config(WORD | {"labels": dict.fromkeys(chosen, "seen"), "unsafe": {"seen": 0.3}}))
    blank = np.full_like(PICTURES[0], 128)
    clips = [np.stack([blank, PICTURES[0], blank]), np.stack([blank])]
    verdicts = run_judge(judge, clips, ["ovals", "nothing"])
    np.testing.assert_allclose(verdicts.unsafe["seen"][0], scores.max(), atol=1e-5)
    np.testing.assert_array_equal(verdicts.is_unsafe(judge.unsafe), [True, False])


def test_a_class_that_the_detector_lacks_is_refused(judge):
    with pytest.raises(JudgeError, match="no class TEAPOT"):
        load(read_config(WORD | {"labels": {"TEAPOT": "face"}}))
