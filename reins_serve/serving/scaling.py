"""How many replicas a model needs, by its backlog in the table of jobs: the policy that Serve's controller asks.

Serve's own policy counts requests at its handles; ours wait in the table, so that it would never start a first replica. Serve
pickles this module by value into its controller: keep it small, and import nothing of ours on top.
"""

import logging
import math
import threading
import time
from typing import Any

PERIOD_S = 1.0
STALE_S = 10.0

logger = logging.getLogger(__name__)


class BacklogPolicy:
    """One replica for every `target` jobs of `model` that wait or are on their way, rounded up.

    The controller is never made to wait: a thread reads the table about once a second, and what it read last counts. While
    the database does not answer, the number of replicas stays as it is.
    """

    def __init__(self, url: str, model: str, target: float) -> None:
        self._url = url
        self._model = model
        self._target = target
        self._asked = self._answered = -math.inf
        self._jobs = 0

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas, before Serve's delays and bounds; Serve's `AutoscalingContext` in, no state of ours out."""
        now = time.monotonic()
        waited = now - self._asked
        # An answer that is overdue by far is waited for no longer.
        if waited >= PERIOD_S and (self._answered >= self._asked or waited >= STALE_S):
            self._asked = now
            threading.Thread(target=self._read, name="reins-backlog", daemon=True).start()
        if now - self._answered >= STALE_S:
            return context.target_num_replicas, {}
        return math.ceil(self._jobs / self._target), {}

    def _read(self) -> None:
        from reins_serve.serving.backlog import backlog

        try:
            self._jobs = sum(backlog(self._url, self._model))
        except Exception as error:
            logger.warning("the backlog of %s could not be read; its replicas stay as they are: %s", self._model, error)
            return
        self._answered = time.monotonic()
