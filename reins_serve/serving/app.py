"""`build(config)`: the Serve application, used by YAML (`import_path: reins_serve.serving.app:build`) and by Python alike."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from reins_serve.serving.config import ApplicationConfig, ModelConfig, resolved
from reins_serve.serving.dispatch import Stream
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.jobs import Job
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.routes import create_app
from reins_serve.serving.served import serve_model

PROOF_TIMEOUT_S = 3.0
SPARE_REQUESTS = 8  # room beside the clips for the gateway's questions


class ServeReplicas:
    """The replicas of one model behind a Serve handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)

    def generate(self, job: Job) -> Stream:
        """Hand a job to a replica that Serve chooses."""
        return cast(Stream, self._streaming.generate.remote(job.clip, job.row))

    async def proved(self) -> bool:
        """Whether a replica answers that its proof passed. While there is none, Serve lets the question wait."""
        response = self._handle.proved.remote()
        try:
            return bool(await asyncio.wait_for(response, PROOF_TIMEOUT_S))
        except Exception:
            response.cancel()
            return False


@serve.ingress()
class GatewayDeployment:
    """The gateway as a Serve deployment."""

    def __init__(self, config: ApplicationConfig, handles: Mapping[str, DeploymentHandle]) -> None:
        self._gateway = Gateway(config, {name: ServeReplicas(handle) for name, handle in handles.items()})

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._gateway)


def build(config: ApplicationConfig | dict[str, Any]) -> Application:
    """The application of a configuration: one gateway, and one deployment per model with a replica or more.

    `serve run FILE` and `serve deploy FILE` call it with the file's `args`; in Python: `serve.run(build(config))`.

    Raises:
        pydantic.ValidationError: the configuration has an unknown word, or a value out of its range.
        ReinsError: a model, a direction file or a policy in it does not exist or does not fit.
    """
    checked = resolved(ApplicationConfig.model_validate(config))
    for model in checked.models:
        serve_model(model)  # mistakes show here, before anything starts
    handles = {model.name: _deployment(model) for model in checked.models}
    # The store of jobs is in this one gateway's memory.
    deployment = serve.deployment(
        name="gateway", num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}
    )(GatewayDeployment)
    return deployment.bind(checked, handles)


def _deployment(model: ModelConfig) -> Application:
    deployment = serve.deployment(
        name=f"model-{model.name}",
        num_replicas=model.num_replicas,
        max_ongoing_requests=2 * model.max_batch_size + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=model.generation_timeout_s,  # a replica that is to go away finishes what it has
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
    )(VideoReplica)
    return deployment.bind(model)
