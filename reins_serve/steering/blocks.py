"""Hooks on the blocks of a denoiser, put on and taken off by name: those that steer, those that read, those that prove."""

from collections.abc import Mapping

from diffusers.hooks import HookRegistry, ModelHook

from reins_serve.models.spec import Denoiser, blocks_of


def add_hooks(denoiser: Denoiser, hooks: Mapping[int, ModelHook], name: str) -> None:
    """Register a hook at each numbered block (0 is the first). Later ones lie outside of earlier ones of other names."""
    path = blocks_of(denoiser)
    for block, hook in hooks.items():
        HookRegistry.check_if_exists_or_initialize(path[block]).register_hook(hook, name)
    _announce(denoiser)


def remove_hooks(denoiser: Denoiser, name: str) -> None:
    """Remove the hooks of a name from every block that has one."""
    for block in blocks_of(denoiser):
        HookRegistry.check_if_exists_or_initialize(block).remove_hook(name, recurse=False)
    _announce(denoiser)


def _announce(denoiser: Denoiser) -> None:
    """Let the denoiser's `cache_context` look for hooks again: diffusers keeps a list of those it found before."""
    HookRegistry.check_if_exists_or_initialize(denoiser).invalidate_child_registries_cache()
