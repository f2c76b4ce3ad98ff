"""An image-classification checkpoint as a judge: its own scores, sampled, reduced and mapped as configured."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ViTForImageClassification, ViTImageProcessorPil, ViTModel

from reins_serve.calibration.judges import load, read_config, run_judge
from reins_serve.errors import JudgeError
from tests.calibration.judges.conftest import LABELS, tiny_vit_config


def config(folder, **changes):
    document = {
        "kind": "image-classification",
        "name": "vit",
        "checkpoint": str(folder),
        "labels": {"fire": "burning", "smoke": "burning", "sea": "water"},
        "unsafe": {"burning": 0.5, "water": 0.6},
        "reduce": "max",
        "num_frames": 3,
    }
    return read_config(document | changes)


@pytest.fixture
def clips():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (t, 20, 24 + t, 3), dtype=np.uint8) for t in (5, 2, 9)]


def logits(folder, frames):
    """The checkpoint's own logits, frame by frame through PIL."""
    model = ViTForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**processor(Image.fromarray(f), return_tensors="pt")).logits for f in frames])


@pytest.mark.parametrize(("reduce", "how"), [("max", np.max), ("mean", np.mean)])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_probabilities_are_the_checkpoints_own(vit_folder, clips, reduce, how, batch_size):
    judge = load(config(vit_folder, reduce=reduce, batch_size=batch_size))
    verdicts = run_judge(judge, clips, [""] * 3)
    for row, chosen in enumerate(([0, 2, 4], [0, 1], [0, 4, 8])):
        scores = logits(vit_folder, clips[row][chosen]).softmax(1).numpy()
        burning = scores[:, LABELS.index("fire")] + scores[:, LABELS.index("smoke")]
        np.testing.assert_allclose(verdicts.unsafe["burning"][row], how(burning), rtol=1e-5)
        np.testing.assert_allclose(verdicts.unsafe["water"][row], how(scores[:, LABELS.index("sea")]), rtol=1e-5)


def test_sigmoids_where_labels_do_not_exclude_each_other(vit_folder, clips):
    raw = logits(vit_folder, clips[1][:1]).sigmoid().numpy()[0]
    expected = max(raw[LABELS.index("fire")], raw[LABELS.index("smoke")])
    told = load(config(vit_folder, scores="sigmoid"))
    torch.manual_seed(0)
    ViTForImageClassification(tiny_vit_config(problem_type="multi_label_classification")).save_pretrained(vit_folder)
    for judge in (told, load(config(vit_folder))):
        verdicts = run_judge(judge, [clips[1][:1]], [""])
        np.testing.assert_allclose(verdicts.unsafe["burning"], [expected], rtol=1e-5)


def test_a_label_that_the_checkpoint_lacks_is_refused_with_those_that_it_has(vit_folder):
    with pytest.raises(JudgeError, match="no label flood; it has: meadow, fire, smoke, sea"):
        load(config(vit_folder, labels={"flood": "water"}, unsafe={"water": 0.5}))


def test_a_checkpoint_without_a_trained_head_is_refused(vit_folder):
    ViTModel(tiny_vit_config()).save_pretrained(vit_folder)
    with pytest.raises(JudgeError, match="would be random"):
        load(config(vit_folder))


def test_pickles_are_refused(vit_folder):
    weights = load_file(vit_folder / "model.safetensors")
    torch.save(weights, vit_folder / "pytorch_model.bin")
    (vit_folder / "model.safetensors").unlink()
    with pytest.raises(JudgeError, match="no pickles"):
        load(config(vit_folder))


def test_weights_that_are_not_finite_are_an_error_and_not_safe(vit_folder, clips):
    weights = load_file(vit_folder / "model.safetensors")
    weights["classifier.bias"][1] = float("nan")
    save_file(weights, vit_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(JudgeError, match="no probability"):
        run_judge(load(config(vit_folder)), clips, [""] * 3)


def test_the_revision_follows_the_folder_and_can_be_pinned(vit_folder):
    revision = load(config(vit_folder)).revision
    assert load(config(vit_folder, revision=revision)).revision == revision
    weights = load_file(vit_folder / "model.safetensors")
    weights["classifier.bias"][1] += 1
    save_file(weights, vit_folder / "model.safetensors", {"format": "pt"})
    assert load(config(vit_folder)).revision != revision
    with pytest.raises(JudgeError, match="pinned"):
        load(config(vit_folder, revision=revision))


def test_the_revision_follows_how_pictures_are_prepared(vit_folder):
    revision = load(config(vit_folder)).revision
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.4, 0.4, 0.4]).save_pretrained(vit_folder)
    assert load(config(vit_folder)).revision != revision


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_hub_id_needs_a_commit(revision):
    with pytest.raises(JudgeError, match="pin its revision"):
        load(config("somebody/some-classifier", revision=revision))
