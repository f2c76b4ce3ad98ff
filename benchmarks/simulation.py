"""A discrete-event model of one served model: jobs in a table, batching replicas, and Serve's autoscaler. Times in seconds.

What it takes from the real thing: jobs are handed out in the order of their arrival, at most two batches to a replica, of two
replicas chosen at random to the one that has less (Serve's power of two choices); a batch begins when it is full or its oldest
job has waited `max_wait_s`; the backlog decides how many replicas there shall be, and that wish must last for Serve's delays;
a replica takes jobs only once it has loaded, and one that goes finishes what it has. A replica costs GPU time from its start to
its end. What it leaves out: failures, the time on the network and in the database, and how much batches differ in their time.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

CONTROL_PERIOD_S = 1.0  # how old the backlog may be that the policy goes by

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Service:
    """What a replica can do.

    Attributes:
        call_s, clip_s: A pipeline call takes `call_s`, and `clip_s` more for each clip in it.
        load_s: From a replica's start to its first job.
    """

    call_s: float
    clip_s: float
    max_batch: int
    max_wait_s: float
    load_s: float

    def seconds(self, clips: int) -> float:
        """The time of one call."""
        return self.call_s + self.clip_s * clips

    @property
    def capacity(self) -> float:
        """Clips a second of one replica whose batches are full."""
        return self.max_batch / self.seconds(self.max_batch)


@dataclass(frozen=True)
class Scaling:
    """As `Autoscaling` of the configuration."""

    min_replicas: int
    max_replicas: int
    target: float
    upscale_delay_s: float
    downscale_delay_s: float
    to_zero_delay_s: float

    @classmethod
    def fixed(cls, replicas: int) -> "Scaling":
        """So many replicas, always."""
        return cls(replicas, replicas, 1.0, 0.0, 0.0, 0.0)


@dataclass(eq=False)
class Replica:
    """One replica: its jobs, by their arrival."""

    started: float
    ready: bool = False
    leaving: bool = False
    ended: float | None = None
    waiting: list[float] = field(default_factory=list)
    running: int = 0

    @property
    def held(self) -> int:
        return len(self.waiting) + self.running


@dataclass
class Outcome:
    """What came of a run; times in seconds."""

    latencies: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    refused: int = 0
    replica_s: float = 0.0
    most_replicas: int = 0

    def latency(self, percent: float) -> float:
        """A percentile."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("nan")


class Simulation:
    """One run.

    Args:
        arrivals: When jobs arrive, ascending.
        queued: Most jobs that may wait in the table; those beyond it are refused.
    """

    def __init__(
        self, arrivals: Sequence[float], service: Service, scaling: Scaling, queued: int = 10**9, seed: int = 0
    ) -> None:
        self._env = simpy.Environment()
        self._service = service
        self._scaling = scaling
        self._queued = queued
        self._rng = np.random.default_rng(seed)
        self._table: list[float] = []
        self._replicas: list[Replica] = []
        self._changed = self._env.event()
        self._arrivals = arrivals
        self._over = False
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Until every accepted job is done."""
        for _ in range(self._scaling.min_replicas):
            self._start(warm=True)
        self._env.process(self._scale())
        done = self._env.process(self._arrive())
        self._env.run(done)
        end = self._env.now
        self.outcome.replica_s = sum((end if r.ended is None else r.ended) - r.started for r in self._replicas)
        return self.outcome

    def _arrive(self) -> Process:
        for at in self._arrivals:
            yield self._env.timeout(max(0.0, at - self._env.now))
            if len(self._table) >= self._queued:
                self.outcome.refused += 1
                continue
            self._table.append(self._env.now)
            self._hand_out()
        while self._table or any(replica.held for replica in self._replicas):
            yield self._changed
        self._over = True

    def _hand_out(self) -> None:
        limit = 2 * self._service.max_batch
        while self._table:
            free = [r for r in self._replicas if r.ready and not r.leaving and r.held < limit]
            if not free:
                return
            few = [free[index] for index in self._rng.choice(len(free), min(2, len(free)), replace=False)]
            chosen = min(few, key=lambda replica: replica.held)
            chosen.waiting.append(self._table.pop(0))
            self._notify()

    def _notify(self) -> None:
        self._changed.succeed()
        self._changed = self._env.event()

    def _start(self, warm: bool = False) -> None:
        replica = Replica(self._env.now)
        self._replicas.append(replica)
        self._env.process(self._serve(replica, warm))
        alive = sum(r.ended is None and not r.leaving for r in self._replicas)
        self.outcome.most_replicas = max(self.outcome.most_replicas, alive)

    def _serve(self, replica: Replica, warm: bool) -> Process:
        env, service = self._env, self._service
        if not warm:
            yield env.timeout(service.load_s)
        replica.ready = True
        self._hand_out()
        while not (replica.leaving and not replica.waiting):
            if not replica.waiting:
                yield self._changed
                continue
            patience = replica.waiting[0] + service.max_wait_s - env.now
            if len(replica.waiting) < service.max_batch and patience > 1e-9:
                yield self._changed | env.timeout(patience)
                continue
            batch, replica.waiting = replica.waiting[: service.max_batch], replica.waiting[service.max_batch :]
            replica.running = len(batch)
            self.outcome.batches.append(len(batch))
            self.outcome.waits += [env.now - at for at in batch]
            yield env.timeout(service.seconds(len(batch)))
            self.outcome.latencies += [env.now - at for at in batch]
            replica.running = 0
            self._hand_out()
            self._notify()
        replica.ended = env.now

    def _scale(self) -> Process:
        """Serve's autoscaler: a wish for more, or for fewer, must last before it is followed."""
        scaling, wished_since, wish = self._scaling, 0.0, 0
        while not self._over:
            alive = [replica for replica in self._replicas if replica.ended is None and not replica.leaving]
            backlog = len(self._table) + sum(replica.held for replica in alive)
            wanted = int(np.clip(np.ceil(backlog / scaling.target), scaling.min_replicas, scaling.max_replicas))
            direction = int(np.sign(wanted - len(alive)))
            if direction != wish:
                wish, wished_since = direction, self._env.now
            delay = scaling.upscale_delay_s if alive else 0.0
            if direction < 0:
                delay = scaling.downscale_delay_s if wanted else scaling.to_zero_delay_s
            if direction and self._env.now - wished_since >= delay:
                for _ in range(wanted - len(alive)):
                    self._start()
                for replica in sorted(alive, key=lambda r: (r.ready, r.held))[: len(alive) - wanted]:
                    replica.leaving = True
                wish = 0
                self._notify()
            yield self._env.timeout(CONTROL_PERIOD_S)


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times at a mean rate a second, for so long."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(rate * seconds * 1.5) + 100)
    times = np.cumsum(gaps)
    return [float(at) for at in times[times < seconds]]
