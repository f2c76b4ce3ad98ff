"""Jobs whose time is over go with their files; whoever lives renews before anybody is reaped."""

import asyncio
from pathlib import Path

import pytest

from reins_serve.errors import StorageError
from reins_serve.serving import leases, upkeep
from reins_serve.serving.files import ClipFiles
from reins_serve.serving.messages import Started
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.upkeep import Upkeep
from tests.serving.desk import CLIP, Desk, Faults, eventually, names_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "PERIOD_S", 0.05)
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)


def test_record_and_files_expire_together_even_if_storage_refuses_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        desk = Desk(tmp_path)
        async with desk.at_work():
            await desk.add("a")
            (await desk.stream("a")).say(Started(), CLIP)
            await desk.over("a")
        files = ClipFiles(str(desk.folder))
        real, refused = files._files.delete, []

        def delete(path: str) -> None:
            if not refused:
                refused.append(path)
                raise StorageError("away")
            real(path)

        monkeypatch.setattr(files._files, "delete", delete)
        # The job was completed in a store that keeps it for ever: another one expires what it completes itself.
        brief = SqlJobs(f"sqlite:///{tmp_path}/jobs.sqlite3", retention_s=0.05)
        desk.store = Faults(brief)
        second = Desk(tmp_path, "two")
        second.store._store = brief
        async with second.at_work():
            await second.add("b")
            (await second.stream("b")).say(Started(), CLIP)
            await second.over("b")
        task = asyncio.create_task(Upkeep(brief, files).run())
        await eventually(lambda: second.names() == names_of("a", 1))
        assert refused
        assert (await brief.get("a")).status == "completed"  # type: ignore[union-attr]
        task.cancel()

    asyncio.run(story())


def test_nobody_is_reaped_in_the_first_round_after_the_database_was_away(tmp_path: Path) -> None:
    async def story() -> None:
        desk, other = Desk(tmp_path, lease_s=0.3), Desk(tmp_path, "two", lease_s=0.3)
        other.running = 0
        async with desk.at_work():
            await desk.add("a")
            stream = await desk.stream("a")
            desk.store.down |= {"renew"}
            other.store.down |= {"expire"}
            task = asyncio.create_task(other.upkeep.run())
            await asyncio.sleep(0.5)  # the lease is over, and nobody could tell anybody
            desk.store.down.clear()
            other.store.down.clear()
            await eventually(lambda: other.store.calls.count("reap") > 1)
            assert not stream.cancelled
            stream.say(Started(), CLIP)
            assert (await desk.over("a")).attempts == 1
            task.cancel()

    asyncio.run(story())
