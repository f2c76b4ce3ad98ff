"""Where a process learns what is live: from the cluster's registry, or, while there is none, from storage itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from reins_serve.errors import RegistryUnavailable, ReinsError
from reins_serve.rollout.signatures import Trust
from reins_serve.rollout.snapshot import Report, Snapshot, read_snapshot
from reins_serve.rollout.storage import DirectionStore

SCHEME = "reins://"
NAMESPACE = "reins"


def absolute(url: str) -> str:
    """A store's URL as every process understands it: a relative folder becomes an absolute one."""
    return url if "://" in url else str(Path(url).absolute())


@dataclass(frozen=True)
class StoreAddress:
    """`reins://STORE?namespace=NAME`: a store's folder or URL; empty for the one that the cluster's registry keeps."""

    store: str
    namespace: str = NAMESPACE

    @classmethod
    def parse(cls, text: str) -> "StoreAddress":
        """Read an address. Raises ReinsError."""
        store, _, query = text.removeprefix(SCHEME).partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        namespace = options.pop("namespace", NAMESPACE)
        if not text.startswith(SCHEME) or options or not namespace:
            raise ReinsError(
                f"{text!r} is no address of a store. Write reins://STORE or reins://STORE?namespace=NAME, where STORE is a "
                "folder, a URL such as s3://bucket/prefix, or nothing for the store of the cluster's registry."
            )
        return cls(store, namespace)


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
