"""What holds of every model folder in the repository."""

from pathlib import Path

from safetensors import safe_open


def check_small_and_half(folder: Path) -> None:
    """At most 10 MB, and half-precision safetensors only."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}  # noqa: SIM118
