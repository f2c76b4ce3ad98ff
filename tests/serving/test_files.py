"""The files of clips: whole, one set for each attempt, on a disk or anywhere else."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from reins_serve.errors import StorageError
from reins_serve.serving.files import ClipFiles
from tests.serving.desk import CLIP


@pytest.fixture(params=["folder", "memory", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClipFiles]:
    if request.param == "folder":
        yield ClipFiles(str(tmp_path / "clips"))
    elif request.param == "s3":
        url, options = request.getfixturevalue("s3")
        yield ClipFiles(url, **options)
    else:
        url = f"memory://{uuid.uuid4().hex}"
        yield ClipFiles(url)
        system, root = fsspec.url_to_fs(url)
        if system.exists(root):
            system.rm(root, recursive=True)


def test_a_clip_is_stored_and_read_in_parts(files: ClipFiles) -> None:
    assert files.content("a", 1, "video") is None
    files.store("a", 1, CLIP)
    content = files.content("a", 1, "video")
    assert content is not None
    assert content.size == len(CLIP.video)
    with content.open() as file:
        file.seek(2)
        assert file.read(2) == CLIP.video[2:4]
    thumbnail = files.content("a", 1, "thumbnail")
    assert thumbnail is not None
    with thumbnail.open() as file:
        assert file.read() == CLIP.thumbnail


def test_an_attempt_deletes_its_own_files_only(files: ClipFiles) -> None:
    files.store("a", 1, CLIP)
    files.store("a", 2, CLIP)
    files.delete("a", 1)
    files.delete("a", 1)
    files.delete("b", 1)
    assert files.content("a", 1, "video") is None
    assert files.content("a", 2, "video") is not None


def test_a_write_that_fails_leaves_nothing_that_anybody_would_read(
    files: ClipFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
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
