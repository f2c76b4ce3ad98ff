"""The trainer: one seed gives one result, an interrupted run ends where an undisturbed one does, stages are kept."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from reins_serve.embedded.denoiser import LatentData, Settings, Trainer
from reins_serve.embedded.muon import orthogonalise
from reins_serve.embedded.tokenizer import build_tokenizer
from reins_serve.embedded.train import Plan, draw_clips, run, scene_of

TINY = Settings(steps=4, batch=2, save_every=2, compiled=False)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 8, 8, 8, 8, generator=generator).half()
    return LatentData(
        latents,
        torch.rand(8, 8, 8, 8, generator=generator) > 0.5,
        [scene_of(row) for row in draw_clips(8, (0,))[2].tolist()],
    )


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def train(data, checkpoint, settings=TINY, stop_after=None):
    def report(step, loss, seconds):
        if step == stop_after:
            raise KeyboardInterrupt

    return weights(Trainer(data, build_tokenizer(), settings).run(checkpoint, report))


def test_an_interrupted_run_ends_bit_for_bit_where_an_undisturbed_one_does(data, tmp_path):
    undisturbed = train(data, tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "b.pt", stop_after=3)
    resumed = train(data, tmp_path / "b.pt")
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def test_another_seed_gives_other_weights(data, tmp_path):
    first = train(data, tmp_path / "a.pt")
    second = train(data, tmp_path / "b.pt", dataclasses.replace(TINY, seed=1))
    assert not torch.equal(first["transformer.proj_out.bias"], second["transformer.proj_out.bias"])


def test_training_lowers_the_loss(data, tmp_path):
    losses = []
    settings = dataclasses.replace(TINY, steps=60, batch=4, save_every=1000)
    # Random latents leave nothing to learn in a few steps; one even colour can be learnt by heart.
    one = LatentData((2 * data.latents[:1, :, :1, :1, :1]).expand(8, 8, 8, 8, 8), data.mask, data.scenes)
    Trainer(one, build_tokenizer(), settings).run(tmp_path / "a.pt", lambda step, loss, s: losses.append(loss))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_muon_makes_matrices_orthogonal():
    wide = orthogonalise(torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(0)))
    tall = orthogonalise(torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0)))
    for singular in (torch.linalg.svdvals(wide), torch.linalg.svdvals(tall)):
        assert singular.min() > 0.5
        assert singular.max() < 1.4


def test_a_whole_run_exports_a_pipeline_and_a_second_one_reuses_every_stage(tmp_path):
    plan = Plan(clips=16, vae_clips=16, vae_steps=2, judge_clips=16, judge_steps=2, denoiser=TINY)
    folder = run(tmp_path, plan)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "WanPipeline"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix in (".pt", ".safetensors")}
    first = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    training = json.loads((folder / "training.json").read_text())
    assert [int(step) for step in training["loss"]] == list(range(TINY.save_every, TINY.steps + 1, TINY.save_every))
    assert all(0 < loss < 10 for loss in training["loss"].values())
    run(tmp_path, plan)
    assert json.loads((folder / "training.json").read_text())["loss"] == training["loss"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    second = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(SystemExit, match="other settings"):
        run(tmp_path, dataclasses.replace(plan, clips=32))
