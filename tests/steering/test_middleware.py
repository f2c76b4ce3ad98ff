"""The serving path on a tiny pipeline: exact when off, exact in its window, proved, and closed when anything is missing."""

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry

from reins_serve.errors import DirectionError, GenerationCancelled, ReinsError, SteeringNotApplied, SteeringUnavailable
from reins_serve.models.generation import generate, request
from reins_serve.plugin import SteeringMiddleware
from reins_serve.steering import generation
from reins_serve.steering.direction import Direction
from reins_serve.steering.generation import Generation
from reins_serve.steering.hook import HOOK_NAME
from reins_serve.steering.policy import SteeringChoice, SteeringRow, resolve, takes_candidate, unsteered
from tests import tiny

Steer = Callable[..., SteeringMiddleware]
OFF = unsteered("test")
CLIPS = [request(tiny.ENTRY, "a red square", seed) for seed in (1, 2)]


def run(steering: SteeringMiddleware, rows: list[SteeringRow], **changes: object) -> np.ndarray:
    clips = [request(tiny.ENTRY, "a red square", seed + 1, **changes) for seed in range(len(rows))]
    with steering.generation(rows=rows) as g:
        frames = generate(steering.pipeline, tiny.ENTRY, clips, g.arguments)
    run.records = g.records  # type: ignore[attr-defined]
    return frames


def bare() -> np.ndarray:
    return generate(tiny.pipeline(), tiny.ENTRY, CLIPS)


def live(strength: float = 0.5, name: str = "live") -> SteeringRow:
    return SteeringRow(name, strength)


@pytest.mark.parametrize("kind", ["add", "setpoint", "token", "channel"])
def test_off_is_bit_identical_to_a_pipeline_that_was_never_touched(steer: Steer, kind: str) -> None:
    assert np.array_equal(run(steer(kind), [OFF, OFF]), bare())


@pytest.mark.parametrize("kind", ["add", "setpoint", "token", "channel"])
def test_a_row_that_is_off_is_bit_identical_beside_a_steered_one(steer: Steer, kind: str) -> None:
    frames = run(steer(kind), [live(), OFF])
    assert np.array_equal(frames[1], bare()[1])
    assert not np.array_equal(frames[0], bare()[0])


def test_rows_of_one_batch_carry_their_own_directions_and_strengths(steer: Steer) -> None:
    steering = steer("add", other="setpoint", third="channel")
    rows = [live(0.5), live(1.5, "other"), live(2.0), OFF, live(1.0, "third")]
    frames = run(steering, rows)
    records = run.records  # type: ignore[attr-defined]
    assert [r.direction for r in records] == ["add", "setpoint", "add", None, "channel"]
    assert [r.applied for r in records] == [4, 2, 4, 0, 2]  # branches x 2 steps, conditional alone for two of them
    assert records[2].displacement == pytest.approx(4 * records[0].displacement)
    alone = run(steering, [OFF, live(1.5, "other"), OFF, OFF, OFF])
    assert np.abs(alone[1].astype(int) - frames[1]).max() <= 1  # another batch's sums may round otherwise


def test_the_record_says_what_was_done_and_that_it_is_proved(steer: Steer) -> None:
    steering = steer()
    with steering.generation(strength=1.0) as g:
        generate(steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)
    record = g.record
    assert (record.planned, record.applied, record.steps_steered, record.strength) == (4, 4, 2, 1.0)
    assert record.sha256 == steering.directions["live"].sha256
    assert record.displacement == pytest.approx(1.0)
    assert record.proved


def test_the_record_says_in_what_share_of_its_guards_calls_a_clip_was_held(steer: Steer) -> None:
    steering = steer("guard", other="add")
    guard = steering.directions["live"]

    def held(mean: float) -> list[float | None]:
        means = {"safe_mean": mean, "unsafe_mean": mean - 1, "gap": 1.0}
        statistics = [one.model_copy(update=means) for one in guard.meta.statistics]
        moved = guard.meta.model_copy(update={"statistics": tuple(statistics)})
        steering.swap(dict(steering.directions) | {"live": Direction.create(moved, guard.vectors)})
        run(steering, [live(1.0), live(1.0, "other"), OFF])
        return [record.guarded for record in run.records]  # type: ignore[attr-defined]

    assert held(100.0) == [1, None, None]
    assert held(-100.0) == [0, None, None]


@pytest.mark.parametrize(("steps", "steered"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_the_window_is_the_first_half_rounded_up(steer: Steer, steps: int, steered: int) -> None:
    run(steer("setpoint"), [live(1.5)], num_inference_steps=steps)
    assert run.records[0].applied == steered  # type: ignore[attr-defined]


def test_without_guidance_there_is_one_branch_and_it_is_conditional(steer: Steer) -> None:
    run(steer("add", other="setpoint"), [live(), live(1.5, "other")], guidance_scale=1.0)
    assert [r.applied for r in run.records] == [2, 2]  # type: ignore[attr-defined]


def test_the_conditional_branch_alone_leaves_unconditional_calls_untouched(steer: Steer) -> None:
    steering = steer("setpoint")
    (hook,) = steering.hooks
    with steering.generation() as g:
        assert set(hook.rows) == {"cond"}
        generate(steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)


def test_an_attached_pipeline_generates_nothing_outside_a_generation(steer: Steer) -> None:
    with pytest.raises(SteeringUnavailable, match="inside"):
        generate(steer().pipeline, tiny.ENTRY, CLIPS)


def test_a_missing_direction_gives_no_clip(steer: Steer) -> None:
    with pytest.raises(SteeringUnavailable, match="not loaded"):
        steer().generation(rows=[live(name="gone")])


def test_an_exception_in_mid_generation_leaves_the_next_one_bit_identical(steer: Steer) -> None:
    steering = steer()

    def explode(done: int, total: int) -> None:
        if done == 2:
            raise RuntimeError("planned")

    expected = run(steer(), [live(), OFF])
    with pytest.raises(RuntimeError, match="planned"), steering.generation(rows=[live(), live()], on_step=explode) as g:
        generate(steering.pipeline, tiny.ENTRY, CLIPS, g.arguments)
    assert np.array_equal(run(steering, [live(), OFF]), expected)


def test_a_cancelled_generation_stops_within_one_step(steer: Steer) -> None:
    steering, cancel, steps = steer(), threading.Event(), []

    def on_step(done: int, total: int) -> None:
        steps.append((done, total))
        cancel.set()

    with pytest.raises(GenerationCancelled), steering.generation(prompts=2, on_step=on_step, cancel=cancel) as g:
        generate(steering.pipeline, tiny.ENTRY, CLIPS, g.arguments)
    assert steps == [(1, 4)]


def test_a_second_generation_at_the_same_time_is_refused(steer: Steer) -> None:
    steering = steer()
    with pytest.raises(ReinsError, match="one generation at a time"), steering.generation(), steering.generation():
        pass


def test_a_generation_keeps_the_direction_it_began_with(steer: Steer) -> None:
    steering = steer("add", other="token")
    before, other = steering.directions["live"], steering.directions["other"]

    def swap(done: int, total: int) -> None:
        steering.swap({"live": other, "other": before})

    with steering.generation(on_step=swap) as g:
        generate(steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)
    assert g.record.sha256 == before.sha256
    assert steering.directions["live"].sha256 == other.sha256


def other_block(steering: SteeringMiddleware, block: int = 3, **changes: object) -> Direction:
    return tiny.direction(steering.pipeline, 9, name="late", blocks=(block,), **changes)


def test_a_swap_to_a_block_without_a_hook_waits_for_the_generation_that_runs(steer: Steer) -> None:
    steering = steer("add")
    late, hooks, swapping = other_block(steering), list(steering.hooks), []

    def on_step(done: int, total: int) -> None:
        if done == 1:
            swapping.append(threading.Thread(target=steering.swap, args=({"live": late},)))
            swapping[0].start()
        assert steering.hooks == hooks

    with steering.generation(on_step=on_step) as g:
        generate(steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)
    swapping[0].join()
    assert g.record.direction == "add"
    with steering.generation() as g:
        generate(steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)
    assert (g.record.direction, g.record.applied) == ("late", 4)
    assert np.array_equal(run(steering, [OFF, OFF]), bare())


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same thread", "pipeline in another thread"])
def test_a_swap_that_would_wait_for_its_own_generation_is_refused_and_made_afterwards(
    steer: Steer, elsewhere: bool
) -> None:
    steering = steer("add")
    late, before, refused = other_block(steering), steering.directions, []

    def on_step(done: int, total: int) -> None:
        with pytest.raises(ReinsError, match=r"Block 3 gets its hook between two generations.*Swap after") as error:
            steering.swap({"live": late})
        refused.append(error)

    with steering.generation(on_step=on_step) as g, ThreadPoolExecutor(1) as pool:
        arguments = (steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)
        pool.submit(generate, *arguments).result() if elsewhere else generate(*arguments)
    assert len(refused) == 4
    assert steering.directions is before
    assert g.record.direction == "add"
    steering.swap({"live": late})
    with steering.generation() as g:
        generate(steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)
    assert g.record.direction == "late"


def test_a_generation_that_could_not_be_opened_leaves_the_pipeline_to_the_next(
    steer: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = steer("add")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(generation, "rows_at", full)
        with pytest.raises(torch.OutOfMemoryError), steering.generation():
            pass
    with pytest.raises(SteeringUnavailable):  # no generation is open
        generate(steering.pipeline, tiny.ENTRY, CLIPS[:1])
    run(steering, [live()])
    assert run.records[0].proved  # type: ignore[attr-defined]


@pytest.mark.parametrize("switch", ["compile", "cache"])
def test_a_new_block_is_refused_where_a_new_hook_would_be_left_out(steer: Steer, switch: str) -> None:
    steering = steer("add")
    if switch == "compile":
        steering.pipeline.transformer.blocks[0].compile(backend="eager")
    else:
        steering.pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    before = steering.directions
    with pytest.raises(DirectionError, match="block 3, which has no hook"):
        steering.swap({"live": other_block(steering)})
    assert steering.directions is before
    steering.swap({"live": other_block(steering, block=1)})


def test_live_and_candidate_share_a_batch_by_their_keys(steer: Steer) -> None:
    steering = steer("add")
    live = steering.directions["live"]
    candidate = other_block(steering, operation="setpoint", branches="cond")
    steering.swap({"live": live, "candidate": candidate}, fraction=0.5)
    keys = [f"job-{number}" for number in range(8)]
    row = resolve(SteeringChoice(), steering.policy, steering.directions)
    run(steering, [replace(row, key=key) for key in keys])
    records = run.records  # type: ignore[attr-defined]
    assert [r.direction for r in records] == ["late" if takes_candidate(key, 0.5) else "add" for key in keys]
    assert {(r.direction, r.strength, r.applied) for r in records} == {("add", 0.5, 4), ("late", 1.5, 2)}


def test_a_strength_that_was_asked_for_is_no_part_of_a_canary(steer: Steer) -> None:
    steering = steer("add")
    steering.swap({"live": steering.directions["live"], "candidate": other_block(steering)}, fraction=0.999)
    assert [d.name for d in steering.generation(prompts=8, strength=1.0).directions] == ["add"] * 8
    assert len({d.name for d in steering.generation(prompts=8, key="one").directions}) == 1


def test_a_share_needs_a_candidate(steer: Steer) -> None:
    steering = steer("add")
    with pytest.raises(DirectionError, match="no direction of that name"):
        steering.swap(dict(steering.directions), fraction=0.5)


class TestSafetyRemoved:
    """Each safety taken out by hand: the generation must fail, never pass for steered."""

    def test_hook_detached(self, steer: Steer) -> None:
        steering = steer()
        HookRegistry.check_if_exists_or_initialize(steering.pipeline.transformer.blocks[1]).remove_hook(HOOK_NAME)
        with pytest.raises(SteeringNotApplied, match="0 times where the plan says 4"):
            run(steering, [live()])

    def test_forward_called_past_the_hook(self, steer: Steer) -> None:
        steering = steer()
        block = steering.pipeline.transformer.blocks[1]
        block.forward = lambda *a, **k: type(block).forward(block, *a, **k)
        with pytest.raises(SteeringNotApplied):
            run(steering, [live()])

    def test_counter_short(self, steer: Steer, monkeypatch: pytest.MonkeyPatch) -> None:
        steering = steer()

        def skipped(done: int, total: int) -> None:
            if done == 1:
                for hook in steering.hooks:
                    hook.rows = {}

        with pytest.raises(SteeringNotApplied, match="2 times"), steering.generation(on_step=skipped) as g:
            # The window stays open from step 0 to step 1, so nothing sets the rows again.
            generate(steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)

    def test_window_too_long(self, steer: Steer, monkeypatch: pytest.MonkeyPatch) -> None:
        steering, prepare = steer(), Generation._prepare
        monkeypatch.setattr(Generation, "_prepare", lambda self, step: prepare(self, 0))  # never closes
        with pytest.raises(SteeringNotApplied, match="8 times where the plan says 4"):
            run(steering, [live()])

    def test_callback_not_passed(self, steer: Steer) -> None:
        steering = steer()
        with pytest.raises(SteeringNotApplied, match=r"\*\*g.arguments"), steering.generation(prompts=2):
            generate(steering.pipeline, tiny.ENTRY, CLIPS)

    def test_pipeline_never_called(self, steer: Steer) -> None:
        with pytest.raises(SteeringNotApplied), steer().generation():
            pass

    def test_pipeline_called_twice(self, steer: Steer) -> None:
        steering = steer()
        with pytest.raises(SteeringNotApplied, match="twice"), steering.generation(prompts=2) as g:
            generate(steering.pipeline, tiny.ENTRY, CLIPS, g.arguments)
            generate(steering.pipeline, tiny.ENTRY, CLIPS, g.arguments)

    def test_more_prompts_than_the_plan_knows(self, steer: Steer) -> None:
        steering = steer()
        with pytest.raises(SteeringNotApplied, match="prompts=N"), steering.generation(prompts=1) as g:
            generate(steering.pipeline, tiny.ENTRY, CLIPS, g.arguments)

    def test_an_interrupted_loop(self, steer: Steer) -> None:
        steering = steer()

        def interrupt(done: int, total: int) -> None:
            steering.pipeline._interrupt = True

        with pytest.raises(SteeringNotApplied, match="1 of 4"), steering.generation(on_step=interrupt) as g:
            generate(steering.pipeline, tiny.ENTRY, CLIPS[:1], g.arguments)


@pytest.mark.slow
def test_memory_is_flat_over_a_hundred_generations(steer: Steer) -> None:
    steering = steer("add", other="setpoint")
    rows = [live(), live(1.5, "other"), OFF]

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    for _ in range(20):
        run(steering, rows)
    before, resident = tensors(), []
    for _ in range(100):
        run(steering, rows)
        resident.append(psutil.Process().memory_info().rss / 2**20)
    assert tensors() == before
    slope = np.polyfit(range(100), resident, 1)[0]
    assert slope < 0.05, f"{slope:.3f} MiB a generation"


def test_a_hook_takes_what_it_needs_to_where_the_hidden_states_are(steer: Callable[..., SteeringMiddleware]) -> None:
    steering = steer("add")
    (hook,) = steering.hooks
    with pytest.raises(SteeringNotApplied), steering.generation():  # no clip is made
        hook.calls.enter("cond")
        hidden = torch.empty(1, 8, steering.base.width, dtype=torch.bfloat16, device="meta")
        assert hook.post_forward(steering.pipeline.transformer, hidden).device.type == "meta"
        assert hook.state.tally is not None
        assert hook.state.tally.device.type == "meta"
        assert hook.state.place == (torch.device("meta"), torch.bfloat16)
