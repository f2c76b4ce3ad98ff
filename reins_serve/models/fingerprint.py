"""The identity of a base model: a digest of its configuration and of a sample of its weights, cheap for billions of parameters."""

import hashlib
import json

import torch

from reins_serve.models.spec import Denoiser, Pipeline, denoisers_of

SAMPLES_PER_TENSOR = 8


def fingerprint(pipeline: Pipeline) -> str:
    """Digest of the denoisers' class, configuration and sampled weights, as 32 hexadecimal digits.

    Eight evenly spaced values of every parameter are rounded to bfloat16 before hashing, so one checkpoint keeps its
    fingerprint when it is loaded in float32, in bfloat16, or stored in half precision and loaded in either. Two models of
    one shape with other weights differ, as does a fine-tune that touched the sampled values of any tensor. Of a pipeline
    with two experts both count.
    """
    digest = hashlib.sha256()
    for denoiser in denoisers_of(pipeline).values():
        _add(digest, denoiser)
    return digest.hexdigest()[:32]


def _add(digest: "hashlib._Hash", denoiser: Denoiser) -> None:
    config = {k: v for k, v in dict(denoiser.config).items() if not k.startswith("_")}
    digest.update(type(denoiser).__name__.encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    samples = []
    for name, tensor in sorted(denoiser.named_parameters()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = _plain(tensor.detach()).reshape(-1)
        index = torch.linspace(0, flat.numel() - 1, SAMPLES_PER_TENSOR, device=flat.device, dtype=torch.float64).long()
        samples.append(flat[index].to(torch.bfloat16))
    if samples:
        digest.update(torch.stack(samples).cpu().view(torch.int16).numpy().tobytes())


def _plain(weight: torch.Tensor) -> torch.Tensor:
    """A weight as a plain tensor: quantisers keep theirs in classes whose values cannot be picked out."""
    if type(weight) in (torch.Tensor, torch.nn.Parameter):
        return weight
    return weight.as_tensor() if hasattr(weight, "as_tensor") else weight.dequantize()  # GGUF: its bytes; torchao
