"""The embedded model's video autoencoder: a small `AutoencoderKLWan` whose weights are first written as a PCA of 4 x 4
patches and whose decoder is then tuned, so that it needs a minute of training and not an hour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, patchify, unpatchify
from numpy.typing import NDArray
from torch import Tensor

LATENT_CHANNELS = 8
PATCH = 4
_ENCODER_SCALE, _DECODER_SCALE = 0.03, 0.1


def build_vae(
    channels: int = LATENT_CHANNELS, patch: int = PATCH, base: int = 24, decoder_base: int = 40
) -> AutoencoderKLWan:
    """An untrained autoencoder: `patch` x `patch` pixels a cell of `channels` latents, no compression in time.

    `base` and `decoder_base` are the inner channels of encoder and decoder, at least `2 * channels + 1` (see `write_pca`).
    """
    return AutoencoderKLWan(
        base_dim=base,
        decoder_base_dim=decoder_base,
        z_dim=channels,
        dim_mult=[1],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        patch_size=patch,
        scale_factor_temporal=1,
        scale_factor_spatial=patch,
    )


def to_tensor(clips: NDArray[np.uint8]) -> Tensor:
    """Clips `uint8 [N, T, H, W, 3]` to `float32 [N, 3, T, H, W]` in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_clips(video: Tensor) -> NDArray[np.uint8]:
    """`[N, 3, T, H, W]` in [-1, 1] to clips `uint8 [N, T, H, W, 3]`."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 4, 1).to(torch.uint8).numpy()


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Normalised latents `[N, z, T, H/p, W/p]` of a video `[N, 3, T, H, W]`.

    Calls the encoder on the whole clip: `vae.encode` walks in chunks of four frames and drops the rest.
    """
    mean = vae.quant_conv(vae.encoder(patchify(video, vae.config["patch_size"])))[:, : vae.config["z_dim"]]
    shift, scale = _moments(vae)
    return (mean - shift) / scale


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Video `[N, 3, T, H, W]` of normalised latents: `vae.decode` without its loop over frames, hence trainable."""
    shift, scale = _moments(vae)
    return unpatchify(vae.decoder(vae.post_quant_conv(latents * scale + shift)), vae.config["patch_size"])


def _moments(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    shape = (1, vae.config["z_dim"], 1, 1, 1)
    return torch.tensor(vae.config["latents_mean"]).view(shape), torch.tensor(vae.config["latents_std"]).view(shape)


@torch.no_grad()
def write_pca(vae: AutoencoderKLWan, video: Tensor) -> None:
    """Make `vae` a whitened PCA of the patches of `video`.

    Residual branches are zeroed and the other convolutions keep only their centre tap (the last in time, as they are
    causal). RMS norm and SiLU are made harmless: a constant channel dominates the norm, and channels come in pairs
    `(+x, -x)`, for `silu(x) - silu(-x) = x`.
    """
    z, patch = vae.config["z_dim"], vae.config["patch_size"]
    patches = patchify(video, patch).movedim(1, -1).reshape(-1, 3 * patch**2)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    order = values.argsort(descending=True)[:z]
    axes, deviation = vectors[:, order].T, values[order].sqrt()
    axes = axes * axes.sum(1, keepdim=True).sign()  # eigenvectors have no sign of their own

    for part in (vae.encoder, vae.decoder):
        for name, module in part.named_modules():
            if name.endswith(("conv2", "proj")):
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)
    inner = vae.encoder.conv_in.out_channels
    project = axes / deviation[:, None] * _ENCODER_SCALE
    _centre(
        vae.encoder.conv_in, _paired(project, inner), _paired((-project @ mean)[:, None], inner, constant=1.0)[:, 0]
    )
    read = torch.zeros(2 * z, inner)
    read[:z, :z] = torch.eye(z) / (_ENCODER_SCALE * inner**0.5)
    read[:z, z : 2 * z] = -read[:z, :z]
    _centre(vae.encoder.conv_out, read, torch.cat([torch.zeros(z), torch.full((z,), -10.0)]))
    _centre(vae.quant_conv, torch.eye(2 * z), torch.zeros(2 * z))
    _centre(vae.post_quant_conv, torch.eye(z), torch.zeros(z))
    inner = vae.decoder.conv_in.out_channels
    spread = _paired(torch.eye(z) * _DECODER_SCALE, inner)
    _centre(vae.decoder.conv_in, spread, _paired(torch.zeros(z, 1), inner, constant=1.0)[:, 0])
    write = torch.zeros(3 * patch**2, inner)
    write[:, :z] = (axes * deviation[:, None]).T / (_DECODER_SCALE * inner**0.5)
    write[:, z : 2 * z] = -write[:, :z]
    _centre(vae.decoder.conv_out, write, mean)


def _paired(rows: Tensor, channels: int, constant: float = 0.0) -> Tensor:
    """Rows `[z, n]` as `[channels, n]`: +rows, -rows, `constant` in the next row, zeros."""
    out = torch.zeros(channels, rows.shape[1])
    out[: len(rows)], out[len(rows) : 2 * len(rows)], out[2 * len(rows)] = rows, -rows, constant
    return out


def _centre(conv: torch.nn.Conv3d, matrix: Tensor, bias: Tensor) -> None:
    """Make `conv` the linear map `matrix` of each cell by itself."""
    conv.weight.zero_()
    height, width = conv.kernel_size[1], conv.kernel_size[2]
    conv.weight[:, :, -1, height // 2, width // 2] = matrix
    if conv.bias is not None:
        conv.bias.copy_(bias)


@torch.no_grad()
def set_moments(vae: AutoencoderKLWan, video: Tensor) -> None:
    """Store the latents' mean and deviation per channel over `video` in the config, where pipelines look for them."""
    z = vae.config["z_dim"]
    vae.register_to_config(latents_mean=[0.0] * z, latents_std=[1.0] * z)
    latents = encode(vae, video).movedim(1, 0).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())


def psnr(vae: AutoencoderKLWan, video: Tensor) -> float:
    """Peak signal-to-noise ratio of the reconstruction, in dB over all of `video`."""
    with torch.no_grad():
        error = (decode(vae, encode(vae, video)).clamp(-1, 1) - video).pow(2).mean()
    return float(10 * torch.log10(4 / error))


def tune_decoder(
    vae: AutoencoderKLWan, video: Tensor, steps: int, seed: int, report: Callable[[int, float], object]
) -> None:
    """Train the decoder alone (squared error, AdamW, one cosine), with a little noise on the latents because those of
    the denoiser are not exact either."""
    with torch.no_grad():
        latents = torch.cat([encode(vae, part) for part in video.split(64)])
    optimiser = torch.optim.AdamW(vae.decoder.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(video), (16,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator) * 0.1
        loss = (decode(vae, latents[rows] + noise) - video[rows]).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        report(step + 1, float(loss.detach()))
