"""A registry on a Ray cluster, asked by those who trust a key: it publishes, moves and serves nothing that is not signed."""

import uuid
from collections.abc import Iterator

import pytest
import ray

from reins_serve.errors import SignatureError
from reins_serve.rollout.client import NAME, Registry, connect, find
from reins_serve.rollout.registry import DirectionRegistry
from reins_serve.rollout.signatures import TRUSTED_ENV, short
from reins_serve.rollout.storage import DirectionStore
from tests.rollout.conftest import Key, made
from tests.serving.local import until

SAID = {"who": "ann", "why": "a test"}


@pytest.fixture(scope="module")
def namespace(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That of a registry of its own."""
    name = uuid.uuid4().hex
    registry = connect(str(tmp_path_factory.mktemp("registry") / "store"), name)
    yield name
    ray.kill(registry._actor)


@pytest.fixture
def strict(namespace: str, ours: Key) -> Registry:
    """The registry, for somebody who trusts our key."""
    found = find(namespace, [ours.public])
    assert found is not None
    return found


@pytest.fixture
def model(strict: Registry, ours: Key) -> str:
    """A model of its own, whose version 1 is signed and live."""
    name = f"m-{uuid.uuid4().hex}"
    first = made(0, model=name)
    strict.publish(first, signature=ours.sign(first), **SAID)
    strict.promote(name, "1", **SAID)
    return name


def test_what_is_not_signed_is_neither_published_nor_promoted(
    strict: Registry, model: str, ours: Key, theirs: Key
) -> None:
    second = made(1, model=model)
    with pytest.raises(SignatureError, match="is not signed"):
        strict.publish(second, **SAID)
    with pytest.raises(SignatureError, match="is signed by"):
        strict.publish(second, signature=theirs.sign(second), **SAID)
    DirectionStore(strict.url()).publish(second, **SAID)
    with pytest.raises(SignatureError, match="is not signed"):
        strict.promote(model, "2", **SAID)
    strict.publish(second, signature=ours.sign(second), **SAID)
    assert strict.promote(model, "2", **SAID).live == second.sha256


def test_while_replicas_poll_that_trust_a_key_nobody_is_served_what_it_has_not_signed(
    strict: Registry, namespace: str, model: str
) -> None:
    first = strict.wait(model, 0)
    lax = find(namespace)
    assert lax is not None
    second = made(1, model=model)
    with pytest.raises(SignatureError, match="is not signed"):
        lax.publish(second, **SAID)
    behind = DirectionStore(strict.url())
    behind.publish(second, **SAID)
    behind.promote(model, "2", **SAID)
    until(lambda: "Version 2" in (strict.status(model)["error"] or ""))
    for asking in (strict, lax):
        assert asking.wait(model, 0) == first
    behind.promote(model, "1", **SAID)
    until(lambda: strict.status(model)["error"] is None)


def test_a_model_whose_live_version_is_not_signed_is_not_served_to_who_trusts_a_key(
    strict: Registry, ours: Key, theirs: Key
) -> None:
    name = f"m-{uuid.uuid4().hex}"
    behind = DirectionStore(strict.url())
    behind.publish(made(0, model=name), signature=theirs.sign(made(0, model=name)), **SAID)
    behind.promote(name, "1", **SAID)
    with pytest.raises(SignatureError, match=f"is signed by {short(theirs.public)}"):
        strict.wait(name, 0)
    behind.publish(made(0, model=name), signature=ours.sign(made(0, model=name)), **SAID)
    live = strict.wait(name, 0).live
    assert live is not None and len(live.signatures) == 2


def test_a_signature_by_a_new_key_reaches_replicas_without_a_move(
    namespace: str, strict: Registry, model: str, ours: Key, theirs: Key
) -> None:
    known = strict.wait(model, 0)
    renewed = find(namespace, [ours.public, theirs.public])
    assert renewed is not None
    renewed.publish(made(0, model=model), signature=theirs.sign(made(0, model=model)), **SAID)

    def keys() -> set[str]:
        live = renewed.wait(model, 0).live
        return {signature.key for signature in live.signatures} if live is not None else set()

    until(lambda: keys() == {ours.public, theirs.public})
    assert renewed.wait(model, 0).generation == known.generation


def test_a_registry_whose_environment_names_keys_holds_to_those_whoever_asks(
    cluster: None, tmp_path_factory: pytest.TempPathFactory, ours: Key, theirs: Key
) -> None:
    name = uuid.uuid4().hex
    made_here = ray.remote(DirectionRegistry).options(
        name=NAME, namespace=name, num_cpus=0, runtime_env={"env_vars": {TRUSTED_ENV: ours.public}}
    )
    actor = made_here.remote(str(tmp_path_factory.mktemp("registry") / "store"))
    try:
        for keys in ([], [theirs.public]):
            with pytest.raises(SignatureError, match=f"the trusted key {short(ours.public)}"):
                Registry(actor, keys).publish(made(0), signature=theirs.sign(made(0)), **SAID)
        assert Registry(actor).publish(made(0), signature=ours.sign(made(0)), **SAID).number == 1
        assert Registry(actor).status("tiny")["trusted_keys"] == [short(ours.public)]
    finally:
        ray.kill(actor)
