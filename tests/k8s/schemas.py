"""Do the objects have the fields that their kinds have? Each check returns what it finds wrong, as sentences."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from reins_serve.serving.config import ApplicationConfig
from tests.k8s.manifests import RAY_KINDS, Manifests, Object

KUBERNETES = "1.32"
CRDS = Path(os.environ.get("KUBERAY_CRDS") or Path(__file__).resolve().parents[3] / "shared" / "kuberay-crds")

# The Prometheus operator and the Gateway API publish no schema that an installable package carries. These lists were written by
# hand from their API references; a field that is new there would be refused here.
RELABELING = {"sourceLabels", "separator", "targetLabel", "regex", "modulus", "replacement", "action"}
ENDPOINT = {"port", "path", "scheme", "interval", "scrapeTimeout", "relabelings", "metricRelabelings", "honorLabels"}
MONITOR = {"selector", "namespaceSelector", "jobLabel", "sampleLimit"}
BY_HAND: dict[
    tuple[str, str], tuple[set[str], set[str]]
] = {  # kind -> fields of its spec, of which the second set is required
    ("monitoring.coreos.com/v1", "ServiceMonitor"): (MONITOR | {"endpoints"}, {"selector", "endpoints"}),
    ("monitoring.coreos.com/v1", "PodMonitor"): (
        MONITOR | {"podMetricsEndpoints"},
        {"selector", "podMetricsEndpoints"},
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): ({"groups"}, {"groups"}),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): ({"parentRefs", "hostnames", "rules"}, {"parentRefs", "rules"}),
}
RULE = {"record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
GROUP = {"name", "interval", "limit", "query_offset", "rules", "labels"}


@cache
def _crd(kind: str) -> Any:
    """The validator of a kind of KubeRay's, made strict: a field that the schema does not have is an error."""
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}: set KUBERAY_CRDS to the folder that holds them")
    document = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)  # a megabyte
    (version,) = (version for version in document["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


def kuberay(manifests: Manifests) -> list[str]:
    """KubeRay's kinds, against their own schemas. Its CEL rules and the operator's own validation are not run."""
    return [
        f"{given['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message}"
        for given in manifests.all(*RAY_KINDS)
        for error in _crd(given["kind"]).iter_errors(given)
    ]


def kubernetes(manifests: Manifests) -> list[str]:
    """Kubernetes' own kinds, and every pod's template, which KubeRay's schemas describe less exactly."""
    by_hand = {kind for _, kind in BY_HAND}
    own = [given for given in manifests.objects if given["kind"] not in by_hand | set(RAY_KINDS)]
    own += [{"apiVersion": "v1", "kind": "Pod", **pod.template} for pod in manifests.pods]
    faults = []
    for given in own:
        try:
            kubernetes_validate.validate(given, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults.append(f"{given['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message}")
    return faults


def monitoring_and_gateway(manifests: Manifests) -> list[str]:
    """The kinds of which there is no schema here, against fields listed by hand."""
    faults: list[str] = []
    for given in manifests.objects:
        kind = (given["apiVersion"], given["kind"])
        if kind in BY_HAND:
            known, required = BY_HAND[kind]
            faults += _fields(given["kind"], given["spec"], known, required)
            faults += _inside(given)
    return faults


def _inside(given: Object) -> list[str]:
    spec, faults = given["spec"], list[str]()
    for endpoint in [*spec.get("endpoints", []), *spec.get("podMetricsEndpoints", [])]:
        faults += _fields("endpoint", endpoint, ENDPOINT, {"port"})
        for relabeling in [*endpoint.get("relabelings", []), *endpoint.get("metricRelabelings", [])]:
            faults += _fields("relabeling", relabeling, RELABELING, set())
    for group in spec.get("groups", []):
        faults += _fields("group", group, GROUP, {"name", "rules"})
        for rule in group.get("rules", []):
            faults += _fields("rule", rule, RULE, {"expr"})
            if ("record" in rule) == ("alert" in rule):
                faults.append(f"a rule is either a record or an alert: {rule}")
    if given["kind"] == "HTTPRoute":
        for rule in spec["rules"]:
            faults += _fields("route", rule, {"matches", "filters", "backendRefs", "timeouts"}, {"backendRefs"})
    return faults


def _fields(what: str, given: Object, known: set[str], required: set[str]) -> list[str]:
    return [f"{what} has no field {name}" for name in given if name not in known] + [
        f"{what} needs the field {name}" for name in required if not given.get(name)
    ]


def serve_config(manifests: Manifests) -> list[str]:
    """serveConfigV2 against Serve's schema, which passes over some unknown words in silence, and against our own configuration."""
    document = manifests.serve
    try:
        schema = ServeDeploySchema.model_validate(document)
        applications = [ApplicationConfig.model_validate(given["args"]) for given in document["applications"]]
    except ValidationError as error:
        return [f"serveConfigV2 {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    faults = _unknown(document, schema)
    for given, application, config in zip(document["applications"], schema.applications, applications, strict=True):
        if application.import_path != "reins_serve.serving.app:build":
            faults.append(f"the application {application.name} is not ours")
        faults += _overrides(given, config)
    return faults


def _unknown(given: Any, schema: Any, path: str = "serveConfigV2") -> list[str]:
    """Words of a document that the models that it was parsed into do not have."""
    if isinstance(schema, (list, tuple)):
        return [f for item, model in zip(given, schema, strict=True) for f in _unknown(item, model, path)]
    if not isinstance(schema, BaseModel):
        return []
    fields = type(schema).model_fields
    faults = [f"{path} has no word {name}" for name in given if name not in fields]
    for name in given.keys() & fields.keys():
        faults += _unknown(given[name], getattr(schema, name), f"{path}.{name}")
    return faults


def _overrides(application: Object, config: ApplicationConfig) -> list[str]:
    """`deployments:` replaces the options of ours by name: a name must be there, and its CPUs and GPUs those of the model."""
    models, faults = {f"model-{model.name}": model for model in config.models}, []
    for deployment in application.get("deployments", []):
        options, name = deployment.get("ray_actor_options", {}), deployment["name"]
        if name in models:
            said = (options.get("num_cpus"), options.get("num_gpus"))
            if said != (models[name].num_cpus, models[name].num_gpus):
                faults.append(f"{name} has {said} CPUs and GPUs under deployments, and others under models")
        elif name != "gateway":
            faults.append(f"there is no deployment {name}")
    return faults
