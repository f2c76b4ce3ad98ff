"""`build(config)`: the Serve application, used by YAML (`import_path: reins_serve.serving.app:build`) and by Python alike."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle

from reins_serve.serving.config import ApplicationConfig, ModelConfig, resolved
from reins_serve.serving.fleet import Census, ServeReplicas
from reins_serve.serving.gateway import HAND_BACK_S, Gateway
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.routes import create_app
from reins_serve.serving.scaling import BacklogPolicy
from reins_serve.serving.served import serve_model

SPARE_REQUESTS = 8  # room beside the clips for the gateways' questions
SPARE_S = 60.0  # for what else a replica or a gateway does before it goes
MAX_HTTP_REQUESTS = 1000


@serve.ingress()
class GatewayDeployment:
    """A gateway as a Serve deployment."""

    def __init__(self, config: ApplicationConfig, handles: Mapping[str, DeploymentHandle]) -> None:
        census = Census(serve.get_replica_context().app_name)
        self._gateway = Gateway(config, {name: ServeReplicas(handle, census) for name, handle in handles.items()})

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._gateway)

    def check_health(self) -> None:
        """Serve replaces a gateway whose health check raises."""
        self._gateway.check_alive()


def build(config: ApplicationConfig | dict[str, Any]) -> Application:
    """The application of a configuration: its gateways, and one deployment per model.

    `serve run FILE` and `serve deploy FILE` call it with the file's `args`; in Python: `serve.run(build(config))`.

    Raises:
        pydantic.ValidationError: the configuration has an unknown word, or a value out of its range.
        ReinsError: a model, a direction file or a policy in it does not exist or does not fit.
    """
    checked = resolved(ApplicationConfig.model_validate(config))
    for model in checked.models:
        serve_model(model)  # mistakes show here, before anything starts
    handles = {model.name: _deployment(model, checked.database_url) for model in checked.models}
    deployment = serve.deployment(
        name="gateway",
        num_replicas=checked.num_gateways,
        max_ongoing_requests=MAX_HTTP_REQUESTS,
        max_surge_percent=100,  # on a redeployment the new gateways answer before the old ones go, which may take long
        graceful_shutdown_timeout_s=checked.drain_timeout_s + HAND_BACK_S + SPARE_S,
        ray_actor_options={"num_cpus": 0},
    )(GatewayDeployment)
    return deployment.bind(checked, handles)


def _deployment(model: ModelConfig, database: str) -> Application:
    scaling = model.autoscaling
    replicas: dict[str, Any] = {"num_replicas": model.num_replicas}
    if scaling is not None:
        target = scaling.target_per_replica or model.max_batch_size
        policy = AutoscalingPolicy(
            policy_function=BacklogPolicy, policy_kwargs={"url": database, "model": model.name, "target": target}
        )
        given = scaling.model_dump(exclude={"target_per_replica"})
        replicas = {"autoscaling_config": AutoscalingConfig(policy=policy, **given)}
    deployment = serve.deployment(
        name=f"model-{model.name}",
        max_ongoing_requests=model.in_flight_per_replica + SPARE_REQUESTS,
        # A replica that is to go away finishes what it has.
        graceful_shutdown_timeout_s=model.generation_timeout_s + SPARE_S,
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
        **replicas,
    )(VideoReplica)
    return deployment.bind(model)
