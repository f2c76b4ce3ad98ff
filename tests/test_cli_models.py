"""`reins-serve models`: the list, one entry, the proof of a saved checkpoint of every class, and pinning."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi
from typer.testing import CliRunner

from reins_serve.cli import app
from reins_serve.errors import ReinsError
from reins_serve.models import catalog, loading
from reins_serve.models.catalog import CHECKPOINTS
from reins_serve.models.spec import SPECS
from tests.zoo.case import Case
from tests.zoo.everything import CASES

RUN = CliRunner()
NINE = (
    "wan2.1-t2v-1.3b",
    "wan2.2-ti2v-5b",
    "cogvideox-2b",
    "cogvideox-5b",
    "cogvideox-5b-i2v",
    "cogvideox1.5-5b",
    "allegro",
)
NINE += ("ltx-video-2b-0.9.5", "sana-video-2b-480p", "kandinsky-5.0-t2v-lite-sft-5s", "cosmos-predict2-2b-video2world")
NINE += ("skyreels-v2-df-1.3b-540p", "motif-video-2b")
LARGER = ("wan2.2-t2v-a14b", "hunyuanvideo", "hunyuanvideo-1.5-480p-t2v", "mochi-1-preview", "ltx-2", "latte-1")


def output(*words: str) -> str:
    result = RUN.invoke(app, ["models", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_is_a_table_or_objects() -> None:
    listed = json.loads(output("--json"))
    names = {entry["name"] for entry in listed}
    assert {"embedded", *NINE, *LARGER} <= names
    assert len(names) >= 16
    table = output()
    for name in NINE:
        assert name in table


def test_one_entry_is_shown_with_what_could_not_be_confirmed() -> None:
    shown = json.loads(output("show", "wan2.2-t2v-a14b"))
    assert (shown["experts"], shown["num_blocks"], shown["default_block"]) == (2, 40, 20)
    assert "gpu_memory_gib" in shown["unverified"]
    with pytest.raises(ReinsError, match="it has: embedded"):
        output("show", "nothing")


@pytest.mark.parametrize(
    "entry", [e for e in catalog._shipped().values() if e.name != "embedded"], ids=lambda e: e.name
)
def test_every_entry_keeps_its_own_rules(entry: catalog.CatalogEntry) -> None:
    entry.check(
        width=entry.width,
        height=entry.height,
        num_frames=entry.num_frames,
        num_inference_steps=entry.num_inference_steps,
        guidance_scale=entry.guidance_scale,
    )
    assert entry.denoiser in SPECS
    assert entry.revision is None  # nothing is pinned that the hub was not asked for
    width, height, frames = entry.smallest
    assert not width % entry.size_multiple
    assert not height % entry.size_multiple
    assert frames == entry.nearest_frames(frames)
    assert set(entry.unverified) <= set(catalog.CatalogEntry.__dataclass_fields__)


@pytest.fixture(scope="module", params=CASES.values(), ids=lambda case: case.name)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A tiny checkpoint of every class, saved as a folder."""
    folder = tmp_path_factory.mktemp(request.param.name)
    request.param.build(0).save_pretrained(folder)
    return request.param, folder


def test_check_prints_the_proof_of_a_saved_folder(saved: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    case, folder = saved
    # Parts that no checkpoint holds, such as a stand-in for a safety checker that is not installed.
    monkeypatch.setattr(loading, "load", partial(loading.load, components=case.load()))
    words = ["check", str(folder), "--dtype", "float32", "--width", case.width, "--height", case.height]
    words += [
        "--frames",
        case.num_frames,
        "--max-batch",
        case.max_batch,
        "--arguments",
        json.dumps(dict(case.arguments)),
    ]
    told = output(*map(str, words), "--json")
    proof = json.loads(told)["proof"]
    assert set(proof) == {"live", "cond-token", "setpoint", "channel", "guard"}
    for figures in proof.values():
        assert figures["applications"] > 0
        assert figures["error"] < 1e-5
        assert figures["latent_change"] > 0


def test_check_proves_a_model_of_the_catalogue_by_its_name() -> None:
    assert "proved: off is bit-identical" in output("check", "embedded")


@pytest.mark.parametrize("checkpoint", ["/nowhere/at/all", "nobody/nothing"])
def test_a_checkpoint_that_is_not_there_is_an_error_that_says_so(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ReinsError, match="no folder in diffusers layout"):
        output("check", checkpoint)


def test_arguments_that_are_no_object_are_refused() -> None:
    with pytest.raises(ReinsError, match="JSON object"):
        output("check", "embedded", "--arguments", "[1]")


class TestPin:
    """The hub cannot be asked here: what it would answer stands in for it."""

    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        def model_info(self: HfApi, repo: str, **_: Any) -> SimpleNamespace:
            if repo.startswith("genmo"):
                raise OSError("unreachable")
            return SimpleNamespace(sha=f"{abs(hash(repo)):040x}"[:40])

        monkeypatch.setattr(HfApi, "model_info", model_info)
        copy = tmp_path / "checkpoints.yaml"
        copy.write_text(CHECKPOINTS.read_text())
        return copy

    def revisions(self, file: Path) -> dict[str, str | None]:
        return {entry["name"]: entry["revision"] for entry in yaml.safe_load(file.read_text())["checkpoints"]}

    def test_a_pinned_checkpoint_gets_its_commit_and_no_other_changes(self, file: Path) -> None:
        before = self.revisions(file)
        output("pin", "allegro", "--file", str(file))
        after = self.revisions(file)
        assert after.pop("allegro") != before.pop("allegro")
        assert after == before

    def test_nothing_is_written_when_the_hub_does_not_answer(self, file: Path) -> None:
        text = file.read_text()
        with pytest.raises(ReinsError, match="Nothing was written"):
            output("pin", "--file", str(file))
        assert file.read_text() == text

    def test_an_unknown_name_is_refused(self, file: Path) -> None:
        with pytest.raises(ReinsError, match="no checkpoint named"):
            output("pin", "nothing", "--file", str(file))
