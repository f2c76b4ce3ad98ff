"""`reins-serve directions keygen|sign|verify`, and signatures in the other commands."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from reins_serve.errors import ReinsError, SignatureError
from reins_serve.rollout.signatures import TRUSTED_ENV, short
from tests.rollout.conftest import made
from tests.test_cli_directions import output


@pytest.fixture
def key(tmp_path: Path) -> str:
    """The public key of a pair in the folder."""
    return output("keygen", tmp_path / "key").strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A direction file."""
    made(0).save(tmp_path / "d.safetensors")
    return tmp_path / "d.safetensors"


def test_a_file_is_signed_and_verified(tmp_path: Path, key: str, file: Path) -> None:
    signed = json.loads(output("sign", file, "--key", tmp_path / "key"))
    assert (signed["sha256"], signed["key"], signed["model"]) == (made(0).sha256, short(key), "tiny")
    for trusted in (key, f"{tmp_path}/key.pub"):
        verified = json.loads(output("verify", file, "--trusted-key", trusted))
        assert (verified["signed_by"], verified["trusted"]) == ([short(key)], True)
    assert json.loads(output("show", file))["signed_by"] == [short(key)]


def test_verify_says_what_is_wrong(tmp_path: Path, key: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReinsError, match="Whom do you trust"):
        output("verify", file)
    monkeypatch.setenv(TRUSTED_ENV, key)
    with pytest.raises(SignatureError, match="is not signed"):
        output("verify", file)
    output("sign", file, "--key", tmp_path / "key", "--out", tmp_path / "elsewhere.sig")
    output("verify", file, "--signature", tmp_path / "elsewhere.sig")
    with pytest.raises(SignatureError, match="is signed by"):
        output("verify", file, "--signature", tmp_path / "elsewhere.sig", "--trusted-key", f"ed25519:{'0' * 64}")
    made(1).save(file)
    with pytest.raises(SignatureError, match="is of another file"):
        output("verify", file, "--signature", tmp_path / "elsewhere.sig")
    with pytest.raises(SignatureError, match="cannot be read"):
        output("verify", file, "--signature", tmp_path / "none.sig")


def test_only_a_valid_direction_is_signed(tmp_path: Path, key: str) -> None:
    (tmp_path / "d").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ReinsError, match="not a safetensors direction file"):
        output("sign", tmp_path / "d", "--key", tmp_path / "key")
    assert not (tmp_path / "d.sig").exists()


def test_a_store_that_trusts_a_key_is_led_from_the_command_line(
    tmp_path: Path, key: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REINS_STORE", str(tmp_path / "store"))
    output("publish", file, "--why", "before keys were trusted")
    monkeypatch.setenv(TRUSTED_ENV, key)
    assert "(not trusted)" in output("list")
    with pytest.raises(SignatureError, match="is not signed"):
        output("promote", "tiny", "1", "--why", "x", "--override", "y")
    output("sign", file, "--key", tmp_path / "key")
    assert "tiny version 1" in output("publish", file, "--signature", f"{file}.sig", "--why", "signed")
    assert "live v1" in output("promote", "tiny", "1", "--why", "x")
    assert json.loads(output("show", "tiny@live"))["signed_by"] == [short(key)]
    for table in (output("list"), output("history", "tiny")):
        assert short(key) in table
        assert "not trusted" not in table
    events = json.loads(output("history", "tiny", "--json"))
    assert [(event["action"], event["key"]) for event in events] == [
        ("publish", None), ("sign", key), ("promote", None),
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_same_signature(tmp_path: Path, key: str, file: Path) -> None:
    """Whoever keeps keys elsewhere can sign the documented bytes with other tools."""
    output("sign", file, "--key", tmp_path / "key")
    (tmp_path / "message").write_bytes(f"reins.direction.signature/1\n{made(0).sha256}\n".encode())
    command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", tmp_path / "key", "-in", tmp_path / "message"]
    theirs = subprocess.run(command, check=True, capture_output=True).stdout
    assert json.loads(Path(f"{file}.sig").read_bytes())["signature"] == theirs.hex()
