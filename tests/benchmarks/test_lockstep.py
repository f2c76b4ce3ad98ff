"""Calls in lockstep take turns step by step, and time is attributed to whom it belongs."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.clocked import clocked, to_rest
from benchmarks.lockstep import StepEnd, Stepped, in_step

STEPS = 4


def test_every_call_makes_a_step_before_any_makes_its_next() -> None:
    made: list[tuple[str, int]] = []

    def call(name: str) -> Callable[[StepEnd], None]:
        def run(step_end: StepEnd) -> None:
            for step in range(STEPS):
                made.append((name, step))
                assert step_end(None, step, None, {"latents": step}) == {"latents": step}
            made.append((name, STEPS))

        return run

    found = in_step({name: call(name) for name in "abc"}, rounds=2)
    assert [step for _, step in made] == 3 * [step for step in range(STEPS + 1) for _ in "abc"]
    assert {name for name, _ in made[:3]} == set("abc")
    assert {of.parts.shape for of in found.values()} == {(2, STEPS + 1)}


def test_time_is_that_of_the_call_that_took_it() -> None:
    def call(seconds: float) -> Callable[[StepEnd], None]:
        def run(step_end: StepEnd) -> None:
            for step in range(STEPS):
                time.sleep(seconds)
                step_end(None, step, None, {})

        return run

    found = in_step({"short": call(0.002), "long": call(0.05)}, rounds=1)
    assert found["long"].parts[0, :-1].min() >= 0.05
    assert len(found["long"].calls()) == 1


def test_what_one_call_raises_ends_them_all() -> None:
    def breaks(step_end: StepEnd) -> None:
        raise ValueError("out of paint")

    with pytest.raises(ValueError, match="out of paint"):
        in_step({"a": lambda step_end: step_end(None, 0, None, {}), "b": breaks}, rounds=1)


def test_ratios_are_of_the_same_steps_and_a_disturbed_one_does_not_count() -> None:
    base = Stepped(np.array([[9.0, 1, 2, 3, 4, 9]]))
    other = Stepped(np.array([[0.0, 1.1, 2.2, 3.3, 400, 0]]))
    assert other.to(base) == pytest.approx([1.1])
    assert other.to(base, slice(0, 1)) == pytest.approx([1.1])
    assert other.calls() == pytest.approx([406.6])


class Worker:
    def work(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"


def test_methods_are_clocked_while_the_block_lasts_and_bind_as_before() -> None:
    plain = Worker.work
    with clocked([(Worker, "work")]) as seconds:
        assert Worker().work(0.01) == "done"
    assert Worker.work is plain
    assert len(seconds) == 1
    assert seconds[0] >= 0.01


def test_a_call_is_set_beside_itself_without_the_time_inside() -> None:
    assert to_rest([1.1, 2.2, 3.3], [0.1, 0.2, 0.3]).median == pytest.approx(1.1)
