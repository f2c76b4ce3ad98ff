"""The autoencoder's hand-written weights and the equality of its quick paths with the library's own."""

import numpy as np
import pytest
import torch

from reins_serve.embedded.train import draw_clips
from reins_serve.embedded.vae import build_vae, decode, encode, psnr, set_moments, to_clips, to_tensor, write_pca


@pytest.fixture(scope="module")
def pca():
    torch.manual_seed(0)
    video = to_tensor(draw_clips(48, (1,))[0])
    vae = build_vae()
    write_pca(vae, video)
    set_moments(vae, video)
    return vae, video


def test_written_as_a_pca_the_autoencoder_reconstructs_without_training(pca):
    vae, video = pca
    assert psnr(vae, video) > 22
    assert psnr(build_vae(), video) < 15


def test_latents_are_whitened(pca):
    vae, video = pca
    with torch.no_grad():
        latents = encode(vae, video).movedim(1, 0).flatten(1)
    assert torch.allclose(latents.mean(1), torch.zeros(8), atol=1e-3)
    assert torch.allclose(torch.cov(latents), torch.eye(8), atol=0.05)


def test_decoding_a_clip_at_once_equals_the_librarys_frame_by_frame(pca):
    vae, video = pca
    with torch.no_grad():
        latents = encode(vae, video[:2])
        mean = torch.tensor(vae.config.latents_mean).view(1, 8, 1, 1, 1)
        deviation = torch.tensor(vae.config.latents_std).view(1, 8, 1, 1, 1)
        frame_by_frame = vae.decode(latents * deviation + mean).sample
        at_once = decode(vae, latents).clamp(-1, 1)
    torch.testing.assert_close(at_once, frame_by_frame, atol=1e-4, rtol=0)


def test_clips_survive_the_way_to_tensors_and_back():
    clips = draw_clips(2, (3,))[0]
    np.testing.assert_array_equal(to_clips(to_tensor(clips)), clips)
