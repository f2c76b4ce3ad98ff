"""`reins-serve directions`: files shown, compared and proved, and a store led from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reins_serve.cli_directions import app
from reins_serve.errors import ConflictError, DirectionError, ReinsError, StorageError
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Direction, DirectionMeta, Gate
from tests.rollout.conftest import made

RUN = CliRunner()
SHIPPED = Path(__file__).parents[1] / "directions" / "embedded"
SETPOINT, ADD = SHIPPED / "setpoint.safetensors", SHIPPED / "add.safetensors"


def of(file: Path) -> DirectionMeta:
    return Direction.load(file).meta


def output(*words: Any) -> str:
    result = RUN.invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectionStore:
    """A store that the commands find in the environment, with three versions published from files."""
    monkeypatch.setenv("REINS_STORE", str(tmp_path / "store"))
    for seed in range(3):
        file = tmp_path / f"{seed}.safetensors"
        made(seed).save(file)
        assert f"tiny version {seed + 1}: {made(seed).sha256}" in output("publish", file, "--why", "a test")
    return DirectionStore(str(tmp_path / "store"))


def test_show_prints_what_a_file_says_and_loads_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reins_serve.models.loading.load", pytest.fail)
    shown = json.loads(output("show", SETPOINT))
    direction = Direction.load(SETPOINT)
    assert [shown.pop(name) for name in ("sha256", "signed_by", "trusted")] == [direction.sha256, [], None]
    assert shown == direction.meta.model_dump(mode="json")


def test_show_finds_a_version_of_the_store(store: DirectionStore) -> None:
    store.promote("tiny", "2", who="ann", why="x")
    for name in ("tiny@live", "tiny@v2", f"tiny@{made(1).sha256[:8]}"):
        assert json.loads(output("show", name))["sha256"] == made(1).sha256


def test_diff_tells_the_cosine_of_shared_blocks_and_the_fields_that_differ(store: DirectionStore) -> None:
    compared = json.loads(output("diff", "tiny@1", "tiny@2", "--json"))
    assert compared == {"cosine": {"1": pytest.approx(float(made(0).vectors[0] @ made(1).vectors[0]))}, "changed": {}}
    assert output("diff", "tiny@1", "tiny@1").splitlines() == ["block 1: cosine 1.0000", "no field differs"]
    shipped = json.loads(output("diff", SETPOINT, ADD, "--json"))
    assert shipped["cosine"] == {
        str(block): None for block in (*of(SETPOINT).blocks, *of(ADD).blocks)
    }  # none is shared
    assert shipped["changed"]["operation"] == ["setpoint", "add"]
    assert shipped["changed"]["strength.serving"] == [of(file).strength.serving for file in (SETPOINT, ADD)]
    assert "base.fingerprint" not in shipped["changed"]
    assert "strength.serving" in output("diff", SETPOINT, ADD)


def test_directions_of_different_width_are_not_compared(store: DirectionStore) -> None:
    with pytest.raises(ReinsError, match="width 16 and 128"):
        output("diff", "tiny@1", SETPOINT)


def test_check_validates_a_file_alone(tmp_path: Path) -> None:
    checked = json.loads(output("check", ADD))
    assert (checked["valid"], checked["gates"], checked["gates_failed"]) == (True, len(of(ADD).gates), [])
    missed = Gate(value=0.8, limit="expected refit cosine >= 0.9", passed=False)
    meta = of(ADD).model_copy(update={"gates": of(ADD).gates | {"stability": missed}})
    Direction.create(meta, Direction.load(ADD).vectors).save(tmp_path / "missed.safetensors")
    checked = json.loads(output("check", tmp_path / "missed.safetensors"))
    assert (checked["valid"], checked["gates_failed"]) == (True, ["stability"])
    (tmp_path / "cut.safetensors").write_bytes(ADD.read_bytes()[:-1])
    with pytest.raises(DirectionError, match="not a complete safetensors file"):
        output("check", tmp_path / "cut.safetensors")


def test_check_with_a_model_proves_the_steering() -> None:
    proof = json.loads(output("check", SETPOINT, "--model", "embedded"))["proof"]
    assert proof["applications"] > 0
    assert proof["error"] < 1e-5


def test_check_refuses_another_model_than_the_files() -> None:
    with pytest.raises(ReinsError, match=r"of embedded, not of wan2\.1-t2v-1\.3b"):
        output("check", SETPOINT, "--model", "wan2.1-t2v-1.3b")


def test_a_rollout_from_the_command_line(store: DirectionStore) -> None:
    why = ("--why", "a test", "--who", "ann")
    assert "tiny generation 1: live v1" in output("promote", "tiny", "1", *why)
    assert "candidate v2" in (told := output("canary", "tiny", "2", "12.5%", *why))
    assert "for 0.125 of the generations" in told
    assert "candidate" not in output("withdraw", "tiny", *why)
    output("canary", "tiny", "2", "0.1", *why)
    assert "generation 5: live v2" in output("promote", "tiny", "candidate", *why)
    assert "generation 6: live v1" in output("rollback", "tiny", *why, "--generation", "5")
    with pytest.raises(ConflictError):
        output("rollback", "tiny", *why, "--generation", "5")
    assert "removed v2, v3" in output("collect", "tiny", "--keep", "0", *why)
    events = json.loads(output("history", "tiny", "--json"))
    assert [event["action"] for event in events[3:]] == [
        "promote", "canary", "withdraw", "canary", "promote", "rollback", "collect", "collected",
    ]  # fmt: skip
    assert {event["by"] for event in events[3:]} == {"ann"}
    table = output("history", "tiny")
    assert "12%" in table
    assert "a test" in table


@pytest.mark.parametrize("share", ["ten", "-1", "1e-3", "0", "100%"])
def test_a_share_that_is_none_is_refused(store: DirectionStore, share: str) -> None:
    store.promote("tiny", "1", who="ann", why="x")
    with pytest.raises(ReinsError, match=r"(?i)fraction"):
        output("canary", "tiny", "--why", "x", "--", "2", share)


def test_a_canary_that_ends_by_itself_is_declared_with_its_limits(store: DirectionStore) -> None:
    store.promote("tiny", "1", who="ann", why="x")
    auto = ("--auto-after", 200, "--max-failed", "2%", "--max-failed-above-live", "0.01", "--max-unsafe", "1%")
    told = output("canary", "tiny", "2", "10%", "--why", "x", *auto, "--min-score", -0.5, "--auto-hours", 12)
    assert "which the cluster's registry ends until" in told
    declared = store.read("tiny").auto
    assert declared is not None
    assert declared.limits.model_dump(exclude={"max_score"}) == {
        "min_generations": 200, "max_failed_rate": 0.02, "max_failed_excess": 0.01, "max_unsafe_rate": 0.01,
        "min_score": -0.5, "deadline_s": 43200,
    }  # fmt: skip
    assert "candidate 0.1, auto" in output("list")
    assert "10%, auto" in output("history", "tiny")
    for words, reason in ((("--max-failed", "2%"), "--auto-after"), (("--auto-after", 5), "say how many may fail")):
        with pytest.raises(ReinsError, match=reason):
            output("canary", "tiny", "3", "10%", "--why", "x", *words)


def test_an_override_is_asked_for_and_recorded(store: DirectionStore, tmp_path: Path) -> None:
    made(7, "failed").save(tmp_path / "failed.safetensors")
    output("publish", tmp_path / "failed.safetensors", "--why", "x")
    with pytest.raises(DirectionError, match=r"failed utility.*--override"):
        output("promote", "tiny", "4", "--why", "x")
    output("promote", "tiny", "4", "--why", "x", "--override", "signed [off]")
    assert "signed [off]" in output("history", "tiny")


def test_the_list_shows_what_is_live_since_when_and_what_is_missing(store: DirectionStore) -> None:
    first = store.promote("tiny", "1", who="ann", why="x")
    canary = store.canary("tiny", "2", 0.1, who="ann", why="x")
    store.canary("tiny", "2", 0.2, who="ann", why="more")
    Path(store.url, "tiny", "versions", f"{made(2).sha256}.safetensors").unlink()
    rows = json.loads(output("list", "--json"))
    assert [row["state"] for row in rows] == ["live", "candidate", ""]
    assert rows[0]["since"] == first.updated.isoformat()
    assert rows[1]["since"] > canary.updated.isoformat()
    assert rows[0]["gates_failed"] == []
    assert "is missing" in rows[2]["error"]
    table = output("list", "tiny")
    for words in ("live", "candidate 0.2", "file missing or damaged", "1 passed", "1+1 prompts, 2 clips, none"):
        assert words in table
    assert "No versions of other" in output("list", "other")


def test_publish_keeps_the_report_and_refuses_another_models_file(store: DirectionStore, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html>")
    output("publish", SETPOINT, "--report", tmp_path / "report.html", "--why", "x", "--model", "embedded")
    assert store.report("embedded", Direction.load(SETPOINT).sha256) == b"<html>"
    with pytest.raises(DirectionError, match="of embedded, not of tiny"):
        output("publish", SETPOINT, "--why", "x", "--model", "tiny")


def test_a_damaged_pointer_is_an_error_and_the_history_can_be_read(store: DirectionStore) -> None:
    store.promote("tiny", "1", who="ann", why="x")
    Path(store.url, "tiny", "pointer.json").write_bytes(b"{}")
    with pytest.raises(StorageError, match="directions history"):
        output("list")
    assert "promote" in output("history", "tiny")


def test_who_defaults_to_the_user(store: DirectionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    output("promote", "tiny", "1", "--why", "x")
    assert store.read("tiny").by == "somebody"
