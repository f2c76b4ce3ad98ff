"""The simulation against what is known of queues in closed form, and its own rules."""

import numpy as np
import pytest

from benchmarks.simulation import Scaling, Service, Simulation, poisson

ONE_BY_ONE = Service(call_s=0.0, clip_s=1.0, max_batch=1, max_wait_s=0.0, load_s=5.0)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_one_server_without_batches_waits_as_the_formula_of_pollaczek_and_khinchine_says(busy: float) -> None:
    outcome = Simulation(poisson(busy, 40_000, 0), ONE_BY_ONE, Scaling.fixed(1)).run()
    assert np.mean(outcome.waits) == pytest.approx(busy / (2 * (1 - busy)), rel=0.1)
    assert outcome.batches == [1] * len(outcome.batches)


def test_jobs_that_come_together_share_a_call() -> None:
    service = Service(call_s=1.0, clip_s=0.5, max_batch=4, max_wait_s=0.1, load_s=0.0)
    outcome = Simulation([0.0] * 6, service, Scaling.fixed(1)).run()
    assert outcome.batches == [4, 2]
    assert outcome.latencies == pytest.approx([3.0] * 4 + [5.0] * 2)


def test_what_is_beyond_the_bound_is_refused_and_everything_else_is_done() -> None:
    outcome = Simulation([0.0] * 20, ONE_BY_ONE, Scaling.fixed(1), queued=5).run()
    assert (outcome.refused, len(outcome.latencies)) == (13, 7)  # five wait in the table, two at the replica


def test_a_replica_starts_from_zero_loads_and_goes_again_and_its_time_is_counted() -> None:
    scaling = Scaling(0, 2, 10, upscale_delay_s=30, downscale_delay_s=60, to_zero_delay_s=60)
    outcome = Simulation([10.0, 500.0], ONE_BY_ONE, scaling).run()
    assert outcome.latencies == pytest.approx([6.0, 6.0], abs=1.1)  # a load and a clip, and a look of the autoscaler
    assert outcome.most_replicas == 1
    assert 60 <= outcome.replica_s <= 90


def test_more_load_brings_more_replicas_after_the_delay_and_not_beyond_the_bound() -> None:
    scaling = Scaling(1, 3, 2, upscale_delay_s=10, downscale_delay_s=600, to_zero_delay_s=600)
    outcome = Simulation([0.0] * 40, ONE_BY_ONE, scaling).run()
    assert outcome.most_replicas == 3
    assert 15 < max(outcome.latencies) < 30  # one alone would take 40, three 13 and their start
