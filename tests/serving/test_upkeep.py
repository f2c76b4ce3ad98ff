"""Jobs whose time is over go with their files; whoever lives renews before anybody is reaped."""

import asyncio
from pathlib import Path

import pytest

from reins_serve.errors import StorageError
from reins_serve.serving import upkeep
from reins_serve.serving.messages import Started
from tests.serving.desk import CLIP, Desk, eventually, names_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "PERIOD_S", 0.02)


def test_record_and_files_expire_together_even_if_storage_refuses_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        desk, brief = Desk(tmp_path, "one"), Desk(tmp_path, "two", retention_s=0.01)
        for name, one in (("kept", desk), ("brief", brief)):
            async with one.at_work():
                await one.add(name)
                (await one.stream(name)).say(Started(), CLIP)
                await one.over(name)
        real, refused = brief.files._files.delete, []

        def delete(path: str) -> None:
            if not refused:
                refused.append(path)
                raise StorageError("away")
            real(path)

        monkeypatch.setattr(brief.files._files, "delete", delete)
        upkeeping = asyncio.create_task(brief.upkeep.run())
        await eventually(lambda: brief.names() == names_of("kept", 1))
        upkeeping.cancel()
        assert refused
        assert (await desk.store.get("kept")).status == "completed"
        gone = await desk.store.get("brief")
        assert gone is None or gone.status == "expired"

    asyncio.run(story())


def test_nobody_is_reaped_in_the_first_round_after_the_database_was_away(tmp_path: Path) -> None:
    async def story() -> None:
        desk = Desk(tmp_path)
        desk.store.down.add("expire")
        upkeeping = asyncio.create_task(desk.upkeep.run())
        for _ in range(2):
            failed = len(desk.store.calls)
            await eventually(lambda failed=failed: len(desk.store.calls) > failed)
            desk.store.down.clear()
            answered = len(desk.store.calls)
            await eventually(lambda answered=answered: "reap" in desk.store.calls[answered:])
            assert desk.store.calls[answered : answered + 3] == ["expire", "expire", "reap"]
            desk.store.down.add("expire")
        upkeeping.cancel()

    asyncio.run(story())
