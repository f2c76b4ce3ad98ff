"""The files of clips: whole, one set for each attempt, on a disk or anywhere else."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from reins_serve.errors import StorageError
from reins_serve.serving.files import ClipFiles
from tests.serving.desk import CLIP


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "clips")
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    system, root = fsspec.url_to_fs(url)
    if system.exists(root):
        system.rm(root, recursive=True)


def test_a_clip_is_stored_and_read_in_parts(url: str) -> None:
    files = ClipFiles(url)
    assert files.content("a", 1, "video") is None
    files.store("a", 1, CLIP)
    content = files.content("a", 1, "video")
    assert content is not None
    assert content.size == len(CLIP.video)
    with content.open() as file:
        file.seek(2)
        assert file.read(2) == CLIP.video[2:4]
    if content.path is not None:
        assert content.path.read_bytes() == CLIP.video
    assert (content.path is None) == url.startswith("memory")
    thumbnail = files.content("a", 1, "thumbnail")
    assert thumbnail is not None
    with thumbnail.open() as file:
        assert file.read() == CLIP.thumbnail


def test_an_attempt_deletes_its_own_files_only(url: str) -> None:
    files = ClipFiles(url)
    files.store("a", 1, CLIP)
    files.store("a", 2, CLIP)
    files.delete("a", 1)
    files.delete("a", 1)
    files.delete("b", 1)
    assert files.content("a", 1, "video") is None
    assert files.content("a", 2, "video") is not None


def test_a_write_that_fails_leaves_nothing_that_anybody_would_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ClipFiles(url)
    real = files._files._put

    def put(path: str, data: bytes) -> None:
        if path.endswith(".mp4"):
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(files._files, "_put", put)
    with pytest.raises(StorageError, match="No space"):
        files.store("a", 1, CLIP)
    assert files.content("a", 1, "video") is None
    files.delete("a", 1)
    assert files.content("a", 1, "thumbnail") is None
