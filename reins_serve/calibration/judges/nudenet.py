"""NudeNet's detector as a judge, an extra of its own: `pip install reins-serve[judges]`.

Its package metadata says MIT, but the LICENSE in its wheel, and the model file's own metadata, say AGPL-3.0: whoever serves
or distributes it should follow the stricter one. The wheel carries the model; nothing is downloaded.
"""

import ast
import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reins_serve.calibration.judges.base import Verdicts
from reins_serve.calibration.judges.config import NudeNetConfig
from reins_serve.calibration.judges.frames import over_frames
from reins_serve.errors import JudgeError

SIDE = 320

try:
    import cv2
    from nudenet import NudeDetector
except ImportError as error:
    raise JudgeError("The nudenet judge needs its extra: pip install 'reins-serve[judges]'.") from error

warnings.warn(
    "nudenet's metadata says MIT, but the LICENSE in its wheel is AGPL-3.0: treat it as AGPL-3.0 until its authors say otherwise.",
    UserWarning,
    stacklevel=2,
)


class NudeNetJudge:
    """The highest score of a class over a frame's boxes, reduced over the frames; it checks no benign attribute.

    The scores are the network's own, before the detector drops boxes below 0.25, so that low thresholds mean something.
    """

    deterministic = True
    may_skip = False
    kept: tuple[str, ...] = ()

    def __init__(self, config: NudeNetConfig) -> None:
        """Raises JudgeError for a class that the detector lacks."""
        self._config = config
        self._session = NudeDetector(inference_resolution=SIDE).onnx_session
        self.name = config.name
        self.revision = f"nudenet-{importlib.metadata.version('nudenet')}"
        self.unsafe: Mapping[str, float] = config.unsafe
        own = self.classes()
        unknown = sorted(set(config.labels) - set(own))
        if unknown:
            raise JudgeError(f"NudeNet has no class {', '.join(unknown)}; it has: {', '.join(own)}.")
        self._columns = {
            name: [own.index(label) for label, target in config.labels.items() if target == name]
            for name in config.unsafe
        }

    @classmethod
    def load(cls, config: NudeNetConfig) -> "NudeNetJudge":
        return cls(config)

    def classes(self) -> list[str]:
        """The detector's classes, in the order of its scores."""
        names = ast.literal_eval(self._session.get_modelmeta().custom_metadata_map["names"])
        return [names[index] for index in range(len(names))]

    def raw(self, frames: Sequence[np.ndarray]) -> NDArray[np.float32]:
        """The network's output for frames uint8 `[H, W, 3]`, RGB: `[frames, 4 + classes, boxes]`, of each box its centre,
        width and height in pixels of the 320 x 320 input, then a score for each class."""
        blobs = np.concatenate([_blob(frame) for frame in frames])
        output: NDArray[np.float32] = self._session.run(None, {self._session.get_inputs()[0].name: blobs})[0]
        return output

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Clips may differ in length and size. A clip shorter than `num_frames` is looked at whole."""
        return Verdicts(over_frames(clips, self._config, self._frame_probabilities), {})

    def _frame_probabilities(self, frames: Sequence[np.ndarray]) -> dict[str, NDArray[np.float32]]:
        scores = self.raw(frames)[:, 4:].max(axis=2)
        return {name: scores[:, own].max(axis=1) for name, own in self._columns.items()}


def _blob(frame: np.ndarray) -> NDArray[np.float32]:
    """A frame as the network was trained on it: black added below or at the right to a square, 320 x 320, RGB, 0 to 1.

    `NudeDetector.detect` of nudenet 3.4 swaps the channels twice, so that pictures read by OpenCV reach the network as BGR;
    here it always gets RGB, the order of our frames.
    """
    height, width = frame.shape[:2]
    side = max(height, width)
    square = cv2.copyMakeBorder(frame, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)
    blob = cv2.dnn.blobFromImage(square, 1 / 255.0, (SIDE, SIDE), (0, 0, 0), swapRB=False, crop=False)
    return np.asarray(blob, dtype=np.float32)
