"""The recalibration job on a local Ray cluster of two nodes, at a few prompts: to the end, begun again, and refused."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

os.environ["RAY_AUTH_MODE"] = "disabled"

import ray
from ray.cluster_utils import Cluster

from reins_serve.calibration import collect as collect_module
from reins_serve.calibration import job as job_module
from reins_serve.calibration.activation_schema import ActivationsMeta, JudgeColumns
from reins_serve.calibration.activations import open_activations, write_activations
from reins_serve.calibration.collect import collect
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.job import DIRECTION, EVALUATION, PAGE, REPORT, recalibrate
from reins_serve.calibration.options import Option
from reins_serve.calibration.trials import seeded
from reins_serve.errors import ReinsError
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Direction, Window
from tests.zoo import wan
from tests.zoo.everything import entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # a whole job, on whatever the machine has left
SMALL: dict[str, Any] = {
    "model": "embedded",
    "name": "embedded-small",
    "prompts": {"kind": "embedded"},
    "seed": 3,
    "fit": 24,
    "select": 8,
    "evaluate": 12,
    "judge": {"kind": "embedded-a"},
    "evaluator": {"kind": "embedded-b"},
    "live": "directions/embedded/setpoint.safetensors",
    "selection": {
        "blocks": [1, 2],
        "tried": [{"operation": "setpoint", "strengths": [1.0, 2.0]}],
        "rounds": [{"prompts": 4}, {"candidates": 1, "prompts": 8}],
        "doses": [0.5],
    },
    "workers": {"batch": 24, "torch_threads": 1},
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A head and a second node on this machine."""
    assert not ray.is_initialized()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=2)
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    yield
    ray.shutdown()
    made.shutdown()


def config(**changes: Any) -> RecalibrateConfig:
    return RecalibrateConfig.model_validate(SMALL | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished job whose gates failed only for want of prompts, published on a person's word."""
    folder = tmp_path_factory.mktemp("job")
    with_store = config(store=str(folder / "store"))
    outcome = recalibrate(with_store, folder / "out", override="a test with few prompts")
    failed = {name for name, gate in outcome.gates.items() if not gate.passed}
    assert "size" in failed
    assert not failed & {
        "integrity",
        "separability",
        "null",
        "robustness",
        "continuity",
        "efficacy",
        "categories",
        "drift",
    }
    assert outcome.published == 1
    return folder


def test_the_job_writes_a_direction_a_report_and_a_page(done: Path) -> None:
    report = json.loads((done / "out" / REPORT).read_text())
    direction = Direction.load(done / "out" / DIRECTION)
    assert report["direction"]["sha256"] == direction.sha256
    assert report["cosine_to_live"] > 0.9
    assert {layer["block"] for layer in report["layers"]} == {1, 2}
    assert report["gates"].keys() == direction.meta.gates.keys()
    assert report["evaluation"]["unsafe_rate"]["off"]["judge_a"][0] == 1.0
    assert report["evaluation"]["unsafe_rate"]["on"]["judge_a"][0] < 0.5
    page = (done / "out" / PAGE).read_text()
    assert page.count("data:image/png") >= 4
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from elsewhere


def test_a_published_version_carries_the_overrides_reason_and_is_not_live(done: Path) -> None:
    store = DirectionStore(str(done / "store"))
    (version,) = store.versions("embedded")
    assert "few prompts" in version.why
    assert store.find("embedded") is None
    with pytest.raises(ReinsError, match="override"):
        store.promote("embedded", "1", who="test", why="test")


def test_a_finished_job_begun_again_makes_no_clip(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "run", lambda *_, **__: pytest.fail("clips were made again"))
    again = recalibrate(config(store=str(done / "store")), done / "out", override="a test with few prompts")
    assert again.direction is not None
    assert again.direction.meta.statistics == Direction.load(done / "out" / DIRECTION).meta.statistics


def test_a_folder_of_another_job_is_refused(done: Path) -> None:
    with pytest.raises(ReinsError, match=r"differs in seed\): give another --out"):
        recalibrate(config(seed=4), done / "out")


def test_more_evaluation_prompts_need_the_old_evaluation_gone_and_nothing_else(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    shutil.copytree(done / "out", again)
    with pytest.raises(ReinsError, match=r"differs in evaluate\): delete .*evaluation.json to evaluate again"):
        recalibrate(config(evaluate=16), again)
    (again / EVALUATION).unlink()
    monkeypatch.setattr(collect_module, "run", lambda *_, **__: pytest.fail("clips were made again"))
    monkeypatch.setattr(job_module, "choose", lambda *_: pytest.fail("the selection was made again"))
    outcome = recalibrate(config(evaluate=16), again)
    assert json.loads((again / REPORT).read_text())["evaluation"]["prompts"] == {"unsafe": 16, "benign": 16}
    assert outcome.direction is not None
    with pytest.raises(ReinsError, match=r"differs in evaluate\)"):
        recalibrate(config(), again)


def test_shuffled_labels_are_refused_before_anything_is_generated_with_them(done: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    os.symlink(done / "out" / "activations", shuffled / "activations")
    outcome = recalibrate(config(store=str(tmp_path / "store")), shuffled, shuffle=True)
    assert not outcome.gates["null"].passed
    assert not outcome.gates["separability"].passed
    assert outcome.gates["efficacy"].value is None
    assert not outcome.passed
    assert outcome.published is None
    assert not DirectionStore(str(tmp_path / "store")).models()


def test_one_class_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = seeded

    def benign(config: RecalibrateConfig, split: Any, kind: Any, n: int) -> list:
        return [(row, seed + (kind == "unsafe") * 10**6) for row, seed in real(config, split, "benign", n)]

    monkeypatch.setattr(collect_module, "seeded", benign)
    with pytest.raises(ReinsError, match="same label"):
        recalibrate(config(fit=4), tmp_path)


def test_a_judge_that_fails_ends_the_job_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"no weights at all")
    broken = {"kind": "embedded-a", "weights": str(tmp_path / "weights.safetensors")}
    with pytest.raises(ReinsError, match=r"weights\.safetensors"):
        recalibrate(config(fit=4, judge=broken), tmp_path / "out")


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    killed, began = threading.Event(), time.time()

    def kill() -> None:
        while not killed.is_set():
            for process in psutil.process_iter(["cmdline", "create_time"]):
                words = " ".join(process.info["cmdline"] or ())
                if "MapWorker(MapBatches(Generator))" in words and process.info["create_time"] > began - 60:
                    time.sleep(0.5)  # while it loads, or generates
                    os.kill(process.pid, signal.SIGKILL)
                    killed.set()
                    return
            time.sleep(0.2)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    stored = collect(config(fit=8, workers={"batch": 8, "torch_threads": 1}), str(tmp_path), lambda *_: None)
    assert killed.is_set()
    ids = stored.dataset.to_table(columns=["clip_id"]).column("clip_id").to_pylist()
    assert len(ids) == len(set(ids)) == 8 * 2 * 2


def image_to_video(folder: Path, images: bool = True, fit: int = 12) -> RecalibrateConfig:
    """A tiny model of one's own that begins with an image, its prompts, and people's labels for its clips."""
    case = next(case for case in wan.CASES if case.name == "wan22-ti2v-i2v")
    case.build(0).save_pretrained(folder / "model")
    for shade in ("dark", "light"):
        Image.new("RGB", (16, 16), shade + "gray").save(folder / f"{shade}.png")
    rows = [
        {"text": f"clip {n}", "split": "fit", "category": "smoke" if n % 2 else None}
        | ({"image": ("dark" if n < 6 else "light") + ".png"} if images else {})
        for n in range(24)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "model": case.name,
        "entry": asdict(replace(entry(case), source=str(folder / "model"), num_blocks=4, dtype="float32")),
        "task": "image-to-video",
        "prompts": {"kind": "file", "path": str(folder / "prompts.jsonl")},
        "judge": {
            "kind": "human",
            "path": str(folder / "labels.jsonl"),
            "key": "prompt-seed",
            "unsafe": {"smoke": 0.5},
        },
        "live": None,
        "fit": fit,
    }
    made = config(**changes)
    labels = [
        {"prompt": row.text, "seed": seed + extra, "smoke": int(kind == "unsafe")}
        for kind in ("benign", "unsafe")
        for row, seed in seeded(made, "fit", kind, fit)  # type: ignore[arg-type]
        for extra in range(2)
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    return made


def test_a_model_of_ones_own_that_begins_with_an_image_is_calibrated(tmp_path: Path) -> None:
    made = image_to_video(tmp_path)
    outcome = recalibrate(made, tmp_path / "out", until="fit")
    assert outcome.direction is not None
    assert (outcome.direction.model, outcome.direction.meta.fit.clips) == (made.model, 48)
    files = list((tmp_path / "out" / "activations").rglob("*.parquet"))
    assert len(files) == 3  # a call has one first frame: 12 clips of one, 24 and 12 of the other
    again = recalibrate(made, tmp_path / "out", until="fit")
    assert again.direction is not None
    assert again.direction.meta.statistics == outcome.direction.meta.statistics


def test_too_few_prompts_to_cross_fit_are_an_error_that_says_how_many(tmp_path: Path) -> None:
    with pytest.raises(ReinsError, match="at least 10 groups"):
        recalibrate(image_to_video(tmp_path, fit=4), tmp_path / "out", until="fit")


def test_a_prompt_without_the_image_that_its_model_begins_with_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReinsError, match="begins with an image"):
        recalibrate(image_to_video(tmp_path, images=False), tmp_path / "out", until="fit")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"entry": entry(wan.CASES[0])}, "give both the same name"),
        ({"evaluator": {"kind": "embedded-a"}}, "cannot check itself"),
        ({"select": 4}, "more prompts than"),
        ({"prompt": {}}, "Extra inputs"),
        ({"selection": SMALL["selection"] | {"tried": []}}, "at least 1"),
        (
            {
                "selection": SMALL["selection"]
                | {"tried": [{"operation": "setpoint", "turns": True, "strengths": [1.0]}]}
            },
            "give in_a_row as well",
        ),
        (
            {
                "window": {"start": 0.2, "end": 0.5},
                "selection": SMALL["selection"] | {"tried": [{"operation": "add", "end": 0.2, "strengths": [1.0]}]},
            },
            "behind the window's start",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(SMALL | change, default=lambda made: asdict(made)))
    with pytest.raises(ReinsError, match=words):
        RecalibrateConfig.load(file)


class TestData:
    """Faults of the data, planted in a store of made-up activations in which safe and unsafe prompts differ."""

    def written(
        self,
        root: Path,
        poison: float = 0.0,
        fingerprint: str = "f" * 32,
        name: str = "a",
        other: str | None = None,
    ) -> None:
        rng = np.random.default_rng(0)
        n, width = 480, 64
        unsafe = np.arange(n) // 2 % 2 == 1  # two clips a prompt
        pooled = rng.normal(size=(n, 2, width)).astype(np.float32)
        pooled[:, :, 0] += np.where(unsafe, -3, 3)[:, None]
        labels = {"explosion": unsafe}
        if other is not None:  # every second unsafe prompt, and every fourth safe one
            labels[other] = np.arange(n) // 2 % 8 < np.where(unsafe, 4, 2)
            pooled[:, :, 2] += np.where(labels[other], -3, 3)[:, None]
        outliers = unsafe & (rng.random(n) < 2 * poison)
        pooled[outliers, :, 1] += 400
        meta = ActivationsMeta(
            model="embedded",
            fingerprint=fingerprint,
            blocks=(1, 2),
            width=width,
            dtype="float32",
            window=Window(start=0, end=0.5),
            judges={"judge_a": JudgeColumns(revision="1", unsafe=tuple(labels))},
        )
        prompts = [f"{number // 2:064d}" for number in range(n)]
        columns = {
            "clip_id": [f"{name}{number}" for number in range(n)],
            "source": "test",
            "prompt_sha256": prompts,
            "group": prompts,
            "split": "fit",
            "seed": list(range(n)),
            "steps": 10,
            "guidance_scale": 4.0,
            **{f"unsafe/judge_a/{label}": hits.astype(float) for label, hits in labels.items()},
        }
        write_activations(str(root), meta, pooled, np.ones((n, 2), np.float32), columns, name=name)

    def gates(self, root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
        monkeypatch.setattr(job_module, "collect", lambda *_: open_activations(str(root), "embedded"))
        os.makedirs(out, exist_ok=True)
        os.symlink(root, out / "activations")
        return dict(recalibrate(config(**changes), out, until="fit").gates)

    def test_sound_data_pass(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written(tmp_path / "store")
        gates = self.gates(tmp_path / "store", tmp_path / "out", monkeypatch, live=None)
        assert all(gate.passed for gate in gates.values())

    def test_five_percent_of_poisoned_outliers_are_stopped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.written(tmp_path / "store", poison=0.05)
        gates = self.gates(tmp_path / "store", tmp_path / "out", monkeypatch, live=None)
        assert not gates["robustness"].passed

    def test_a_live_direction_of_other_weights_is_no_measure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.written(tmp_path / "store")
        store = DirectionStore(str(tmp_path / "directions"))
        live = Direction.load("directions/embedded/setpoint.safetensors")
        store.publish(live, who="test", why="test")
        store.promote("embedded", "1", who="test", why="test")
        gates = self.gates(
            tmp_path / "store", tmp_path / "out", monkeypatch, live=None, store=str(tmp_path / "directions")
        )
        assert not gates["integrity"].passed

    def test_another_models_activations_beside_are_refused_by_field(self, tmp_path: Path) -> None:
        self.written(tmp_path)
        self.written(tmp_path, fingerprint="0" * 32, name="b")
        with pytest.raises(ReinsError, match="fingerprint is"):
            open_activations(str(tmp_path), "embedded")

    def test_labels_take_turns_each_with_its_own_direction_and_nothing_of_the_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.written(tmp_path / "store", other="spill")
        monkeypatch.setattr(job_module, "collect", lambda *_: open_activations(str(tmp_path / "store"), "embedded"))
        seen: dict[str, Option] = {}

        def choose(config: RecalibrateConfig, tried: dict[str, Option], progress: Any) -> None:
            seen.update(tried)
            raise ReinsError("enough seen")

        monkeypatch.setattr(job_module, "choose", choose)
        (tmp_path / "out").mkdir()
        os.symlink(tmp_path / "store", tmp_path / "out" / "activations")
        row = {"operation": "setpoint", "in_a_row": 2, "turns": True, "strengths": [1.5]}
        made = config(
            live=None,
            judge={"kind": "embedded-hard-a"},
            evaluator={"kind": "embedded-hard-b"},
            selection=SMALL["selection"] | {"tried": [*SMALL["selection"]["tried"], row]},
        )
        with pytest.raises(ReinsError, match="enough seen"):
            recalibrate(made, tmp_path / "out")
        rows = {name: option for name, option in seen.items() if len(option.basis) == 2}
        assert set(rows) == {"setpoint-none-cond-1x2-0", "setpoint-none-cond-1x2-1"}
        for number, option in enumerate(rows.values()):
            assert option.direction.blocks == (1, 2)
            own = option.direction.vectors[:, [0, 2]].abs()  # where explosions and spills lie
            assert own[0, number] > 0.9 > 0.2 > own[0, 1 - number]
            assert own[1, 1 - number] > 0.9 > 0.2 > own[1, number]
        assert len([name for name in seen if name not in rows]) == 2
