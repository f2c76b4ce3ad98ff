"""A replica's inner figures, exported through Ray with the replica's own labels."""

from typing import Any

from reins_serve import metrics
from reins_serve.rollout.meters import exported


class InnerMetrics:
    """Histograms of one replica of `model`."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._series: dict[str, Any] = {metric.name: exported(metric) for metric in metrics.EXPORTED_BY_REPLICAS}

    def denoise_step(self, seconds: float) -> None:
        """One denoising step of a batch is over."""
        self._series[metrics.DENOISE_STEP.name].observe(seconds, {"model": self._model})

    def stage(self, name: str, seconds: float) -> None:
        """One stage is over: `load`, `generate` or `encode`."""
        self._series[metrics.STAGE.name].observe(seconds, {"model": self._model, "stage": name})
