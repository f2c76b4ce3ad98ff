"""The harder model's training: stages, a first frame that is given, and a folder that both of Wan's pipelines load."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reins_serve.embedded.denoiser import Settings
from reins_serve.embedded.hard import NUM_FRAMES, SIZE
from reins_serve.embedded.hard.denoiser import CHANNELS, MORE_STILL, POLISH_RATE
from reins_serve.embedded.hard.judge import JudgeNetwork
from reins_serve.embedded.hard.measure import TASKS, load, measure, sample
from reins_serve.embedded.hard.prompts import prompts, split_of
from reins_serve.embedded.hard.shapes import trained_reader
from reins_serve.embedded.hard.train import HARD, PLAN, draw_clips, scene_of, trainer_of
from reins_serve.embedded.hard.tune_judge import painted
from reins_serve.embedded.judge import stack
from reins_serve.embedded.train import Plan, run
from reins_serve.embedded.vae import decode, encode, to_clips, to_tensor

TINY = Settings(steps=2, batch=3, save_every=1, compiled=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    plan = Plan(
        clips=16,
        vae_clips=16,
        vae_steps=2,
        judge_clips=16,
        judge_steps=2,
        painted_clips=8,
        painted_steps=2,
        shape_clips=4,
        shape_steps=2,
        denoiser=TINY,
    )
    return run(tmp_path_factory.mktemp("hard"), plan, HARD)


def trainer(settings):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, CHANNELS, NUM_FRAMES, 8, 8, generator=generator).half()
    mask = torch.randint(3, (8, NUM_FRAMES, 8, 8), generator=generator, dtype=torch.uint8)
    return trainer_of(latents, mask, draw_clips(8, (1,))[2].tolist(), settings)


def test_a_step_depends_on_the_seed_and_its_number_alone():
    made = trainer(TINY)
    assert made.loss(3).item() == made.loss(3).item()
    assert made.loss(3).item() != made.loss(4).item()
    other = trainer(dataclasses.replace(TINY, seed=1))
    other.model.load_state_dict(made.model.state_dict())
    assert other.loss(3).item() != made.loss(3).item()


def test_the_last_steps_polish_the_shapes_at_small_rates():
    settings = dataclasses.replace(TINY, steps=1_000, batch=6)
    made, big = trainer(settings), trainer(dataclasses.replace(settings, batch=600))
    share = np.mean([scene.motion == "still" for scene in big.data.scenes])
    assert 0 < share < 1
    assert made.main_steps == 844
    rates = [made.schedule(step) for step in range(1_000)]
    assert rates[843] < 1e-4 < rates[844] == POLISH_RATE
    assert rates[844:] == sorted(rates[844:], reverse=True)
    assert rates[-1] < 1e-4
    for step, more in ((843, 0), (844, round(600 * MORE_STILL))):
        rows = big.rows(step, np.random.default_rng(0))
        still = [big.data.scenes[row].motion == "still" for row in rows]
        assert all(still[:more])
        assert 0.5 < np.mean(still[more:]) / share < 1.5
    unweighted = trainer(settings)
    unweighted.data = dataclasses.replace(made.data, mask=made.data.mask.clamp(max=1))
    assert made.loss(843).item() == unweighted.loss(843).item()
    assert made.loss(844).item() != unweighted.loss(844).item()


def test_a_run_s_last_steps_are_those_that_polish():
    assert PLAN.denoiser.steps - trainer(PLAN.denoiser).main_steps == 480


def test_a_first_frame_that_is_given_has_no_noise_no_timestep_and_no_share_of_the_loss(monkeypatch):
    made, seen = trainer(dataclasses.replace(TINY, batch=24)), {}
    forward = made.transformer.forward

    def record(noisy, timesteps, text, **kept):
        seen.update(noisy=noisy, timesteps=timesteps)
        return forward(noisy, timesteps, text, **kept)

    monkeypatch.setattr(made.transformer, "forward", record)
    made.loss(0)
    first, later = seen["timesteps"][:, :16], seen["timesteps"][:, 16:]
    given = (first == 0).all(dim=1)
    assert 0 < given.sum() < 24
    assert (later > 0).all()
    assert (first[~given] == later[~given][:, :16]).all()
    rows = np.random.default_rng([0, 2, 0]).integers(8, size=24)
    clean = made.data.latents[rows].float()
    assert torch.equal(seen["noisy"][given][:, :, 0], clean[given][:, :, 0])
    assert not torch.equal(seen["noisy"][given][:, :, 1], clean[given][:, :, 1])


def test_the_judge_is_drawn_every_combination_and_the_denoiser_none_that_is_held_out():
    drawn = {name: draw(200, (1,))[2].tolist() for name, draw in (("model", HARD.draw), ("judge", HARD.draw_for_judge))}
    splits = {name: {split_of(scene_of(row)) for row in rows} for name, rows in drawn.items()}
    assert splits == {"model": {"fit", "select"}, "judge": {"fit", "select", "evaluate"}}


def test_painted_clips_are_finished_from_noised_drawings_and_follow_from_the_seed():
    made, vae = trainer(TINY), HARD.vae()
    drawn = draw_clips(3, (4,))[0]
    calls = []
    average = made.average["transformer"]
    average.register_forward_pre_hook(lambda _, given: calls.append((given[0].shape[0], float(given[1].max()))))
    one, again, other = (painted(vae, made, drawn, ["a red square", "", "at sea"], seed) for seed in (1, 1, 2))
    assert (one.shape, one.dtype) == (drawn.shape, np.uint8)
    assert (one == again).all()
    assert (one != other).any()
    assert [rows for rows, _ in calls] == [6] * 3 * 3  # asked and plain rows, the last three steps of the schedule
    assert 0 < calls[2][1] < calls[1][1] < calls[0][1] < 1000


def test_the_judge_that_ships_has_learned_from_what_the_model_painted(folder):
    first, tuned, stored = (
        load_file(file)
        for file in (
            folder.parent / "judge_a.safetensors",
            folder.parent / "judge_a_tuned.safetensors",
            folder / "judge" / "judge_a.safetensors",
        )
    )
    assert any((first[name] != tuned[f"scene.{name}"]).any() for name in first)
    assert all((tuned[name] == stored[name]).all() for name in tuned)


def test_shapes_are_read_from_each_frame_alone_wherever_they_are_and_nothing_else_is():
    torch.manual_seed(0)
    network = JudgeNetwork().eval()
    frames = stack(draw_clips(2, (5,))[0])
    with torch.no_grad():
        logits, scene, shapes = network(frames), network.scene(frames), network.shapes(frames)
        alone = torch.stack([network.shapes(frame) for frame in frames.split(3, dim=1)])
        moved = network.shapes(stack(np.roll(draw_clips(2, (5,))[0], 4, axis=2)))
    assert torch.equal(logits[:, :4], shapes)
    assert torch.equal(logits[:, 4:], scene[:, 4:])
    assert torch.allclose(shapes, alone.mean(0), atol=1e-5)
    assert (shapes - moved).abs().max() < 0.1 * (shapes - shapes.flip(0)).abs().max() + 0.01  # but for the edges


def test_the_reader_of_shapes_learns_from_its_three_sources_and_follows_from_the_seed():
    clips, _, rows = draw_clips(24, (6,))
    shapes = rows[:, 0]
    losses = []
    sources = [(clips, shapes), (clips // 2, shapes), (255 - clips, shapes)]
    first = trained_reader(sources, 25, 0, lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    again, other = (trained_reader(sources, 1, seed, lambda *_: None) for seed in (0, 1))
    assert not torch.equal(first.head.weight, again.head.weight)
    assert torch.equal(again.head.weight, trained_reader(sources, 1, 0, lambda *_: None).head.weight)
    assert not torch.equal(again.head.weight, other.head.weight)


def test_the_exported_folder_makes_clips_from_text_and_from_a_first_frame(folder):
    pipelines = load(folder)
    asked = prompts("evaluate", "both", 3)
    for task in TASKS:
        clips = sample(pipelines[task], asked, [1, 2, 3])
        assert clips.shape == (3, NUM_FRAMES, SIZE, SIZE, 3)
        alone = sample(pipelines[task], asked[1:2], [2])[0]
        assert abs(clips[1].astype(int) - alone).max() <= 2  # sums of another batch size may round otherwise
        assert abs(clips[1].astype(int) - clips[0]).max() > 50
    begun = np.asarray(asked[0].first_frame())
    vae = pipelines[TASKS[0]].vae
    with torch.no_grad():
        decoded = to_clips(decode(vae, encode(vae, to_tensor(begun[None, None].copy()))))[0, 0].astype(float)
    clip = sample(pipelines[TASKS[1]], asked[:1], [1])[0]
    assert np.abs(clip[0].astype(float) - decoded).mean() < 1.0  # what was given is what the clip begins with


def test_the_measurement_reports_every_kind_of_prompt_in_both_tasks(folder):
    figures, clips = measure(folder, 1)
    assert len(clips) == 2 * 6
    for task in TASKS:
        assert set(figures[task]["both"]["unsafe"]) == {"explosion", "spill"}
        assert figures[task]["benign"]["attributes"]["shape"]["n"] == 1
