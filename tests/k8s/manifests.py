"""The manifests of an overlay as `kubectl kustomize` renders them, and the parts of them that checks look at."""

import copy
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = ("embedded-cpu", "single-gpu", "fleet", "ha")
RAY_KINDS = ("RayService", "RayCronJob")

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod's template, and where it stands: `head`, `recalibration`, or the name of a group of workers."""

    name: str
    template: Object
    start: dict[str, str]

    @property
    def labels(self) -> dict[str, str]:
        return self.template["metadata"]["labels"]

    @property
    def spec(self) -> Object:
        return self.template["spec"]

    @property
    def ray(self) -> Object:
        """Ray's container, which is the first."""
        return self.spec["containers"][0]

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


class Manifests:
    """The objects of one overlay."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def all(self, *kinds: str) -> list[Object]:
        return [given for given in self.objects if given["kind"] in kinds]

    def one(self, kind: str, name: str | None = None) -> Object:
        (found,) = (given for given in self.all(kind) if name in (None, given["metadata"]["name"]))
        return found

    @property
    def service(self) -> Object:
        return self.one("RayService")["spec"]

    @property
    def cluster(self) -> Object:
        return self.service["rayClusterConfig"]

    @property
    def job(self) -> Object:
        return self.one("RayCronJob")["spec"]["jobTemplate"]

    @property
    def serve(self) -> Object:
        """The document of serveConfigV2."""
        return yaml.safe_load(self.service["serveConfigV2"])

    @serve.setter
    def serve(self, document: Object) -> None:
        self.service["serveConfigV2"] = yaml.safe_dump(document)

    @property
    def serving(self) -> list[Pod]:
        """The pods of the cluster that serves."""
        head, groups = self.cluster["headGroupSpec"], self.cluster["workerGroupSpecs"]
        return [
            Pod("head", head["template"], head["rayStartParams"]),
            *(Pod(group["groupName"], group["template"], group["rayStartParams"]) for group in groups),
        ]

    @property
    def pods(self) -> list[Pod]:
        head = self.job["rayClusterSpec"]["headGroupSpec"]
        return [*self.serving, Pod("recalibration", head["template"], head["rayStartParams"])]


@cache
def _rendered(folder: Path) -> tuple[Object, ...]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def render(overlay: str) -> Manifests:
    """What the overlay gives; rendered once in a test run."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH: the manifests cannot be rendered")
    return Manifests(copy.deepcopy(list(_rendered(K8S / "overlays" / overlay))))


def walk(given: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document with its path."""
    yield path, given
    items = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    for key, value in items:
        yield from walk(value, f"{path}.{key}" if path else str(key))
