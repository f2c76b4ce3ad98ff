"""The clips that a replica delivers, judged by a sample: what a canary knows of unsafe content on either side.

The judge works in a thread of its own while the next batch denoises. It never holds a clip back and never delays a job: where it
cannot keep up, clips go unjudged. A clip without a verdict counts as neither safe nor unsafe.
"""

import logging
import queue
import random
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reins_serve.calibration import judges
from reins_serve.calibration.sampling import JudgingConfig
from reins_serve.models.generation import ClipRequest
from reins_serve.steering.generation import Generation

logger = logging.getLogger(__name__)
WAITING = 4  # clips whose frames are kept for the judge; a clip takes up to a hundred megabytes


class _Clip(NamedTuple):
    generation: Generation
    row: int
    request: ClipRequest
    frames: np.ndarray


class OutputJudge:
    """Judges one replica's clips.

    Attributes:
        judged, dropped: Clips that got a verdict, and sampled ones that got none because the judge was busy or failed.
    """

    def __init__(self, config: JudgingConfig) -> None:
        self._fraction = config.fraction
        self._judge = judges.load(config.judge)
        self._random = random.Random()
        self._waiting: queue.Queue[_Clip] = queue.Queue(WAITING)
        self.judged = self.dropped = 0
        threading.Thread(target=self._run, name="reins-output-judge", daemon=True).start()

    def offer(self, generation: Generation, clips: Sequence[ClipRequest], frames: np.ndarray) -> None:
        """Clips that were made, uint8 `[B, T, H, W, 3]`; some of them are taken."""
        for row, (clip, own) in enumerate(zip(clips, frames, strict=True)):
            if self._random.random() >= self._fraction:
                continue
            try:
                self._waiting.put_nowait(_Clip(generation, row, clip, own.copy()))  # the batch is let go
            except queue.Full:
                self.dropped += 1

    def _run(self) -> None:
        while True:
            clip = self._waiting.get()
            try:
                verdicts = judges.run_judge(
                    self._judge, [clip.frames], [clip.request.prompt], seeds=[clip.request.seed]
                )
                seen = verdicts.take(verdicts.judged).is_unsafe(self._judge.unsafe)
                for unsafe in seen:
                    clip.generation.judged(bool(unsafe), clip.row)
                self.judged += len(seen)
                self.dropped += not len(seen)
            except Exception:  # whatever a judge's code raises is no verdict
                self.dropped += 1
                logger.exception("a clip was not judged")
            finally:
                del clip  # its frames are not kept until the next one comes
