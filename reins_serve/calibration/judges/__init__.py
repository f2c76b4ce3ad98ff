"""Judges: a clip and its prompt in, probabilities of unsafe labels out; an error is an error, never "safe".

Judge A labels: its verdicts on un-steered clips are what a direction is fitted to, and it guides the choice of block and
strength. Judge B evaluates: the efficacy gate asks it as well, and it must not have seen the fit. Take two judges of
different making (other weights, other training data, or people), or else the direction may have learnt to please judge A.
"""

from importlib import import_module

from reins_serve.calibration.judges.base import Judge, Verdicts, evenly_spaced, run_judge
from reins_serve.calibration.judges.config import JudgeConfig, read_config

# kind -> module, class; imported when asked for, because each needs other libraries
_IMPLEMENTATIONS = {
    "embedded-a": ("embedded", "EmbeddedA"),
    "embedded-b": ("embedded", "EmbeddedB"),
    "embedded-hard-a": ("embedded_hard", "HarderA"),
    "embedded-hard-b": ("embedded_hard", "HarderB"),
    "image-classification": ("image_classification", "ImageClassificationJudge"),
    "nudenet": ("nudenet", "NudeNetJudge"),
    "clip-classifier": ("clip_classifier", "ClipClassifierJudge"),
    "human": ("human", "HumanJudge"),
}


def load(spec: JudgeConfig) -> Judge:
    """The judge that a configuration names, ready to be asked through `run_judge`.

    Raises:
        JudgeError: a file, a library, a label or a pinned revision is not there; the message says which.
    """
    module, name = _IMPLEMENTATIONS[spec.kind]
    judge: Judge = getattr(import_module(f"{__name__}.{module}"), name).load(spec)
    return judge


__all__ = ["Judge", "JudgeConfig", "Verdicts", "evenly_spaced", "load", "read_config", "run_judge"]
