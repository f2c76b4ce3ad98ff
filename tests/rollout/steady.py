"""A replica on a worker node that generates without a pause and writes down what came of it, while its cluster's head dies."""

import json
import sys
import time
from pathlib import Path

import ray

from reins_serve.plugin import attach
from reins_serve.rollout import client
from tests import tiny
from tests.rollout.load import clip

NAME, NAMESPACE = "steady", "tests"
WORKER = {"worker": 0.001}


@ray.remote(num_cpus=0, resources=WORKER, max_restarts=0)
class Steady:
    """Each line that it writes is a generation: what steered it, whether that is proved, and any error."""

    def __init__(self, store: str) -> None:
        self._steering = attach(tiny.pipeline(), model="tiny", directions=f"reins://{store}")

    def run(self, log: str) -> None:
        with Path(log).open("a", buffering=1) as lines:
            for number in range(1 << 30):
                try:
                    made = clip(self._steering, str(number))
                    said = {"sha256": made.sha256, "whole": made.whole and made.proved, "error": None}
                except Exception as error:
                    said = {"sha256": None, "whole": False, "error": repr(error)}
                lines.write(json.dumps(said) + "\n")
                time.sleep(0.05)


def begin(address: str, store: str, log: str) -> None:
    """Start the registry and the replica; both outlive this process."""
    ray.init(address, namespace=NAMESPACE, log_to_driver=False)
    client.connect(store)
    replica = Steady.options(name=NAME, lifetime="detached").remote(store)  # type: ignore[attr-defined]
    replica.run.remote(log)
    while not Path(log).exists():
        time.sleep(0.1)


def promote(address: str, store: str, version: str) -> None:
    """What an operator does, through the registry that is there: nobody makes a new one."""
    ray.init(address, namespace=NAMESPACE, log_to_driver=False)
    registry = client.find()
    assert registry is not None, "the registry did not come back"
    assert registry.url() == store
    print(registry.promote("tiny", version, who="ann", why="after the head's death").model_dump_json())


if __name__ == "__main__":
    {"begin": begin, "promote": promote}[sys.argv[1]](*sys.argv[2:])
