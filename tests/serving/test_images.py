"""Clips that begin with an image: how it is read and fitted, what is refused, and what the model makes of it."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from reins_serve.serving.config import Limits, ModelConfig
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.images import first_frame, from_data_url
from reins_serve.serving.replica import VideoReplica
from tests.serving.local import application, create, error, finished, served

LIMITS = Limits(max_image_bytes=100_000, max_image_pixels=100_000)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(colour: str = "red", size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def halves() -> Image.Image:
    """Red on the left, blue on the right; 80 by 40 pixels."""
    image = plain("red", (80, 40))
    image.paste((0, 0, 255), (40, 0, 80, 40))
    return image


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def image_replica(image_model: ModelConfig) -> VideoReplica:
    return VideoReplica(image_model)


@pytest.fixture
def images(image_replica: VideoReplica, image_model: ModelConfig, tmp_path: Path) -> Iterator[TestClient]:
    """A client of a gateway before a model that begins clips with an image."""
    with served(image_replica, application(image_model, tmp_path, limits=LIMITS.model_dump())) as client:
        yield client


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_covers_the_clip_and_is_cut_at_its_middle(kind: str) -> None:
    frame = first_frame(encoded(halves(), kind), 32, 32, LIMITS)
    assert (frame.size, frame.mode) == ((32, 32), "RGB")
    pixels = np.asarray(frame).astype(int)
    assert np.abs(pixels[:, :14] - (255, 0, 0)).max() < 16  # the middle of the picture is the middle of the frame
    assert np.abs(pixels[:, 18:] - (0, 0, 255)).max() < 16


def test_an_image_that_fits_is_left_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(first_frame(encoded(Image.fromarray(pixels)), 64, 32, LIMITS)), pixels)


def test_a_photograph_that_lies_on_its_side_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    frame = first_frame(encoded(halves(), "JPEG", exif=exif), 40, 80, LIMITS)
    upright = np.asarray(frame).astype(int)
    assert np.abs(upright[:36] - (255, 0, 0)).max() < 16
    assert np.abs(upright[44:] - (0, 0, 255)).max() < 16


def test_transparent_parts_become_white_and_sixteen_bits_eight() -> None:
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert np.asarray(first_frame(encoded(clear), 32, 32, LIMITS)).min() == 255
    grey = Image.fromarray(np.full((32, 32), 128 * 256, dtype=np.uint16))
    assert set(np.unique(first_frame(encoded(grey), 32, 32, LIMITS))) == {128}


def test_of_an_animation_the_first_picture_counts() -> None:
    rest = [plain("blue", (32, 32))]
    moving = encoded(plain("red", (32, 32)), "WEBP", save_all=True, append_images=rest, lossless=True)
    assert set(map(tuple, np.asarray(first_frame(moving, 32, 32, LIMITS)).reshape(-1, 3))) == {(255, 0, 0)}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid_value"),
        (b"no picture", "invalid_value"),
        (encoded(plain(), "GIF"), "invalid_value"),
        (encoded(plain(), "BMP"), "invalid_value"),
        (encoded(plain("red", (200, 200)))[:-40], "invalid_value"),
        (encoded(plain("red", (400, 251))), "payload_too_large"),
        (encoded(plain("red", (20_000, 20_000)).convert("1")), "payload_too_large"),
        (encoded(plain()) + bytes(100_000), "payload_too_large"),
    ],
    ids=["nothing", "text", "gif", "bmp", "cut off", "too many pixels", "bomb", "too many bytes"],
)
def test_what_is_no_small_whole_image_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(RequestError) as refusal:
        first_frame(data, 32, 32, LIMITS)
    assert (refusal.value.code, refusal.value.param) == (code, "input_reference")


def test_no_pixel_of_too_large_an_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(plain("red", (400, 251)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(RequestError, match="at most 100000 pixels"):
        first_frame(data, 32, 32, LIMITS)


def test_data_urls_carry_base64() -> None:
    assert from_data_url("data:image/png;base64,UE5H") == b"PNG"
    for url in (
        "data:,x",
        "data:image/png,x",
        "data:image/png;base64,?",
        "data:image/png;base64,UE5",
        "data:;base64,UE5H",
    ):
        with pytest.raises(RequestError, match="as a file"):
            from_data_url(url)


def in_json(client: TestClient, data: bytes, **fields: Any) -> Any:
    return client.post("/v1/videos", json={"input_reference": {"image_url": data_url(data)}, **fields})


def as_file(client: TestClient, data: bytes, **fields: Any) -> Any:
    return client.post("/v1/videos", data=fields, files={"input_reference": ("a.png", data, "image/png")})


def in_form(client: TestClient, data: bytes, **fields: Any) -> Any:
    return client.post("/v1/videos", data={"input_reference[image_url]": data_url(data), **fields})


WAYS = pytest.mark.parametrize("send", [in_json, as_file, in_form])
Send = Callable[..., Any]


def test_the_image_steers_what_the_model_makes_however_it_is_sent(images: TestClient) -> None:
    def content(send: Send, image: Image.Image) -> bytes:
        answer = send(images, encoded(image), prompt="a clip", seed=1)
        assert answer.status_code == 200, answer.text
        video = finished(images, answer.json())
        assert video["steering"]["proved"], video
        return images.get(f"/v1/videos/{video['id']}/content").content

    red = content(in_json, plain("red"))
    assert content(as_file, plain("red")) == content(in_form, plain("red")) == red
    assert content(as_file, plain("blue")) != red


@WAYS
def test_images_that_cannot_be_read_are_refused_over_http(images: TestClient, send: Send) -> None:
    assert error(send(images, b"no picture", prompt="a")) == (400, "invalid_value", "input_reference")
    large = encoded(plain("red", (400, 251)))
    assert error(send(images, large, prompt="a")) == (413, "payload_too_large", "input_reference")
    assert images.get("/v1/videos").json()["data"] == []


@WAYS
def test_a_model_for_text_alone_takes_no_image(client: TestClient, send: Send) -> None:
    assert error(send(client, encoded(plain()), prompt="a")) == (400, "invalid_value", "input_reference")
    assert client.get("/v1/models/tiny").json()["input_reference"] == "none"


def test_a_model_that_begins_with_an_image_wants_one(images: TestClient) -> None:
    answer = images.post("/v1/videos", json={"prompt": "a clip"})
    assert error(answer) == (400, "missing_required_parameter", "input_reference")
    model = images.get("/v1/models/tiny-image").json()
    assert (model["tasks"], model["input_reference"]) == (["image-to-video"], "required")


def test_the_same_checkpoint_makes_clips_from_text_by_its_other_task(image_model: ModelConfig, tmp_path: Path) -> None:
    config = image_model.model_copy(update={"task": "text-to-video"})
    with served(VideoReplica(config), application(config, tmp_path)) as client:
        assert finished(client, create(client))["steering"]["proved"]
        assert error(as_file(client, encoded(plain()), prompt="a"))[:2] == (400, "invalid_value")


@pytest.mark.parametrize(
    "reference",
    [
        "https://images.example/a.png",
        "http://127.0.0.1/a.png",
        "file:///etc/hostname",
        "ftp://images.example/a.png",
        "//images.example/a.png",
        "/etc/hostname",
        "https://[::1",
        "",
        "x" * 70_000,
    ],
    ids=lambda reference: reference[:20],
)
def test_no_address_is_asked_unless_its_host_is_listed(
    images: TestClient, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reins_serve.serving.remote_images._get", lambda *a: pytest.fail("asked"))
    for body in ({"image_url": reference}, {"file_id": reference}):
        answer = images.post("/v1/videos", json={"prompt": "a", "input_reference": body})
        assert answer.status_code == 400
        assert error(answer)[2] in ("input_reference", "input_reference.file_id", "input_reference.image_url")
        assert reference[:20] not in answer.text or not reference


def test_a_request_of_the_same_image_under_the_same_key_is_the_same(images: TestClient) -> None:
    data = encoded(plain())
    key = {"Idempotency-Key": "k"}
    file = {"input_reference": ("a.png", data)}
    first = images.post("/v1/videos", data={"prompt": "a"}, files=file, headers=key).json()
    body: dict[str, Any] = {"prompt": "a", "input_reference": {"image_url": data_url(data)}}
    assert images.post("/v1/videos", json=body, headers=key).json()["id"] == first["id"]
    body["input_reference"] = {"image_url": data_url(encoded(plain("blue")))}
    assert error(images.post("/v1/videos", json=body, headers=key))[:2] == (409, "idempotency_conflict")


def test_the_room_for_an_image_is_given_only_where_a_model_takes_one(images: TestClient, client: TestClient) -> None:
    body = {"prompt": "a", "input_reference": {"image_url": "data:image/png;base64," + "A" * (1 << 20)}}
    assert error(images.post("/v1/videos", json=body)) == (413, "payload_too_large", "input_reference")
    assert error(client.post("/v1/videos", json=body)) == (413, "payload_too_large", None)
    twice = images.post(
        "/v1/videos",
        data={"prompt": "a", "input_reference[image_url]": data_url(encoded(plain()))},
        files={"input_reference": encoded(plain())},
    )
    assert error(twice) == (400, "invalid_value", "input_reference")
