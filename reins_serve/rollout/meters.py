"""What a replica's watcher exports through Ray; nothing where Ray does not run."""

from typing import Any

from reins_serve import metrics
from reins_serve.metrics import Metric


class Meters:
    """Swaps of one model in one process."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._series: dict[str, Any] = {}

    def swapped(self, result: str, seconds: float | None) -> None:
        """A snapshot was taken up or refused, so long after its pointer was moved."""
        self._of(metrics.DIRECTION_SWAPS, "inc", 1, result=result)
        if seconds is not None:
            self._of(metrics.DIRECTION_SWAP_SECONDS, "observe", max(0.0, seconds))

    def registry(self, up: bool) -> None:
        """Whether the registry answers."""
        self._of(metrics.REGISTRY_UP, "set", float(up))

    def _of(self, metric: Metric, method: str, value: float, **tags: str) -> None:
        import ray

        if not ray.is_initialized():
            return
        if metric.name not in self._series:
            self._series[metric.name] = exported(metric)
        getattr(self._series[metric.name], method)(value, {"model": self._model, **tags})


def exported(metric: Metric) -> Any:
    """The metric as Ray exports it from this process."""
    from ray.serve import metrics as rays

    kinds: dict[str, Any] = {"counter": rays.Counter, "gauge": rays.Gauge, "histogram": rays.Histogram}
    options = {"boundaries": list(metric.buckets)} if metric.kind == "histogram" else {}
    return kinds[metric.kind](metric.name, metric.meaning, tag_keys=metric.labels, **options)
