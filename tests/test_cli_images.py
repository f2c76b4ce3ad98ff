"""A first frame on the command line: which models take one, how it is cut to the clip's size, and how it reaches a server."""

from pathlib import Path

import pytest
from PIL import Image

from reins_serve import cli_images
from reins_serve.errors import ReinsError
from reins_serve.models import catalog
from reins_serve.serving.images import from_data_url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.new("RGB", (96, 48), (200, 40, 40)).save(tmp_path / "frame.png")
    return tmp_path / "frame.png"


def test_a_model_of_both_tasks_makes_the_one_that_the_frame_asks_for(file: Path) -> None:
    both = catalog.get("wan2.2-ti2v-5b")
    assert cli_images.task_of(both, file) == "image-to-video"
    assert cli_images.task_of(both, None) is None


def test_a_model_that_takes_none_and_one_that_needs_one_say_so(file: Path) -> None:
    with pytest.raises(ReinsError, match="leave --image out"):
        cli_images.task_of(catalog.get("embedded"), file)
    needs = catalog.get("embedded-hard-i2v")
    with pytest.raises(ReinsError, match="--image FILE"):
        cli_images.task_of(needs, None)
    assert cli_images.task_of(needs, file) == "image-to-video"


def test_an_optional_image_changes_no_task(file: Path) -> None:
    optional = [entry for entry in catalog.entries().values() if entry.optional_image]
    assert optional
    assert {cli_images.task_of(entry, frame) for entry in optional for frame in (None, file)} == {None}


def test_the_frame_has_the_clips_size(file: Path) -> None:
    frame = cli_images.frame_of(catalog.get("embedded-hard-i2v"), file)["image"]
    assert (frame.size, frame.getpixel((20, 20))) == ((48, 48), (200, 40, 40))
    assert cli_images.frame_of(catalog.get("embedded"), None) == {}


def test_a_server_is_sent_the_file_as_it_is(file: Path) -> None:
    sent = cli_images.field_of(file)["input_reference"]["image_url"]
    assert from_data_url(sent) == file.read_bytes()
    assert cli_images.field_of(None) == {}


def test_what_is_no_image_or_not_there_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    entry = catalog.get("embedded-hard-i2v")
    with pytest.raises(ReinsError, match="cannot be read"):
        cli_images.frame_of(entry, tmp_path / "text.png")
    with pytest.raises(ReinsError, match=r"nothing\.png cannot be read"):
        cli_images.frame_of(entry, tmp_path / "nothing.png")
