"""Each gate lets sound evidence through, and stops the fault that it is there for."""

from dataclasses import replace

import numpy as np
import pytest

from reins_serve.calibration.gates import (
    FitEvidence,
    Pairs,
    RunEvidence,
    dose_trend,
    fit_gates,
    mcnemar,
    run_gates,
    worst_gates,
)
from reins_serve.steering.direction import Gate

N = 432
YES, NO = np.ones(N, bool), np.zeros(N, bool)
FIT = FitEvidence((), (144, 144), 0.99, 0.001, 0.98, (0.96, 0.97), 0.99, 0.95, 0.97)
RUN = RunEvidence(
    unsafe=Pairs({"a": YES, "b": YES}, {"a": NO, "b": NO}, ["explosion"] * N),
    benign=Pairs({"shape": YES}, {"shape": YES}),
    drift=29.0,
    second_seed=15.0,
    doses=[(0.0, 96, 96), (1.0, 80, 96), (1.5, 20, 96), (2.0, 0, 96), (3.0, 0, 96)],
    serving=2.0,
    reversed=Pairs({"a": NO, "b": NO}, {"a": YES, "b": YES}),
)


def some(share: float) -> np.ndarray:
    return np.arange(N) < share * N


def failed(gates: dict) -> set[str]:
    return {name for name, gate in gates.items() if not gate.passed}


def test_sound_evidence_passes_every_gate() -> None:
    assert not failed(fit_gates(FIT) | run_gates(RUN))
    assert len(fit_gates(FIT) | run_gates(RUN)) == 17


def test_the_reverse_is_asked_only_where_it_could_show() -> None:
    assert "reverse" not in run_gates(replace(RUN, reversed=None))
    assert "reverse" not in run_gates(replace(RUN, reversed=Pairs({"a": YES, "b": NO}, {"a": YES, "b": NO})))
    assert "reverse" in run_gates(replace(RUN, reversed=Pairs({"a": some(0.8), "b": NO}, {"a": YES, "b": NO})))


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"problems": ("3 vectors are not finite",)}, "integrity"),
        ({"prompts": (144, 60)}, "size"),
        ({"prompts": (1500, 100)}, "balance"),
        ({"auc_low": 0.69}, "separability"),
        ({"permutation_p": 0.2}, "null"),
        ({"refit_cosine": 0.89}, "stability"),
        ({"split_half": (0.6, 0.9)}, "split_halves"),
        ({"clipped_cosine": 0.9}, "robustness"),
        ({"leave_one_out": 0.5}, "sources"),
        ({"live_cosine": 0.4}, "continuity"),
    ],
    ids=str,
)
def test_a_fault_of_the_fit_is_stopped_by_its_gate(change: dict, gate: str) -> None:
    assert failed(fit_gates(replace(FIT, **change))) == {gate}


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"unsafe": Pairs({"a": YES, "b": YES}, {"a": NO, "b": YES}, ["explosion"] * N)}, "efficacy"),
        ({"benign": Pairs({"shape": YES, "colour": YES}, {"shape": YES, "colour": some(0.97)})}, "utility"),
        ({"drift": 14.0}, "drift"),
        ({"doses": [(0.0, 90, 96), (1.0, 92, 96), (2.0, 91, 96)]}, "dose"),
        ({"doses": [(0.0, 96, 96), (1.0, 0, 96), (2.0, 30, 96)]}, "dose_choice"),
        ({"reversed": Pairs({"a": NO, "b": NO}, {"a": YES, "b": NO})}, "reverse"),
    ],
    ids=str,
)
def test_a_fault_of_the_steering_is_stopped_by_its_gate(change: dict, gate: str) -> None:
    assert failed(run_gates(replace(RUN, **change))) == {gate}


def test_one_category_that_gets_worse_is_not_hidden_by_the_others() -> None:
    categories = ["blast"] * 400 + ["smoke"] * 32
    off, on = np.arange(N) < 401, np.arange(N) >= 400
    gates = run_gates(replace(RUN, unsafe=Pairs({"a": off}, {"a": on}, categories)))
    assert failed(gates) == {"categories"}
    assert gates["categories"].value == pytest.approx(100 * 31 / 32)


def test_mcnemar_counts_only_the_clips_that_changed() -> None:
    low, high = np.zeros(7, bool), np.ones(7, bool)
    assert mcnemar(low, high) == pytest.approx(0.5**7)
    assert mcnemar(high, low) == 1.0
    assert mcnemar(high, high) == 1.0


def test_the_trend_test_agrees_with_a_published_example() -> None:
    """Agresti, Categorical Data Analysis, table 3.7: malformations by mother's alcohol, trend z = 2.56 (rising)."""
    doses = [(0.0, 48, 17114), (0.5, 38, 14502), (1.5, 5, 793), (4.0, 1, 127), (7.0, 1, 38)]
    assert dose_trend(doses) == pytest.approx(0.9948, abs=0.0005)


def test_a_gate_that_fails_for_one_of_the_fits_fails() -> None:
    good, bad = (Gate(value=value, limit="x", passed=value > 0.5) for value in (0.9, 0.1))
    assert worst_gates([{"size": good, "null": bad}, {"size": good, "null": good}]) == {"size": good, "null": bad}
    assert worst_gates([{"size": good}, {"size": bad}]) == {"size": bad}
