"""What becomes of a job between the table and a replica, whatever fails on the way."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from reins_serve.errors import StorageError
from reins_serve.serving import dispatch, leases, runs
from reins_serve.serving.messages import Failure, Progress, Started
from tests.serving.desk import CLIP, Desk, eventually, names_of

Story = Callable[[Desk], Awaitable[None]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_S", 0.02)
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0.01)


def play(desk: Desk, story: Story) -> None:
    """Run a story at a desk that works."""

    async def run() -> None:
        async with desk.at_work():
            await story(desk)

    asyncio.run(run())


def test_a_job_is_begun_told_stored_and_completed(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        await desk.add("a")
        stream = await desk.stream("a")
        stream.say(Started(), Progress(1, 2))

        async def told() -> bool:
            job = await desk.store.get("a")
            return (job.status, job.progress) == ("in_progress", 49)

        await eventually(told)
        stream.say(CLIP)
        assert ((await desk.over("a")).status, desk.names()) == ("completed", names_of("a", 1))

    play(Desk(tmp_path), story)


def test_progress_costs_no_write_of_its_own(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        await desk.add("a")
        (await desk.stream("a")).say(Started(), *(Progress(done, 100) for done in range(100)), CLIP)
        await desk.over("a")
        writes = [call for call in desk.store.calls if call not in ("get", "claim", "renew")]
        assert writes == ["add", "begin", "complete"]

    play(Desk(tmp_path), story)


def test_nothing_is_claimed_while_no_replica_runs(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.running = 0
        await desk.add("a")
        await asyncio.sleep(0.1)
        assert (await desk.store.get("a")).attempts == 0
        desk.running = 1
        await desk.stream("a")

    play(Desk(tmp_path), story)


def test_all_gateways_together_take_no_more_than_the_replicas_can(tmp_path: Path) -> None:
    async def story() -> None:
        one, two = Desk(tmp_path, "one"), Desk(tmp_path, "two")
        await one.add(*"abcdefgh")
        async with one.at_work(), two.at_work():
            await eventually(lambda: len(one.streams) + len(two.streams) == 4)  # twice two clips, for one replica
            await asyncio.sleep(0.1)
            assert len(one.streams) + len(two.streams) == 4
            for stream in (*one.streams.values(), *two.streams.values()):
                stream.say(Started(), CLIP)
            await eventually(lambda: len(one.streams) + len(two.streams) == 8)

    asyncio.run(story())


def test_a_job_that_came_here_is_dispatched_without_waiting_for_a_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "POLL_S", 10_000.0)

    async def story(desk: Desk) -> None:
        await eventually(lambda: "claim" in desk.store.calls)
        await desk.add("a")
        await desk.stream("a")

    play(Desk(tmp_path), story)


def test_a_job_that_was_deleted_elsewhere_is_given_up(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        await desk.add("a")
        stream = await desk.stream("a")
        stream.say(Started())
        await eventually(lambda: "begin" in desk.store.calls)
        await Desk(tmp_path, "two").store.remove("a")
        await eventually(lambda: stream.cancelled and not desk.dispatcher.on_their_way)
        assert desk.names() == set()
        assert "fail" not in desk.store.calls

    play(Desk(tmp_path), story)


def test_a_clip_of_a_job_that_was_deleted_leaves_no_file(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        await desk.add("a")
        stream = await desk.stream("a")
        stream.say(Started())
        await eventually(lambda: "begin" in desk.store.calls)
        desk.store.down.add("renew")  # so that nobody tells
        await desk.store.remove("a")
        stream.say(CLIP)
        await eventually(lambda: not desk.dispatcher.on_their_way)
        assert desk.names() == set()

    play(Desk(tmp_path), story)


@pytest.mark.parametrize("end", [None, RayActorError()], ids=["ends", "raises"])
def test_a_job_whose_replica_is_lost_is_tried_once_more(tmp_path: Path, end: BaseException | None) -> None:
    async def story(desk: Desk) -> None:
        await desk.add("a", "b")
        for name in "ab":
            (await desk.stream(name)).say(Started(), end)
        (await desk.stream("a", 2)).say(Started(), CLIP)
        (await desk.stream("b", 2)).say(Started(), end)
        assert (await desk.over("a")).status == "completed"
        lost = await desk.over("b")
        assert lost.error is not None
        assert (lost.status, lost.error.code) == ("failed", "worker_lost")
        assert desk.names() == names_of("a", 2)

    play(Desk(tmp_path), story)


def test_a_deployment_that_is_not_there_costs_no_attempt(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        await desk.add("a")
        for attempt in range(1, 5):
            (await desk.stream("a", attempt)).say(DeploymentUnavailableError(DeploymentID("model-tiny")))
        (await desk.stream("a", 5)).say(Started(), CLIP)
        assert (await desk.over("a")).status == "completed"

    play(Desk(tmp_path), story)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (Failure("out_of_memory", "It did not fit."), "out_of_memory"),
        (ValueError("a mistake"), "internal_error"),
    ],
    ids=["failure", "mistake"],
)
def test_a_failure_is_written_down(tmp_path: Path, end: Any, code: str) -> None:
    async def story(desk: Desk) -> None:
        await desk.add("a")
        (await desk.stream("a")).say(Started(), end)
        ended = await desk.over("a")
        assert ended.error is not None
        assert (ended.status, ended.error.code) == ("failed", code)

    play(Desk(tmp_path), story)


def test_a_job_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(desk: Desk) -> None:
        monkeypatch.setattr(
            desk.dispatcher, "_config", desk.dispatcher._config.model_copy(update={"generation_timeout_s": 0.05})
        )
        await desk.add("a")
        stream = await desk.stream("a")
        stream.say(Started())
        ended = await desk.over("a")
        assert ended.error is not None
        assert (ended.error.code, stream.cancelled) == ("timeout", True)

    play(Desk(tmp_path), story)


@pytest.mark.parametrize("method", ["begin", "complete", "fail", "release"])
@pytest.mark.parametrize("fault", ["down", "deaf"])
def test_no_change_is_lost_while_the_database_does_not_answer(tmp_path: Path, method: str, fault: str) -> None:
    async def story(desk: Desk) -> None:
        getattr(desk.store, fault).add(method)
        await desk.add("a")
        end = {"fail": Failure("internal_error", "It failed."), "release": RayActorError()}.get(method, CLIP)
        (await desk.stream("a")).say(Started(), end)
        if fault == "down":
            await eventually(lambda: desk.store.calls.count(method) > 2)
            desk.store.down.clear()
        if method == "release":
            (await desk.stream("a", 2)).say(Started(), CLIP)
        assert (await desk.over("a")).status == ("failed" if method == "fail" else "completed")
        assert desk.names() == (set() if method == "fail" else names_of("a", 2 if method == "release" else 1))

    play(Desk(tmp_path), story)


def test_claims_go_on_after_the_database_was_away(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        await desk.add("a")
        desk.store.down.clear()
        await desk.stream("a")

    desk = Desk(tmp_path)
    desk.store.down.add("claim")
    play(desk, story)


def test_a_gateway_that_dies_leaves_its_jobs_to_the_others_and_one_set_of_files(tmp_path: Path) -> None:
    async def story() -> None:
        one, two = Desk(tmp_path, "one"), Desk(tmp_path, "two")
        async with one.at_work():
            await one.add("a")
            one.store.down.add("complete")  # it dies between the files and the record
            (await one.stream("a")).say(Started(), CLIP)
            await eventually(lambda: "complete" in one.store.calls)
        assert one.names() == names_of("a", 1)
        async with two.at_work():
            await two.upkeep.reap()
            assert not two.streams  # the lease is not over
            two.lapse("a")
            await two.upkeep.reap()
            (await two.stream("a", 2)).say(Started(), CLIP)
            assert (await two.over("a")).status == "completed"
            assert two.names() == names_of("a", 2)

    asyncio.run(story())


def test_a_holder_that_was_given_up_harms_nothing_when_it_comes_back(tmp_path: Path) -> None:
    async def story() -> None:
        one, two = Desk(tmp_path, "one"), Desk(tmp_path, "two")
        two.running = 0
        async with one.at_work(), two.at_work():
            await one.add("a")
            stream = await one.stream("a")
            one.store.down.add("renew")
            stream.say(Started())
            await eventually(lambda: "begin" in one.store.calls)
            await eventually(lambda: "renew" in one.store.calls)
            one.running, two.running = 0, 1
            two.lapse("a")
            await two.upkeep.reap()
            (await two.stream("a", 2)).say(Started(), CLIP)
            assert (await two.over("a")).status == "completed"
            stream.say(CLIP)
            await eventually(lambda: not one.dispatcher.on_their_way)
            assert (await two.over("a")).attempts == 2
            assert one.names() == names_of("a", 2)

    asyncio.run(story())


def test_a_job_that_lost_two_gateways_fails_without_files(tmp_path: Path) -> None:
    async def story() -> None:
        for attempt in (1, 2):
            desk = Desk(tmp_path, f"gateway {attempt}")
            desk.store.down.add("complete")
            async with desk.at_work():
                if attempt == 1:
                    await desk.add("a")
                (await desk.stream("a", attempt)).say(Started(), CLIP)
                await eventually(lambda desk=desk: "complete" in desk.store.calls)
            desk.lapse("a")
            await desk.upkeep.reap()
        lost = await desk.store.get("a")
        assert (lost.status, lost.error.code) == ("failed", "worker_lost")
        assert desk.names() == set()

    asyncio.run(story())


@pytest.mark.parametrize(("refusals", "status"), [(2, "completed"), (10_000, "failed")])
def test_storage_that_refuses_is_asked_again_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, status: str
) -> None:
    monkeypatch.setattr(runs, "LONGEST_PAUSE_S", 0.02)

    async def story(desk: Desk) -> None:
        real, count = desk.files._files.put, [0]

        def put(path: str, data: bytes) -> None:
            count[0] += path.endswith(".mp4")
            if path.endswith(".mp4") and count[0] <= refusals:
                raise StorageError("full")
            real(path, data)

        monkeypatch.setattr(desk.files._files, "put", put)
        await desk.add("a")
        (await desk.stream("a")).say(Started(), CLIP)
        ended = await desk.over("a")
        assert (ended.status, ended.error and ended.error.code) == (
            status,
            None if status == "completed" else "storage_error",
        )
        assert desk.names() == (names_of("a", 1) if status == "completed" else set())

    play(Desk(tmp_path), story)


def test_a_gateway_that_closes_claims_no_more_and_hands_back_what_it_holds(tmp_path: Path) -> None:
    async def story() -> None:
        desk = Desk(tmp_path)
        await desk.add("a", "b", "c")
        desk.running = 2
        claiming = asyncio.create_task(desk.dispatcher.run())
        first, second, third = [await desk.stream(name) for name in "abc"]
        desk.dispatcher.close()
        await claiming
        await desk.add("d")
        first.say(Started())
        second.say(Started())
        await eventually(lambda: sum(held.begun for held in desk.leases._held.values()) == 2)
        desk.leases.hand_back(begun=False)  # what waits at a replica need not wait for this gateway
        await eventually(lambda: len(desk.dispatcher.on_their_way) == 2)
        assert (first.cancelled, second.cancelled, third.cancelled) == (False, False, True)
        first.say(CLIP)
        await eventually(lambda: len(desk.dispatcher.on_their_way) == 1)
        desk.leases.hand_back(begun=True)
        await eventually(lambda: not desk.dispatcher.on_their_way)
        jobs = [await desk.store.get(name) for name in "abcd"]
        assert [job.status for job in jobs] == ["completed", "queued", "queued", "queued"]
        assert [(job.attempts, job.returned) for job in jobs] == [(1, 0), (1, 1), (1, 1), (0, 0)]

    asyncio.run(story())


@pytest.mark.parametrize("steps", range(6))
def test_a_gateway_ends_even_if_work_comes_at_that_moment(tmp_path: Path, steps: int) -> None:
    """However many steps of the event loop lie between the two."""

    async def story() -> None:
        desk = Desk(tmp_path)
        desk.running = 0
        task = asyncio.create_task(desk.dispatcher.run())
        await asyncio.sleep(0.001)
        desk.dispatcher.wake()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
        desk.dispatcher.close()  # or the loop would not end

    asyncio.run(story())
