"""The registry as its callers see it: found or made by name, with the methods of a DirectionStore."""

from collections.abc import Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from reins_serve.errors import RegistryUnavailable, ReinsError
from reins_serve.rollout.address import NAMESPACE, absolute
from reins_serve.rollout.audit import Event
from reins_serve.rollout.pointer import Pointer
from reins_serve.rollout.registry import HOLD_S, DirectionRegistry
from reins_serve.rollout.signatures import Trust
from reins_serve.rollout.snapshot import Report, Snapshot
from reins_serve.rollout.storage import DirectionStore
from reins_serve.rollout.versions import Version
from reins_serve.steering.direction import Direction

NAME = "reins-directions"
ANSWER_S = 60.0  # how long an answer may take, a restart of the registry included
HEAD = {"node:__internal_head__": 0.001}  # the head is not removed for being idle
MAX_CONCURRENCY = 4096  # every replica has a poll waiting


def connect(url: str, namespace: str = NAMESPACE, trusted_keys: Sequence[str] = ()) -> "Registry":
    """The cluster's registry, made if there is none.

    Args:
        trusted_keys: Public keys of which one must have signed what this caller publishes and promotes, and while it polls
            what is served to anybody. A registry whose own environment names keys holds to those.

    Raises:
        ReinsError: the URL cannot be a store, or the cluster's registry keeps another one.
        RegistryUnavailable: it does not answer.
    """
    url = absolute(url)
    registry = find(namespace, trusted_keys)
    if registry is None:
        DirectionStore(url)  # a mistake in the URL shows here, and leaves no actor behind
        made: Any = ray.remote(DirectionRegistry).options(
            name=NAME, namespace=namespace, lifetime="detached", get_if_exists=True, num_cpus=0, resources=HEAD,
            max_restarts=-1, max_task_retries=-1, max_concurrency=MAX_CONCURRENCY,
        )  # fmt: skip
        try:
            registry = Registry(made.remote(url), trusted_keys)
        except RayError as error:
            raise RegistryUnavailable(f"The registry of directions could not be made ({error}).") from error
    theirs = registry.url()  # get_if_exists says nothing about other arguments
    if theirs != url:
        raise ReinsError(
            f"The registry of this cluster keeps the store {theirs}, not {url}. Use that one, or another namespace."
        )
    return registry


def find(namespace: str = NAMESPACE, trusted_keys: Sequence[str] = ()) -> "Registry | None":
    """The cluster's registry, or None where there is none."""
    try:
        return Registry(ray.get_actor(NAME, namespace), trusted_keys)
    except ValueError:
        return None
    except RayError as error:
        raise RegistryUnavailable(f"The registry of directions could not be looked up ({error}).") from error


class Registry:
    """A handle to the registry. Arguments and errors are those of DirectionStore; besides, RegistryUnavailable."""

    def __init__(self, actor: ActorHandle, trusted_keys: Sequence[str] = ()) -> None:
        self._actor = actor
        self._trusted = sorted(Trust.of(trusted_keys).keys)

    def url(self) -> str:
        """Where the store is."""
        return cast(str, self._ask("url"))

    def wait(self, model: str, known: int, report: Report | None = None, hold_s: float = HOLD_S) -> Snapshot:
        """Long-poll: what serves, once that is not generation `known`. Not sent again after a crash: the caller decides."""
        asked: Any = self._actor.wait.options(max_task_retries=0)
        return cast(Snapshot, _answer(lambda: asked.remote(model, known, report, hold_s, self._trusted), hold_s + 10))

    def find(self, model: str) -> Pointer | None:
        """The pointer."""
        return cast("Pointer | None", self._ask("find", model))

    def publish(self, direction: bytes | Direction, **said: Any) -> Version:
        """Store a version."""
        data = direction.data if isinstance(direction, Direction) else direction
        return cast(Version, self._ask("publish", data, said, self._trusted))

    def promote(self, model: str, version: str, *, generation: int | None = None, **said: Any) -> Pointer:
        """Make a version live for all generations."""
        return self._move("promote", model, generation, said, version)

    def canary(
        self, model: str, version: str, fraction: float, *, generation: int | None = None, **said: Any
    ) -> Pointer:
        """Give a version a share of the generations."""
        return self._move("canary", model, generation, said, version, fraction)

    def withdraw(self, model: str, *, generation: int | None = None, **said: Any) -> Pointer:
        """End a canary."""
        return self._move("withdraw", model, generation, said)

    def rollback(self, model: str, *, generation: int | None = None, **said: Any) -> Pointer:
        """Go back to the version that was live before."""
        return self._move("rollback", model, generation, said)

    def history(self, model: str) -> list[Event]:
        """Everything that happened."""
        return cast("list[Event]", self._ask("history", model))

    def status(self, model: str) -> dict[str, Any]:
        """What serves, and which replica has it."""
        return cast("dict[str, Any]", self._ask("status", model))

    def _move(self, action: str, model: str, generation: int | None, said: dict[str, Any], *arguments: Any) -> Pointer:
        """A move names the generation that it was decided on, so that it may be sent twice."""
        if generation is None:
            pointer = self.find(model)
            generation = 0 if pointer is None else pointer.generation
        return cast(Pointer, self._ask(action, model, *arguments, generation, said, self._trusted))

    def _ask(self, method: str, *arguments: Any) -> Any:
        return _answer(lambda: getattr(self._actor, method).remote(*arguments), ANSWER_S)


def _answer(ask: Any, timeout: float) -> Any:
    """The answer to a call of the actor, with errors as they were raised there."""
    try:
        return ray.get(ask(), timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, ReinsError):
            raise error.cause from None
        raise RegistryUnavailable(f"The registry of directions failed ({type(error.cause).__name__}).") from error
    except (RayError, GetTimeoutError) as error:
        raise RegistryUnavailable(
            f"The registry of directions does not answer ({type(error).__name__}). What serves goes on; try again."
        ) from error
