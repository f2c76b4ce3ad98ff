"""The face of the plugin: `attach(pipeline, ...)` gives a loaded diffusers pipeline steering, with proof, in anyone's deployment.

    steering = reins_serve.attach(pipeline, model="embedded", directions="directions/embedded/setpoint.safetensors")
    with steering.generation() as g:
        clip = pipeline(prompt, **g.arguments)
    print(g.record)  # which direction, how many steps, how much displacement, proved

Our own replica uses this module and nothing below it.
"""

from collections.abc import Mapping, Sequence

from reins_serve.models import catalog
from reins_serve.models.spec import Pipeline, path_of
from reins_serve.rollout.given import Directions, load_directions, store_of
from reins_serve.rollout.signatures import Trust
from reins_serve.rollout.watcher import Watcher
from reins_serve.steering.blocks import remove_hooks
from reins_serve.steering.direction import Direction
from reins_serve.steering.generation import Generation
from reins_serve.steering.hook import HOOK_NAME
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.plan import GenerationRecord
from reins_serve.steering.policy import LIVE, SteeringChoice, SteeringPolicy, SteeringRow, resolve
from reins_serve.steering.proof import Proof, bare_latents, prove

__all__ = [
    "Direction",
    "Generation",
    "GenerationRecord",
    "Proof",
    "SteeringChoice",
    "SteeringMiddleware",
    "SteeringPolicy",
    "SteeringRow",
    "attach",
    "load_directions",
    "resolve",
]


def attach(
    pipeline: Pipeline,
    *,
    model: str,
    directions: Directions,
    policy: SteeringPolicy | None = None,
    trusted_keys: Sequence[str] = (),
) -> SteeringMiddleware:
    """Attach steering to a freshly loaded pipeline and prove it on a short clip of noise.

    Call it after loading and before caches, `compile` and offload. From then on the pipeline generates only inside
    `steering.generation()`. When anything fails the hooks are removed and the pipeline is as it was.

    Args:
        model: The checkpoint's name in the catalogue.
        directions: A direction file, or a mapping of names to files or loaded directions in which `live` is the default one.
            `reins://STORE` in the place of the live file follows a store from then on: what is promoted, rolled back or given
            a canary there is taken up between two generations (`rollout/watcher.py`; `steering.watcher` tells how it goes).
        policy: What a generation may ask for; by default the serving strength up to the file's `max_strength`.
        trusted_keys: Public keys (`ed25519:HEX`, or paths of PEM files) of which one must have signed every direction that comes
            from a file or a store, now and later; by default those in the environment variable REINS_TRUSTED_KEYS.

    Raises:
        DirectionError: a file is invalid, or was fitted for another model.
        SignatureError: a file is not signed by a trusted key.
        PolicyError, SteeringUnavailable: the policy does not suit the directions, or a store has no valid live one.
        SteeringNotApplied: the start-up proof failed.
        ReinsError: the model is unknown, or has a part that cannot be steered.
    """
    entry = catalog.get(model)
    policy = policy or SteeringPolicy()
    trust = Trust.of(trusted_keys)
    address = store_of(directions)
    if address is None:
        watcher, named = None, load_directions(directions, trust)
    else:
        others = {n: d for n, d in directions.items() if n != LIVE} if isinstance(directions, Mapping) else {}
        fixed = load_directions(others, trust)
        watcher = Watcher(address, model, fixed, trust=trust)
        first, _ = watcher.first(policy.required)
        named = {**fixed, **{name: direction for name, direction in first.items() if name == LIVE}}
    path_of(pipeline)  # refuses what cannot be steered, before anything is run
    bare = bare_latents(pipeline, entry)
    try:
        middleware = SteeringMiddleware(pipeline, model, named, policy)
        if watcher is not None:
            watcher.begin(middleware, first)
        middleware.max_batch = entry.max_batch
        middleware.proof = prove(middleware, entry, bare, middleware.arm)
        middleware.arm()  # without a direction there is nothing to prove, and a later one is told that this is over
    except BaseException:
        remove_hooks(pipeline, HOOK_NAME)
        raise
    if watcher is not None:
        middleware.watcher = watcher
        watcher.follow(middleware)
    return middleware
