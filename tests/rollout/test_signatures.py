"""Signatures: what is signed, whom a store, a file and a replica believe, and each refusal with its reason."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from reins_serve.errors import DirectionError, ReinsError, SignatureError, SteeringUnavailable
from reins_serve.plugin import SteeringMiddleware, attach
from reins_serve.rollout.keys import PASSPHRASE_ENV, make_key, sign
from reins_serve.rollout.overview import overview
from reins_serve.rollout.signatures import TRUSTED_ENV, Signature, Trust, read_key, short
from reins_serve.rollout.snapshot import Snapshot, Staged, read_snapshot
from reins_serve.rollout.storage import DirectionStore
from tests import tiny
from tests.rollout.alone import without_following, without_registry
from tests.rollout.conftest import Connect, Key, made

SAID = {"who": "ann", "why": "a test"}


@pytest.fixture
def strict(local: DirectionStore, ours: Key) -> DirectionStore:
    """The store `local` for somebody who trusts our key: version 1 is signed by it and live."""
    store = local.trusting(Trust.of([ours.public]))
    store.publish(made(0), signature=ours.sign(made(0)), **SAID)
    store.promote("tiny", "1", **SAID)
    return store


def altered(document: bytes, **changes: str) -> bytes:
    return json.dumps(json.loads(document) | changes).encode()


def flipped(signature: bytes) -> bytes:
    digits = json.loads(signature)["signature"]
    return altered(signature, signature=("1" if digits[0] == "0" else "0") + digits[1:])


class TestKeys:
    def test_the_private_file_is_its_owners_alone_and_no_key_is_written_over_another(self, tmp_path: Path) -> None:
        public = make_key(tmp_path / "key")
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        assert read_key(str(tmp_path / "key.pub")) == read_key(public) == public
        before = (tmp_path / "key").read_bytes()
        for left in ("key", "key.pub"):
            with pytest.raises(ReinsError, match=rf"{left} exists already"):
                make_key(tmp_path / "key")
            (tmp_path / left).rename(tmp_path / f"kept-{left}")
        assert (tmp_path / "kept-key").read_bytes() == before

    def test_what_is_signed_is_the_prefix_and_the_digest_of_the_file(self, ours: Key) -> None:
        signature = sign(made().sha256, ours.file)
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(ours.public.removeprefix("ed25519:")))
        public.verify(
            bytes.fromhex(signature.signature), b"reins.direction.signature/1\n" + made().sha256.encode() + b"\n"
        )
        with pytest.raises(InvalidSignature):
            public.verify(bytes.fromhex(signature.signature), made().sha256.encode())

    def test_an_encrypted_key_needs_its_passphrase(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(PASSPHRASE_ENV, "correct horse")
        make_key(tmp_path / "key")
        assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
        assert sign(made().sha256, tmp_path / "key").valid
        monkeypatch.setenv(PASSPHRASE_ENV, "wrong")
        with pytest.raises(ReinsError, match=f"its passphrase is not the one in {PASSPHRASE_ENV}"):
            sign(made().sha256, tmp_path / "key")
        monkeypatch.delenv(PASSPHRASE_ENV)
        with pytest.raises(ReinsError, match=f"is encrypted: put its passphrase into {PASSPHRASE_ENV}"):
            sign(made().sha256, tmp_path / "key")

    def test_a_passphrase_that_a_plain_key_does_not_need_is_ignored(
        self, ours: Key, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(PASSPHRASE_ENV, "of another key")
        assert sign(made().sha256, ours.file).valid

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("ed25519:00", "come 64 lower-case hexadecimal digits"),
            ("{folder}/none.pub", "cannot be read"),
            ("{folder}/ours", "holds no public key in PEM"),
        ],
    )
    def test_what_is_no_public_key_is_refused(self, ours: Key, text: str, reason: str) -> None:
        with pytest.raises(ReinsError, match=reason):
            Trust.of([text.format(folder=ours.file.parent)])

    def test_what_is_no_private_key_is_refused(self, ours: Key, tmp_path: Path) -> None:
        for file, reason in ((f"{ours.file}.pub", "holds no private key"), (tmp_path / "none", "cannot be read")):
            with pytest.raises(ReinsError, match=reason):
                sign(made().sha256, Path(file))

    def test_a_key_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

        other = generate_private_key(SECP256R1())
        (tmp_path / "key").write_bytes(other.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
        public = other.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pub").write_bytes(public)
        with pytest.raises(ReinsError, match="Ed25519"):
            sign(made().sha256, tmp_path / "key")
        with pytest.raises(ReinsError, match="Ed25519"):
            read_key(str(tmp_path / "key.pub"))


class TestPublish:
    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            (lambda ours, theirs: None, "is not signed, and only what is signed by the trusted key"),
            (
                lambda ours, theirs: theirs.sign(made(1)),
                r"is signed by {theirs}, and only the trusted key {ours} is believed",
            ),
            (lambda ours, theirs: ours.sign(made(2)), "is of another file"),
            (lambda ours, theirs: flipped(ours.sign(made(1))), "was never made by the key {ours}"),
            (lambda ours, theirs: altered(theirs.sign(made(1)), key=ours.public), "was never made by the key {ours}"),
            (
                lambda ours, theirs: altered(ours.sign(made(2)), sha256=made(1).sha256),
                "was never made by the key {ours}",
            ),
            (lambda ours, theirs: b"yes, it is fine", "is no signature of reins-serve"),
            (lambda ours, theirs: altered(ours.sign(made(1)), note="x"), "is no signature of reins-serve"),
            (lambda ours, theirs: b" " * 5000 + ours.sign(made(1)), "is no signature of reins-serve"),
        ],
        ids=["none", "other key", "other file", "flipped", "other name", "other digest", "text", "field", "size"],
    )
    def test_what_our_key_has_not_signed_is_refused(
        self, strict: DirectionStore, ours: Key, theirs: Key, given: Callable, reason: str
    ) -> None:
        told = reason.format(ours=short(ours.public), theirs=short(theirs.public))
        with pytest.raises(SignatureError, match=told):
            strict.publish(made(1), signature=given(ours, theirs), **SAID)
        assert [version.number for version in strict.versions("tiny")] == [1]
        assert strict._versions.stored("tiny") == {made(0).sha256}

    def test_a_wrong_signature_is_refused_where_no_key_is_trusted_as_well(
        self, local: DirectionStore, theirs: Key
    ) -> None:
        with pytest.raises(SignatureError, match="is of another file"):
            local.publish(made(0), signature=theirs.sign(made(1)), **SAID)
        with pytest.raises(SignatureError, match="was never made by the key"):
            local.publish(made(0), signature=flipped(theirs.sign(made(0))), **SAID)
        assert local.models() == []

    def test_a_signature_is_kept_beside_the_version_and_its_key_is_shown(
        self, store: DirectionStore, connect: Connect, ours: Key
    ) -> None:
        trusting = store.trusting(Trust.of([ours.public]))
        trusting.publish(made(), signature=ours.sign(made()), **SAID)
        assert connect().signatures("tiny", made().sha256) == (sign(made().sha256, ours.file),)
        told = [(event.action, event.key, event.after, event.by) for event in connect().history("tiny")]
        assert sorted(told) == [
            ("publish", None, made().sha256, "ann"), ("sign", ours.public, made().sha256, "ann"),
        ]  # fmt: skip
        (row,) = overview(trusting, "tiny")
        assert (row["signed_by"], row["trusted"]) == ([short(ours.public)], True)
        (row,) = overview(connect(), "tiny")
        assert (row["signed_by"], row["trusted"]) == ([short(ours.public)], None)

    def test_a_version_that_is_signed_already_may_be_published_again_without_its_signature(
        self, strict: DirectionStore
    ) -> None:
        assert strict.publish(made(0), **SAID).number == 1

    def test_a_damaged_signature_counts_as_none_until_it_is_given_again(
        self, strict: DirectionStore, ours: Key, caplog: pytest.LogCaptureFixture
    ) -> None:
        (file,) = Path(strict.url, "tiny", "signatures").iterdir()
        whole = file.read_bytes()
        file.write_bytes(b"{}")
        with pytest.raises(SignatureError, match="is not signed"):
            strict.publish(made(0), **SAID)
        assert file.name in caplog.text
        strict.publish(made(0), signature=ours.sign(made(0)), **SAID)
        assert json.loads(file.read_bytes())["signature"] == json.loads(whole)["signature"]

    def test_the_environment_names_trusted_keys(
        self, tmp_path: Path, ours: Key, theirs: Key, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(TRUSTED_ENV, f"{ours.public} {ours.file}.pub")
        with pytest.raises(SignatureError, match=short(ours.public)):
            DirectionStore(str(tmp_path / "store")).publish(made(), **SAID)
        stricter = DirectionStore(str(tmp_path / "store"), [theirs.public])
        assert stricter.trust.keys == {theirs.public}
        monkeypatch.setenv(TRUSTED_ENV, "nothing")
        with pytest.raises(ReinsError, match="cannot be read"):
            DirectionStore(str(tmp_path / "store"))


class TestMoves:
    @pytest.fixture
    def slipped(self, strict: DirectionStore, local: DirectionStore, theirs: Key) -> DirectionStore:
        """The strict store, into which somebody without trusted keys has put unsigned versions 2 and 3, and 4 of another key."""
        local.publish(made(1), **SAID)
        local.publish(made(2, "failed"), **SAID)
        local.publish(made(3), signature=theirs.sign(made(3)), **SAID)
        return strict

    @pytest.mark.parametrize(("version", "reason"), [("2", "is not signed"), ("4", "is signed by")])
    def test_nothing_points_at_what_our_key_has_not_signed(
        self, slipped: DirectionStore, version: str, reason: str
    ) -> None:
        before = slipped.read("tiny")
        with pytest.raises(SignatureError, match=reason):
            slipped.promote("tiny", version, **SAID)
        with pytest.raises(SignatureError, match=reason):
            slipped.canary("tiny", version, 0.1, **SAID)
        assert slipped.read("tiny") == before

    def test_an_override_passes_over_gates_and_never_over_a_signature(self, slipped: DirectionStore, ours: Key) -> None:
        with pytest.raises(SignatureError, match="is not signed"):
            slipped.promote("tiny", "3", override="the lead says so", **SAID)
        slipped.publish(made(2, "failed"), signature=ours.sign(made(2, "failed")), **SAID)
        with pytest.raises(DirectionError, match="failed utility"):
            slipped.promote("tiny", "3", **SAID)
        assert slipped.promote("tiny", "3", override="the lead says so", **SAID).live == made(2, "failed").sha256

    def test_a_rollback_goes_to_signed_versions_only(
        self, slipped: DirectionStore, local: DirectionStore, ours: Key
    ) -> None:
        local.promote("tiny", "2", **SAID)
        local.promote("tiny", "1", **SAID)
        with pytest.raises(SignatureError, match="is not signed"):
            slipped.rollback("tiny", **SAID)
        slipped.publish(made(1), signature=ours.sign(made(1)), **SAID)
        assert slipped.rollback("tiny", **SAID).live == made(1).sha256

    def test_keys_are_renewed_by_trusting_both_and_signing_again(
        self, strict: DirectionStore, ours: Key, theirs: Key
    ) -> None:
        both = strict.trusting(Trust.of([ours.public, theirs.public]))
        only_new = strict.trusting(Trust.of([theirs.public]))
        with pytest.raises(SignatureError, match="is signed by"):
            read_snapshot(only_new, "tiny")
        assert both.publish(made(0), signature=theirs.sign(made(0)), **SAID).number == 1
        for store in (strict, both, only_new):
            assert read_snapshot(store, "tiny").live is not None
        assert [event.key for event in strict.history("tiny") if event.action == "sign"] == [ours.public, theirs.public]


class TestSnapshot:
    def test_a_live_version_without_a_trusted_signature_is_an_error(
        self, strict: DirectionStore, local: DirectionStore
    ) -> None:
        local.publish(made(1), **SAID)
        local.promote("tiny", "2", **SAID)
        with pytest.raises(SignatureError, match="Version 2 of tiny is not signed"):
            read_snapshot(strict, "tiny")
        assert read_snapshot(local, "tiny").live is not None

    def test_a_candidate_without_one_is_left_out_and_the_reason_is_said(
        self, strict: DirectionStore, local: DirectionStore
    ) -> None:
        local.publish(made(1), **SAID)
        local.canary("tiny", "2", 0.5, **SAID)
        snapshot = read_snapshot(strict, "tiny")
        assert (snapshot.live is not None, snapshot.candidate, snapshot.fraction) == (True, None, 0.0)
        assert "Version 2 of tiny is not signed" in str(snapshot.error)

    def test_a_signature_that_is_added_later_is_read_although_the_pointer_stands_still(
        self, strict: DirectionStore, ours: Key, theirs: Key
    ) -> None:
        both = strict.trusting(Trust.of([ours.public, theirs.public]))
        first = read_snapshot(both, "tiny")
        assert read_snapshot(both, "tiny", first) is first
        both.publish(made(0), signature=theirs.sign(made(0)), **SAID)
        again = read_snapshot(both, "tiny", first)
        assert again.live is not None
        assert {signature.key for signature in again.live.signatures} == {ours.public, theirs.public}
        assert again.generation == first.generation


class TestReplica:
    """What steers checks for itself, whatever the registry or storage said."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Storage is read once, at start; what comes later is handed over by hand."""
        without_registry(monkeypatch)
        without_following(monkeypatch)

    @pytest.fixture
    def steering(self, strict: DirectionStore, ours: Key) -> SteeringMiddleware:
        return attach(tiny.pipeline(), model="tiny", directions=f"reins://{strict.url}", trusted_keys=[ours.public])

    @staticmethod
    def shown(seed: int, *signatures: Signature, number: int = 7) -> Staged:
        return Staged(made(seed).sha256, number, made(seed).data, signatures)

    def test_a_signed_version_is_taken_up(self, steering: SteeringMiddleware, ours: Key) -> None:
        steering.watcher.take(Snapshot("tiny", 9, self.shown(1, sign(made(1).sha256, ours.file))), steering)
        assert steering.directions["live"].sha256 == made(1).sha256

    @pytest.mark.parametrize("how", ["none", "theirs", "of another version"])
    def test_what_our_key_has_not_signed_is_refused_and_the_last_one_serves(
        self, steering: SteeringMiddleware, ours: Key, theirs: Key, how: str
    ) -> None:
        signatures = {
            "none": (), "theirs": (sign(made(1).sha256, theirs.file),), "of another version": (sign(made(0).sha256, ours.file),),
        }[how]  # fmt: skip
        steering.watcher.take(Snapshot("tiny", 9, self.shown(1, *signatures)), steering)
        reason = {
            "none": "Version 7 of tiny is not signed",
            "theirs": "is signed by",
            "of another version": "another file",
        }
        assert reason[how] in steering.watcher.error
        assert steering.watcher.refused == 1
        assert steering.directions["live"].sha256 == made(0).sha256

    def test_a_candidate_that_is_not_signed_leaves_the_live_direction_alone(
        self, steering: SteeringMiddleware, ours: Key
    ) -> None:
        live = self.shown(0, sign(made(0).sha256, ours.file))
        steering.watcher.take(Snapshot("tiny", 9, live, self.shown(1), 0.5), steering)
        assert (set(steering.directions), steering.fraction) == ({"live"}, 0.0)
        assert "is not signed" in steering.watcher.error

    def test_a_replica_does_not_start_with_what_our_key_has_not_signed(
        self, strict: DirectionStore, theirs: Key
    ) -> None:
        for directions in (f"reins://{strict.url}", {"live": f"reins://{strict.url}"}):
            with pytest.raises(SteeringUnavailable, match=r"no valid live direction.*is signed by"):
                attach(tiny.pipeline(), model="tiny", directions=directions, trusted_keys=[theirs.public])


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        made(0).save(tmp_path / "d.safetensors")
        return tmp_path / "d.safetensors"

    def test_a_fixed_file_needs_its_signature_beside_it(self, file: Path, ours: Key, theirs: Key) -> None:
        def attached(**trusted: list[str]) -> SteeringMiddleware:
            return attach(tiny.pipeline(), model="tiny", directions={"live": file}, **trusted)

        with pytest.raises(SignatureError, match=r"d\.safetensors is not signed"):
            attached(trusted_keys=[ours.public])
        Path(f"{file}.sig").write_bytes(theirs.sign(made(0)))
        with pytest.raises(SignatureError, match="is signed by"):
            attached(trusted_keys=[ours.public])
        assert attached().proof
        Path(f"{file}.sig").write_bytes(ours.sign(made(0)))
        assert attached(trusted_keys=[f"{ours.file}.pub"]).proof
        made(1).save(file)
        with pytest.raises(SignatureError, match="is of another file"):
            attached(trusted_keys=[ours.public])

    def test_the_environment_counts_for_files_too(self, file: Path, ours: Key, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(TRUSTED_ENV, ours.public)
        with pytest.raises(SignatureError, match="is not signed"):
            attach(tiny.pipeline(), model="tiny", directions=file)

    def test_files_beside_a_store_need_one_as_well(self, file: Path, strict: DirectionStore, ours: Key) -> None:
        directions = {"live": f"reins://{strict.url}", "other": file}
        with pytest.raises(SignatureError, match=r"d\.safetensors is not signed"):
            attach(tiny.pipeline(), model="tiny", directions=directions, trusted_keys=[ours.public])
