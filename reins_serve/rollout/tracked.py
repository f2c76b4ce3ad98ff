"""What the registry keeps of one model: what is shown to the replicas, and what they said of themselves.

Replicas say with every poll all that they have counted since what serves last changed. So the counts of one that died are
kept as it last said them, and a registry that was restarted has those of the living again after one poll of each.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import reduce
from operator import add
from typing import Any

from reins_serve.rollout.snapshot import Report, Snapshot, Staged
from reins_serve.steering.outcomes import Outcome


class TrackedModel:
    """One model.

    Attributes:
        snapshot: What every poll is answered with.
        changed: Set, and replaced, when that is another one.
        error: Why it is not what storage says.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.changed = asyncio.Event()
        self.error = snapshot.error
        self._reports: dict[str, tuple[Report, float]] = {}
        self._outcomes: dict[str, Mapping[str, Outcome]] = {}

    def show(self, snapshot: Snapshot) -> None:
        """Answer every poll that waits."""
        self.error = snapshot.error
        if snapshot is self.snapshot:
            return
        if snapshot.epoch != self.snapshot.epoch:
            self._outcomes = {}
        self.snapshot = snapshot
        self.changed.set()
        self.changed = asyncio.Event()

    def heard(self, report: Report) -> None:
        """A replica has polled."""
        self._reports[report.replica] = report, time.time()
        if report.epoch == self.snapshot.epoch:
            self._outcomes[report.replica] = report.outcomes

    def outcome(self, version: Staged | None) -> Outcome:
        """What all replicas together have counted for a version since what serves last changed."""
        if version is None:
            return Outcome()
        counted = (outcomes.get(version.sha256, Outcome()) for outcomes in self._outcomes.values())
        return reduce(add, counted, Outcome())

    def status(self, oldest: float) -> dict[str, Any]:
        """All of it, fit for JSON; replicas that have not polled since `oldest` (Unix time) are gone."""
        snapshot = self.snapshot
        self._reports = {name: seen for name, seen in self._reports.items() if seen[1] > oldest}
        return {
            "model": snapshot.model,
            "generation": snapshot.generation,
            "live": self._told(snapshot.live),
            "candidate": self._told(snapshot.candidate),
            "fraction": snapshot.fraction,
            "auto": None if snapshot.auto is None else snapshot.auto.model_dump(mode="json", exclude={"format"}),
            "error": self.error,
            "replicas": [_replica(report, asked) for report, asked in self._reports.values()],
        }

    def _told(self, version: Staged | None) -> dict[str, Any] | None:
        if version is None:
            return None
        outcome = self.outcome(version)
        counts = {name: getattr(outcome, name) for name in ("steered", "failed", "score", "judged", "unsafe")}
        return {"sha256": version.sha256, "number": version.number, "outcomes": counts}


def _replica(report: Report, asked: float) -> dict[str, Any]:
    return {name: value for name, value in asdict(report).items() if name != "outcomes"} | {"asked": asked}
