"""Catalogue rules, loading, generation and video files."""

import io
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from reins_serve.errors import ReinsError, UnsupportedRequest
from reins_serve.models import catalog
from reins_serve.models.catalog import EMBEDDED
from reins_serve.models.generation import ClipRequest, generate, request
from reins_serve.models.loading import load
from reins_serve.models.video import contact_sheet, thumbnail, write_mp4
from tests import tiny

GOOD = {"width": 16, "height": 16, "num_frames": 4, "num_inference_steps": 4, "guidance_scale": 4.0}


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ReinsError, match="embedded") as error:
        catalog.get("none")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ({"width": 20}, "unsupported_size", "16x16"),
        ({"width": 1000}, "unsupported_size", "32x16"),
        ({"num_frames": 9}, "too_many_frames", "at most 8"),
        ({"num_frames": 0}, "invalid_value", "nearest"),
        ({"num_inference_steps": 0}, "invalid_value", "between 1"),
        ({"guidance_scale": float("nan")}, "invalid_value", "guidance_scale"),
    ],
)
def test_a_clip_that_the_model_cannot_make_names_the_nearest_it_can(change: dict, code: str, word: str) -> None:
    tiny.ENTRY.check(**GOOD)
    with pytest.raises(UnsupportedRequest, match=word) as error:
        tiny.ENTRY.check(**(GOOD | change))
    assert error.value.code == code


def test_a_checkpoint_whose_weights_are_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    import dataclasses

    tiny.pipeline().save_pretrained(tmp_path)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    weights.with_suffix(".bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ReinsError, match="safetensors"):
        load(dataclasses.replace(tiny.ENTRY, source=tmp_path))


def test_equal_seeds_give_equal_clips_and_a_clip_does_not_depend_on_its_batch() -> None:
    pipeline = tiny.pipeline()
    one, two = (request(tiny.ENTRY, "red square", seed) for seed in (1, 2))
    both = generate(pipeline, tiny.ENTRY, [one, two])
    assert both.shape == (2, 4, 16, 16, 3)
    assert np.array_equal(both, generate(pipeline, tiny.ENTRY, [one, two]))
    assert not np.array_equal(both[0], both[1])
    alone = generate(pipeline, tiny.ENTRY, [two])[0]
    assert np.abs(alone.astype(int) - both[1]).max() <= 1


def test_requests_that_cannot_share_a_call_are_refused() -> None:
    with pytest.raises(ReinsError, match="one size"):
        generate(tiny.pipeline(), tiny.ENTRY, [request(tiny.ENTRY, "a", 1), request(tiny.ENTRY, "a", 1, width=32)])


def test_the_embedded_entry_makes_the_clip_that_it_promises() -> None:
    frames = generate(load(EMBEDDED), EMBEDDED, [request(EMBEDDED, "a red square moving left at night", 1)])
    assert frames.shape == (1, EMBEDDED.num_frames, EMBEDDED.height, EMBEDDED.width, 3)


def test_an_mp4_plays_back_with_its_frames_rate_and_tags(tmp_path: Path) -> None:
    clip = np.zeros((8, 32, 32, 3), np.uint8)
    clip[:, 8:24, 8:24] = (200, 40, 40)
    write_mp4(clip, tmp_path / "clip.mp4", 8, {"comment": "steered"})
    with av.open(str(tmp_path / "clip.mp4"), "r") as container:
        assert container.streams.video[0].average_rate == 8
        assert container.metadata["comment"] == "steered"
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert frames.shape == (8, 256, 256, 3)
    assert np.abs(frames[4, 128, 128].astype(int) - (200, 40, 40)).max() < 12


def test_thumbnail_and_contact_sheet_are_pictures_of_the_clips() -> None:
    clip = np.full((3, 32, 32, 3), 90, np.uint8)
    assert Image.open(io.BytesIO(thumbnail(clip))).size == (256, 256)
    sheet = Image.open(io.BytesIO(contact_sheet([("one", clip), ("two", clip)], scale=1)))
    assert sheet.size[0] == 96
    assert sheet.getpixel((50, 20)) == (90, 90, 90)


def test_a_request_with_an_image_is_stored_as_json_and_comes_back_as_it_was() -> None:
    adapter = TypeAdapter(ClipRequest)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    asked = request(tiny.ENTRY, "a clip", 1, image=Image.fromarray(pixels))
    read = adapter.validate_json(adapter.dump_json(asked))
    assert read.image is not None
    assert np.array_equal(np.asarray(read.image), pixels)
    assert read.batch_key == asked.batch_key
    plain = request(tiny.ENTRY, "a clip", 1)
    assert adapter.validate_json(adapter.dump_json(plain)) == plain


@pytest.mark.parametrize("image", ["?", 7, "UE5H"], ids=["not base64", "not text", "not a picture"])
def test_a_stored_image_that_is_damaged_is_refused(image: object) -> None:
    adapter = TypeAdapter(ClipRequest)
    stored = adapter.dump_python(request(tiny.ENTRY, "a clip", 1), mode="json") | {"image": image}
    with pytest.raises(ValidationError, match="base64 text of a PNG"):
        adapter.validate_python(stored)
