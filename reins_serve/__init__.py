"""reins_serve: steers video diffusion models towards safe content while Ray Serve serves them (REINS, arXiv 2606.17257)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reins_serve.plugin import attach

__version__ = "0.1.0"
__all__ = ["__version__", "attach"]


def __getattr__(name: str) -> Any:
    """Import `attach` on first use, so that reading the version or a configuration does not load torch."""
    if name == "attach":
        from reins_serve.plugin import attach

        return attach
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
