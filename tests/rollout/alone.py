"""A process that has nothing but storage for its directions, whether or not Ray runs for other tests."""

import pytest

from reins_serve.errors import RegistryUnavailable
from reins_serve.rollout.source import Source
from reins_serve.rollout.watcher import Watcher


def without_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find no registry, and make none: it would keep the store of one test for the next."""

    def gone(self: Source) -> None:
        raise RegistryUnavailable("not here")

    monkeypatch.setattr(Source, "_connect", gone)


def without_following(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take up nothing but what a test hands over itself."""
    monkeypatch.setattr(Watcher, "follow", lambda self, target: None)
