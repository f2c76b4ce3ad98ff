"""What an operator does with directions through the API: see what is live where, publish, promote, roll back, give a canary."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

from reins_serve.rollout.address import absolute
from reins_serve.rollout.overview import overview
from reins_serve.rollout.pointer import Pointer
from reins_serve.rollout.storage import DirectionStore
from reins_serve.rollout.versions import Version
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.served import ServedModel
from reins_serve.steering.direction import Direction


class DirectionsAdmin:
    """The store of the served models, through the cluster's registry where Ray runs.

    Args:
        store: None where every direction is a file: then there is nothing to change.
    """

    def __init__(self, models: Mapping[str, ServedModel], store: str | None) -> None:
        self._models = models
        self._url = store

    async def overview(self) -> list[dict[str, Any]]:
        """Of every served model with a store: its versions, what serves, and which replica has it."""
        names = [name for name, served in self._models.items() if served.config.store is not None]
        return await asyncio.to_thread(lambda: [self._of(name) for name in names])

    async def publish(self, data: bytes, said: Mapping[str, Any]) -> Version:
        """Store a direction as a version; one of a served model must be signed as that model's configuration says."""
        if said.get("model") is not None:
            self._served(said["model"])

        def publish() -> Version:
            served = self._models.get(Direction.parse(data).model)
            store = self._open(() if served is None else served.config.trusted_keys)
            return cast(Version, store.publish(data, **said))

        return await asyncio.to_thread(publish)

    async def move(self, action: str, model: str, said: Mapping[str, Any], *arguments: Any) -> Pointer:
        """Move a model's pointer: `promote`, `canary`, `withdraw` or `rollback`."""
        keys = self._served(model).config.trusted_keys
        return await asyncio.to_thread(lambda: getattr(self._open(keys), action)(model, *arguments, **said))

    def _of(self, model: str) -> dict[str, Any]:
        keys = self._models[model].config.trusted_keys
        opened = self._open(keys)
        serving = opened.status(model) if not isinstance(opened, DirectionStore) else None
        assert self._url is not None
        return {"model": model, "serving": serving, "versions": overview(DirectionStore(self._url, keys), model)}

    def _served(self, model: str) -> ServedModel:
        served = self._models.get(model)
        if served is None:
            raise RequestError("This model is not served here.", code="model_not_found", param="model")
        if served.config.store is None:
            raise RequestError(
                "This model's direction is a file of the configuration; give the model a store to change it here.",
                code="direction_not_found",
                param="model",
            )
        return served

    def _open(self, trusted_keys: Sequence[str]) -> Any:
        import ray

        if self._url is None:
            raise RequestError("No served model has a store of directions.", code="direction_not_found")
        if not ray.is_initialized():
            return DirectionStore(self._url, trusted_keys)
        from reins_serve.rollout import client

        return client.connect(absolute(self._url), trusted_keys=trusted_keys)
