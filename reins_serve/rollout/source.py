"""Where a process learns what is live: from the cluster's registry, or, while there is none, from storage itself."""

from typing import Any

from reins_serve.errors import RegistryUnavailable
from reins_serve.rollout.address import StoreAddress
from reins_serve.rollout.signatures import Trust
from reins_serve.rollout.snapshot import Report, Snapshot, read_snapshot
from reins_serve.rollout.storage import DirectionStore


class Source:
    """One model's snapshots.

    Attributes:
        up: Whether the registry answered the last time.
    """

    def __init__(self, address: StoreAddress, model: str, trust: Trust = Trust()) -> None:
        self._address = address
        self._model = model
        self._trust = trust
        self._registry: Any = None
        self._store = self._open(address.store) if address.store else None
        self._stored: Snapshot | None = None
        self.up = False

    def first(self) -> Snapshot:
        """What serves now. Raises ReinsError where neither the registry nor storage can say."""
        try:
            return self.next(-1, None)
        except RegistryUnavailable:
            return self.stored()

    def next(self, known: int, report: Report | None) -> Snapshot:
        """Wait at the registry for what is not generation `known`. Raises RegistryUnavailable, StorageError."""
        try:
            self._registry = self._registry or self._connect()
            snapshot: Snapshot = self._registry.wait(self._model, known, report)
        except RegistryUnavailable:
            self._registry, self.up = None, False
            raise
        self.up = True
        return snapshot

    def stored(self) -> Snapshot:
        """What storage says; only its pointer is read while that has not moved.

        Raises StorageError; RegistryUnavailable where only the registry knows the store.
        """
        if self._store is None:
            raise RegistryUnavailable(
                "There is no registry of directions that could name the store. Name it: reins://STORE."
            )
        self._stored = read_snapshot(self._store, self._model, self._stored)
        return self._stored

    def _open(self, url: str) -> DirectionStore:
        return DirectionStore(url).trusting(self._trust)

    def _connect(self) -> Any:
        import ray

        if not ray.is_initialized():
            raise RegistryUnavailable("Ray does not run in this process.")
        from reins_serve.rollout import client

        address, keys = self._address, sorted(self._trust.keys)
        registry = (
            client.connect(address.store, address.namespace, keys)
            if address.store
            else client.find(address.namespace, keys)
        )
        if registry is None:
            raise RegistryUnavailable("This cluster has no registry of directions. Name its store: reins://STORE.")
        if self._store is None:
            self._store = self._open(registry.url())
        return registry
