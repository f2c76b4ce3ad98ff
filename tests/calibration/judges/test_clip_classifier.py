"""The clip classifier learns what a clip shows and what happens in it, and its file is refused with another SigLIP."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from transformers import SiglipModel, SiglipVisionModel

from reins_serve.calibration.judges import clip_training, load, read_config, run_judge
from reins_serve.calibration.judges.clip_classifier import (
    Architecture,
    Header,
    TemporalClassifier,
    Vision,
    load_file,
    save,
    time_embedding,
)
from reins_serve.calibration.judges.clip_training import (
    TrainingConfig,
    TrainingSettings,
    learning_rate_factor,
    main,
    run,
    train,
)
from reins_serve.calibration.judges.siglip import FrameEncoder
from reins_serve.errors import JudgeError, ReinsError
from reins_serve.models.video import write_mp4
from tests.calibration.judges.conftest import save_siglip

SMALL = Architecture(width=32, num_layers=2, num_heads=4)
QUICK = TrainingSettings(learning_rate=3e-3, epochs=30)
UNSAFE = {"red": 0.5, "dawn": 0.5}


def drawn(n, seed):
    """Clips uint8 `[T, 20, 24, 3]` and labels `[n, 2]`: reddish or bluish, and growing lighter (dawn) or darker."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 2))
    clips = []
    for red, dawn in labels:
        length = int(rng.integers(8, 14))
        light = np.linspace(0.2, 1.0, length) if dawn else np.linspace(1.0, 0.2, length)
        colour = np.array([1.0, 0.3, 0.2]) if red else np.array([0.2, 0.3, 1.0])
        noise = rng.uniform(0.7, 1.0, (length, 20, 24, 3))
        clips.append((255 * noise * light[:, None, None, None] * colour).astype(np.uint8))
    return clips, labels.astype(np.float32)


@pytest.fixture(scope="module")
def encoder(siglip_folder):
    return FrameEncoder(str(siglip_folder))


@pytest.fixture(scope="module")
def trained(encoder):
    clips, labels = drawn(160, seed=1)
    return train(encoder.encode(clips, 8), labels, SMALL, QUICK)


@pytest.fixture
def checkpoint(trained, encoder, tmp_path):
    vision = Vision(source=encoder.source, revision=encoder.revision, digest=encoder.digest)
    save(tmp_path / "classifier.safetensors", trained[0], Header(unsafe=UNSAFE, architecture=SMALL, vision=vision))
    return tmp_path / "classifier.safetensors"


def judge_of(checkpoint, **changes):
    return load(read_config({"kind": "clip-classifier", "checkpoint": str(checkpoint), **changes}))


def test_it_learns_each_label_on_clips_that_it_has_not_seen(trained, checkpoint):
    clips, labels = drawn(60, seed=2)
    verdicts = run_judge(judge_of(checkpoint, batch_size=7), clips, [""] * 60)
    for column, name in enumerate(UNSAFE):
        assert ((verdicts.unsafe[name] >= 0.5) == labels[:, column]).mean() >= 0.95
    assert trained[1][-1] < 0.3 * trained[1][0]


def test_order_in_time_counts(checkpoint):
    clips, labels = drawn(20, seed=3)
    judge = judge_of(checkpoint)
    there, back = (run_judge(judge, c, [""] * 20).unsafe["dawn"] for c in (clips, [clip[::-1] for clip in clips]))
    assert ((there >= 0.5) == labels[:, 1]).mean() >= 0.9
    assert ((back >= 0.5) != labels[:, 1]).mean() >= 0.9


def test_the_papers_sizes_are_the_defaults():
    model = TemporalClassifier(Architecture(), 13)
    layer = model.layers.layers[0]
    assert len(model.layers.layers) == 4
    assert layer.self_attn.num_heads == 8
    assert layer.dropout.p == 0.1
    assert layer.activation is torch.nn.functional.gelu
    assert model.eval()(torch.zeros(2, 8, 768)).shape == (2, 13)
    settings = TrainingSettings()
    assert (settings.learning_rate, settings.weight_decay, settings.max_grad_norm) == (1e-5, 1e-2, 1.0)
    assert (settings.epochs, settings.warmup_epochs, settings.batch_size, settings.seed) == (10, 1, 16, 42)


def test_the_time_embedding_is_vaswanis():
    found = time_embedding(8, 6)
    for t in range(8):
        angles = [t / 10_000 ** (2 * i / 6) for i in range(3)]
        np.testing.assert_allclose(found[t], np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-6)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine_to_zero():
    rates = [learning_rate_factor(step, 10, 100) for step in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], 0.5 * (1 + np.cos(np.pi * np.arange(91) / 90)), atol=1e-12)


def test_training_follows_the_schedule(encoder, monkeypatch):
    asked = []
    monkeypatch.setattr(clip_training, "learning_rate_factor", lambda *given: asked.append(given) or 0.0)
    clips, labels = drawn(20, seed=4)
    still = SMALL.model_copy(update={"dropout": 0.0})
    _, losses = train(encoder.encode(clips, 8), labels, still, TrainingSettings(epochs=3, warmup_epochs=2))
    assert asked == [(step, 4, 6) for step in range(7)]  # 20 clips, 16 a batch: two steps an epoch
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)  # at a rate of zero nothing is learnt


def test_equal_seeds_give_equal_classifiers_and_leave_the_global_generator_alone(encoder):
    clips, labels = drawn(20, seed=4)
    features = encoder.encode(clips, 8)
    settings = TrainingSettings(epochs=2)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first, _ = train(features, labels, SMALL, settings)
    torch.testing.assert_close(torch.rand(3), expected)
    again, _ = train(features, labels, SMALL, settings)
    other, _ = train(features, labels, SMALL, settings.model_copy(update={"seed": 43}))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_tower_is_frozen_and_gives_siglips_pooled_features(siglip_folder, encoder):
    clips = [np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)]
    frames = clips[0][[0, 3, 5, 8, 11, 14, 16, 19]]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1  # 16 x 16 already: nothing is resized
    with torch.no_grad():
        expected = SiglipVisionModel.from_pretrained(siglip_folder)(pixels).pooler_output
    torch.testing.assert_close(encoder.encode(clips, 8), expected[None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, y: (f[:, :4], y), "Features are"),
        (lambda f, y: (f, y[:3]), "Labels are"),
        (lambda f, y: (f, np.where(y > 0, np.nan, y)), "NaN or outside"),
        (lambda f, y: (f, y * 2), "NaN or outside"),
        (lambda f, y: (f, y * [1, 0]), r"number \[1\] never vary"),
        (lambda f, y: (f / 0, y), "not finite"),
    ],
)
def test_training_data_that_cannot_be_learnt_from_is_refused(spoil, message):
    features, labels = torch.ones(6, 8, 32), np.array([[0, 1], [1, 0]] * 3, dtype=np.float32)
    with pytest.raises(ReinsError, match=message):
        train(*spoil(features, labels), SMALL, QUICK)


def test_thresholds_of_the_file_hold_until_they_are_replaced(checkpoint):
    assert judge_of(checkpoint).unsafe == UNSAFE
    assert judge_of(checkpoint, unsafe={"red": 0.9}).unsafe == {"red": 0.9, "dawn": 0.5}
    with pytest.raises(JudgeError, match="no label gore; it has: red, dawn"):
        judge_of(checkpoint, unsafe={"gore": 0.5})


def test_another_siglip_is_refused_and_the_same_may_lie_elsewhere(checkpoint, siglip_folder, tmp_path):
    with pytest.raises(JudgeError, match="was trained on the SigLIP"):
        judge_of(checkpoint, vision=str(save_siglip(tmp_path / "other", seed=1)))
    shutil.copytree(siglip_folder, tmp_path / "moved")
    clips, _ = drawn(4, seed=5)
    here, moved = (
        run_judge(judge, clips, [""] * 4).unsafe["red"]
        for judge in (judge_of(checkpoint), judge_of(checkpoint, vision=str(tmp_path / "moved")))
    )
    np.testing.assert_array_equal(here, moved)


def test_the_tower_of_a_whole_siglip_is_the_same_tower(siglip_folder, encoder, tmp_path):
    shutil.copytree(siglip_folder, tmp_path / "whole")
    tower = SiglipVisionModel.from_pretrained(siglip_folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = SiglipModel.config_class(text_config=text, vision_config=tower.config.to_dict())
    whole = SiglipModel(config)
    whole.vision_model.load_state_dict(tower.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    assert FrameEncoder(str(tmp_path / "whole")).digest == encoder.digest


def test_pictures_prepared_otherwise_make_another_encoder(siglip_folder, encoder, tmp_path):
    shutil.copytree(siglip_folder, tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "preprocessor_config.json").read_text())
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4, 0.4, 0.4]}))
    assert FrameEncoder(str(tmp_path / "other")).digest != encoder.digest


def test_a_file_that_is_no_classifier_is_refused(checkpoint, tmp_path):
    weights = load_tensors(checkpoint)
    save_file(weights, tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:500])
    torch.save(weights, tmp_path / "pickle.safetensors")
    _, header = load_file(checkpoint)
    del weights["head.bias"]
    save_file(weights, tmp_path / "less.safetensors", {"reins": header.model_dump_json()})
    for name in ("bare", "cut", "pickle", "less", "absent"):
        with pytest.raises(JudgeError, match="no clip classifier"):
            load_file(tmp_path / f"{name}.safetensors")


def test_weights_that_are_not_finite_are_an_error_and_not_safe(checkpoint):
    model, header = load_file(checkpoint)
    model.head.bias[0] = float("nan")
    save(checkpoint, model, header)
    with pytest.raises(JudgeError, match="no probability"):
        run_judge(judge_of(checkpoint), drawn(2, seed=6)[0], [""] * 2)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    clips, labels = drawn(30, seed=7)
    lines = []
    for number, (clip, (red, dawn)) in enumerate(zip(clips, labels, strict=True)):
        write_mp4(clip, folder / f"{number}.mp4", fps=8)
        group = f"prompt {number // 5}"
        lines.append({"video": f"{number}.mp4", "labels": {"red": float(red), "dawn": float(dawn)}, "group": group})
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "examples.jsonl"


def training_config(examples, siglip_folder, **changes):
    document = {
        "examples": str(examples),
        "vision": str(siglip_folder),
        "unsafe": UNSAFE,
        "architecture": SMALL.model_dump(),
        "settings": QUICK.model_dump(),
        "held_out": 0.4,
    }
    return document | changes


def test_from_videos_and_labels_to_a_judge_in_one_command(examples, siglip_folder, tmp_path, capsys):
    written, out = tmp_path / "training.yaml", tmp_path / "out" / "classifier.safetensors"
    settings = QUICK.model_dump() | {"batch_size": 4}
    written.write_text(json.dumps(training_config(examples, siglip_folder, settings=settings)))
    main([str(written), "--out", str(out)])
    auc = json.loads(capsys.readouterr().out.split(f"epoch {QUICK.epochs}")[1].split("\n", 1)[1])
    assert auc["red"] >= 0.9
    training = load_file(out)[1].training
    assert (training["clips"], training["held_out_clips"]) == (15, 15)  # 3 groups of 5; clips alone would be 12
    assert training["held_out_auc"] == auc
    clips, labels = drawn(20, seed=8)
    found = run_judge(judge_of(out), clips, [""] * 20).unsafe["red"]
    assert ((found >= 0.5) == labels[:, 0]).mean() >= 0.9


def test_clips_of_one_group_are_not_parted(examples, siglip_folder, tmp_path):
    lines = [json.loads(line) | {"group": "one"} for line in examples.read_text().splitlines()]
    one = examples.with_name("one.jsonl")
    one.write_text("\n".join(map(json.dumps, lines)))
    config = TrainingConfig.model_validate(training_config(one, siglip_folder))
    with pytest.raises(ReinsError, match="none can be held out"):
        run(config, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"video": "0.mp4", "labels": {"red": 1}}, "line 1: KeyError: 'dawn'"),
        ({"video": "absent.mp4", "labels": {"red": 1, "dawn": 0}}, "line 1: FileNotFoundError"),
        ({"video": "examples.jsonl", "labels": {"red": 1, "dawn": 0}}, "line 1: InvalidDataError"),
        ([], "line 1: TypeError"),
    ],
)
def test_an_example_that_cannot_be_read_is_named(examples, siglip_folder, tmp_path, line, message):
    broken = examples.with_name("broken.jsonl")
    broken.write_text(json.dumps(line))
    with pytest.raises(ReinsError, match=message):
        run(TrainingConfig.model_validate(training_config(broken, siglip_folder)), tmp_path / "x.safetensors")


def test_a_width_that_is_not_the_siglips_is_refused(examples, siglip_folder, tmp_path):
    config = TrainingConfig.model_validate(training_config(examples, siglip_folder, architecture={"width": 64}))
    with pytest.raises(ReinsError, match=r"have 32 values: set architecture.width"):
        run(config, tmp_path / "x.safetensors")
