"""The replicas of one model, and how many of them run now, as Serve has them."""

import asyncio
import logging
import threading
import time
from typing import Protocol, cast

from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from reins_serve.serving.jobs import Job
from reins_serve.serving.leases import Stream

ASK_PERIOD_S = 1.0
PROOF_TIMEOUT_S = 3.0

logger = logging.getLogger(__name__)


class Replicas(Protocol):
    """The replicas of one model."""

    @property
    def running(self) -> int:
        """How many take jobs now; those that load, or finish what they have before they go, do not count."""

    def generate(self, job: Job) -> Stream:
        """Hand a job to one of them."""

    async def proved(self) -> bool:
        """Whether at least one of them has passed its start-up proof."""


class Census:
    """How many replicas of each deployment of an application run, asked about once a second in a thread of its own.

    Serve's router knows it at once, but keeps it to itself. `serve.status()` builds the whole schema anew, default by default,
    and held the interpreter for a third of every second; the details that it builds it from cost a few milliseconds.
    """

    def __init__(self, application: str) -> None:
        self._application = application
        self._running: dict[str, int] = {}
        threading.Thread(target=self._loop, name="reins-census", daemon=True).start()

    def running(self, deployment: str) -> int:
        """Replicas that run; while Serve does not answer, as many as it last said."""
        return self._running.get(deployment, 0)

    def _loop(self) -> None:
        while True:
            try:
                client = _get_global_client()
                found = {} if client is None else client.get_serve_details()["applications"].get(self._application, {})
                self._running = {
                    name: sum(replica["state"] == ReplicaState.RUNNING for replica in deployment["replicas"])
                    for name, deployment in found.get("deployments", {}).items()
                }
            except Exception as error:
                logger.warning("Serve does not say how many replicas run: %s", error)
            time.sleep(ASK_PERIOD_S)


class ServeReplicas:
    """The replicas of one model behind a Serve handle."""

    def __init__(self, handle: DeploymentHandle, census: Census) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._census = census

    @property
    def running(self) -> int:
        return self._census.running(self._handle.deployment_name)

    def generate(self, job: Job) -> Stream:
        """Hand a job to a replica that Serve chooses."""
        return cast(Stream, self._streaming.generate.remote(job.clip, job.row))

    async def proved(self) -> bool:
        """Whether a replica answers that its proof passed. Nobody is asked while there is none: Serve would start one for it."""
        if not self.running:
            return False
        response = self._handle.proved.remote()
        try:
            async with asyncio.timeout(PROOF_TIMEOUT_S):
                return bool(await response)
        except Exception:
            response.cancel()
            return False
