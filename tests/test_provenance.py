"""What a clip's file says of its making, unsigned and signed."""

from pathlib import Path

import av
import numpy as np
import pytest

import reins_serve
from reins_serve.content_credentials import CredentialsConfig, CredentialsSigner, check
from reins_serve.errors import ReinsError
from reins_serve.models.generation import request
from reins_serve.models.video import mp4
from reins_serve.provenance import Provenance, provenance, read
from reins_serve.steering.plan import GenerationRecord
from tests import tiny
from tests.certificates import Issued, issue

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
STEERED = GenerationRecord(
    direction="tiny", version="1", sha256="ab" * 32, operation="add", policy="default", strength=0.75, planned=4, applied=4,
    reused=0, steps_steered=2, displacement=0.1, score=0.2, moved=1.0, steered=True, proved=True, reason=None,
)  # fmt: skip
OFF = GenerationRecord(
    direction=None, version=None, sha256=None, operation=None, policy="off", strength=0.0, planned=0, applied=0, reused=0,
    steps_steered=0, displacement=None, score=None, moved=None, steered=False, proved=False, reason="admin",
)  # fmt: skip
CLIP = request(tiny.ENTRY, 'a "red" square; § 7\nand more', 42)


def written(folder: Path, made: Provenance) -> Path:
    path = folder / "clip.mp4"
    path.write_bytes(mp4(FRAMES, 8, made.tags))
    return path


@pytest.fixture
def root() -> Issued:
    return issue("Root of tests")


@pytest.fixture
def config(root: Issued, tmp_path: Path) -> CredentialsConfig:
    """A certificate that the root has issued."""
    leaf = issue("Signer of tests", root)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(leaf.pem + root.pem)
    return CredentialsConfig(certificate=str(chain), key=str(leaf.write_key(tmp_path / "key.pem")))


@pytest.mark.parametrize("record", [STEERED, OFF], ids=["steered", "off"])
@pytest.mark.parametrize("private", [(), ("seed",), ("prompt", "seed")], ids=str)
def test_a_file_says_how_it_was_made_and_of_its_request_only_what_it_may(
    record: GenerationRecord, private: tuple, tmp_path: Path
) -> None:
    path = written(tmp_path, provenance("tiny", record, CLIP, private))
    made = read(path)
    assert made is not None
    assert (made.version, made.model) == (reins_serve.__version__, "tiny")
    for name in ("steered", "proved", "policy", "strength", "direction", "operation", "reason"):
        assert getattr(made, name) == getattr(record, name)
    assert (made.direction_version, made.direction_sha256) == (record.version, record.sha256)
    assert made.prompt == (CLIP.prompt if "prompt" in private else None)
    assert made.seed == (42 if "seed" in private else None)
    assert (b"square" in path.read_bytes()) == ("prompt" in private)


def test_a_file_of_others_says_nothing(tmp_path: Path) -> None:
    for tags in ({}, {"comment": "a clip"}, {"reins_model": "tiny"}, {"reins_strength": "much"}):
        path = tmp_path / "clip.mp4"
        path.write_bytes(mp4(FRAMES, 8, tags))
        assert read(path) is None


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "none.mp4", "."):
        with pytest.raises(ReinsError, match="cannot be read as a video"):
            read(tmp_path / name)


def test_a_signed_clip_shows_who_signed_it_and_what_they_say(
    config: CredentialsConfig, root: Issued, tmp_path: Path
) -> None:
    made = provenance("tiny", STEERED, CLIP, ("seed",))
    path = tmp_path / "signed.mp4"
    path.write_bytes(CredentialsSigner(config).sign(mp4(FRAMES, 8, made.tags), made))
    told = check(path)
    assert told is not None
    assert (told["state"], told["issuer"], told["signer"]) == ("valid", "Tests", "Signer of tests")
    assert told["made"] == {
        "version": reins_serve.__version__, "model": "tiny", "steered": True, "proved": True, "policy": "default",
        "strength": 0.75, "direction": "tiny", "direction_version": "1", "direction_sha256": "ab" * 32,
        "operation": "add", "seed": 42,
    }  # fmt: skip
    (tmp_path / "roots.pem").write_bytes(root.pem)
    assert check(path, tmp_path / "roots.pem")["state"] == "trusted"  # type: ignore[index]
    (tmp_path / "others.pem").write_bytes(issue("Another root").pem)
    assert check(path, tmp_path / "others.pem")["state"] == "valid"  # type: ignore[index]
    assert read(path) == made  # the tags are still there
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == len(FRAMES)


def test_a_changed_clip_does_not_hold(config: CredentialsConfig, tmp_path: Path) -> None:
    made = provenance("tiny", OFF, CLIP)
    signed = CredentialsSigner(config).sign(mp4(FRAMES, 8, made.tags), made)
    path = tmp_path / "changed.mp4"
    for old, new in ((b"reins_steered", b"reins_Steered"), (signed[-9:], bytes(9))):
        path.write_bytes(signed.replace(old, new))
        told = check(path)
        assert told is not None
        assert told["state"] == "invalid"
        assert told["problems"]


def test_a_clip_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert check(written(tmp_path, provenance("tiny", OFF, CLIP))) is None


def test_what_cannot_sign_is_refused_before_anything_is_served(
    config: CredentialsConfig, root: Issued, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.pem"
    alone.write_bytes(root.pem)
    other = issue("Another", root).write_key(tmp_path / "other.pem")
    for change in (
        {"key": str(other)},
        {"key": "/none.pem"},
        {"certificate": str(alone), "key": str(root.write_key(tmp_path / "root.key"))},
        {"certificate": config.key},
        {"algorithm": "ps256"},
    ):
        with pytest.raises(ReinsError, match="cannot be signed"):
            CredentialsSigner(config.model_copy(update=change))
