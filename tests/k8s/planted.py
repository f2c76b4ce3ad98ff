"""Faults to plant in the manifests, each with the check that must find it and a part of what the check must say."""

from collections.abc import Callable
from typing import Any

from tests.k8s import closed, consistency, schemas
from tests.k8s.manifests import Manifests

Plant = Callable[[Manifests], Any]


def head(given: Manifests) -> dict[str, Any]:
    return given.cluster["headGroupSpec"]["template"]["spec"]


def worker(given: Manifests) -> dict[str, Any]:
    return given.cluster["workerGroupSpecs"][0]["template"]["spec"]


def limits(given: Manifests) -> dict[str, Any]:
    return worker(given)["containers"][0]["resources"]["limits"]


def redis(given: Manifests) -> dict[str, Any]:
    return given.cluster["gcsFaultToleranceOptions"]


def drain(given: Manifests, seconds: str) -> None:
    (one,) = (one for one in worker(given)["containers"][0]["env"] if one["name"] == consistency.DRAIN)
    one["value"] = seconds


def serve(change: Plant) -> Plant:
    """A change of the document of serveConfigV2."""

    def plant(given: Manifests) -> None:
        document = given.serve
        change(document)
        given.serve = document

    return plant


def args(document: dict[str, Any]) -> dict[str, Any]:
    return document["applications"][0]["args"]


def policy(given: Manifests) -> dict[str, Any]:
    return given.one("NetworkPolicy", "reins-ray")["spec"]


# check, overlay, what is planted, what the check must say
PLANTED: dict[str, tuple[Callable[[Manifests], list[str]], str, Plant, str]] = {
    "a key of KubeRay's misspelt": (
        schemas.kuberay, "fleet", lambda m: m.cluster.update(enableInTreeAutoscalin=True), "enableInTreeAutoscalin"),
    "a string for a number": (
        schemas.kuberay, "ha", lambda m: m.service.update(rayClusterDeletionDelaySeconds="1860"), "not of type 'integer'"),
    "a number for a string": (
        schemas.kuberay, "single-gpu", lambda m: m.cluster["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "not of type 'string'"),
    "a field of a pod misspelt": (
        schemas.kuberay, "embedded-cpu", lambda m: worker(m).update(terminationGracePeriod=5), "terminationGracePeriod"),
    "a key of the schedule misspelt": (
        schemas.kuberay, "embedded-cpu", lambda m: m.one("RayCronJob")["spec"].update(cron="* * * * *"), "cron"),
    "a field of a policy misspelt": (
        schemas.kubernetes, "ha", lambda m: policy(m).update(policyType=["Ingress"]), "policyType"),
    "a quantity that is none": (
        schemas.kubernetes, "fleet", lambda m: limits(m).update(memory=["48Gi"]), "48Gi"),
    "a monitor without endpoints": (
        schemas.monitoring_and_gateway, "fleet", lambda m: m.one("ServiceMonitor")["spec"].pop("endpoints"), "needs the field"),
    "a field of a monitor misspelt": (
        schemas.monitoring_and_gateway, "ha",
        lambda m: m.one("PodMonitor")["spec"]["podMetricsEndpoints"][0].update(intervall="1s"), "intervall"),
    "a rule without an expression": (
        schemas.monitoring_and_gateway, "ha",
        lambda m: m.one("PrometheusRule")["spec"]["groups"][0]["rules"][0].pop("expr"), "needs the field expr"),
    "a route to nowhere": (
        schemas.monitoring_and_gateway, "ha", lambda m: m.one("HTTPRoute")["spec"]["rules"][0].pop("backendRefs"), "backendRefs"),
    "an unknown word of Serve's": (
        schemas.serve_config, "fleet", serve(lambda d: d["http_options"].update(prot=8000)), "no word prot"),
    "an unknown word of an application": (
        schemas.serve_config, "fleet", serve(lambda d: d["applications"][0].update(route_prefx="/")), "route_prefx"),
    "an unknown word of a deployment": (
        schemas.serve_config, "fleet",
        serve(lambda d: d["applications"][0]["deployments"][0]["ray_actor_options"].update(num_cpu=1)), "num_cpu"),
    "an unknown word of ours": (
        schemas.serve_config, "single-gpu", serve(lambda d: args(d).update(admin_key="a key")), "admin_key"),
    "a number that is none": (
        schemas.serve_config, "ha", serve(lambda d: args(d)["models"][0].update(num_gpus="two")), "num_gpus"),
    "a deployment that is not there": (
        schemas.serve_config, "fleet",
        serve(lambda d: d["applications"][0]["deployments"][1].update(name="model-ltx")), "no deployment model-ltx"),
    "a deployment without its GPU": (
        schemas.serve_config, "fleet",
        serve(lambda d: d["applications"][0]["deployments"][1].update(ray_actor_options={"num_cpus": 4})), "others under models"),
    "an old cluster that is deleted early": (
        consistency.delays, "ha", lambda m: m.service.update(rayClusterDeletionDelaySeconds=60), "deleted before"),
    "a pod that is killed while it drains": (
        consistency.delays, "fleet", lambda m: head(m).update(terminationGracePeriodSeconds=30), "head is killed before"),
    "a node that drains for too short a time": (
        consistency.delays, "embedded-cpu", lambda m: drain(m, "600"), "workers drains for 600.0 s"),
    "Ray's own drain, which is 30 s": (
        consistency.delays, "single-gpu", lambda m: worker(m)["containers"][0].update(env=[]), "drains for 30.0 s"),
    "a generation that takes longer": (
        consistency.delays, "fleet", serve(lambda d: args(d)["models"][0].update(generation_timeout_s=7200)), "7200"),
    "a replica that is cut off": (
        consistency.delays, "embedded-cpu",
        serve(lambda d: d["applications"][0]["deployments"].append(
            {"name": "model-embedded", "graceful_shutdown_timeout_s": 20})), "model-embedded gets 20"),
    "another image": (
        consistency.references, "fleet", lambda m: head(m)["containers"][0].update(image="reins-serve:0.0.9"), "different images"),
    "a value that was left empty": (
        consistency.references, "ha", lambda m: redis(m).update(redisAddress=""), "redisAddress is empty"),
    "a claim that is not there": (
        consistency.references, "single-gpu",
        lambda m: m.one("PersistentVolumeClaim", "reins-models")["metadata"].update(name="models"),
        "PersistentVolumeClaim reins-models"),
    "an account that is not there": (
        consistency.references, "fleet", lambda m: head(m).update(serviceAccountName="reins-heads"), "ServiceAccount reins-heads"),
    "a mount without a volume": (
        consistency.references, "embedded-cpu", lambda m: worker(m)["volumes"].pop(), "no volume data"),
    "a Secret of another name": (
        consistency.references, "ha", lambda m: redis(m)["redisPassword"]["valueFrom"].update(
            secretKeyRef={"name": "redis", "key": "password"}), "no Secret redis"),
    "a Secret among the manifests": (
        consistency.references, "ha", lambda m: m.objects.append(
            {"kind": "Secret", "metadata": {"name": "reins-redis", "namespace": "reins"}}), "a Secret stands"),
    "a cluster without its token": (
        consistency.references, "ha", lambda m: m.cluster.pop("authOptions"), "the same token"),
    "a label of another spelling": (
        consistency.references, "ha", lambda m: m.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(
            {"app.kubernetes.io/component": "workers"}), "selects no pod"),
    "a budget that Kubernetes cannot compute": (
        consistency.references, "ha", lambda m: m.one("PodDisruptionBudget")["spec"].update(minAvailable="50%"), "no scale"),
    "an object in another namespace": (
        consistency.references, "ha", lambda m: m.one("PodMonitor")["metadata"].update(namespace="other"), "another namespace"),
    "another port of Serve's": (
        consistency.ports, "embedded-cpu", serve(lambda d: d["http_options"].update(port=8001)), "Serve listens on 8001"),
    "a probe of another port": (
        consistency.ports, "ha",
        lambda m: worker(m)["containers"][0]["livenessProbe"]["httpGet"].update(port=8265), "nothing answers"),
    "another name of the service": (
        consistency.ports, "single-gpu", lambda m: m.one("RayService")["metadata"].update(name="videos"), "is not submitted"),
    "a route to another service": (
        consistency.ports, "ha",
        lambda m: m.one("HTTPRoute")["spec"]["rules"][0]["backendRefs"][0].update(name="reins-head-svc"), "does not serve"),
    "an ingress to another port": (
        consistency.ports, "single-gpu",
        lambda m: m.one("Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"].update(name="http"),
        "does not serve"),
    "a monitor of another service": (
        consistency.ports, "ha", lambda m: m.one("ServiceMonitor")["spec"]["selector"]["matchExpressions"][1].update(
            key="ray.io/server"), "selects no service"),
    "a monitor of one name where each cluster has one": (
        consistency.ports, "fleet", lambda m: m.one("ServiceMonitor")["spec"].update(
            selector={"matchLabels": {"ray.io/serve": "reins-serve"}}), "selects no service"),
    "a monitor of the head too": (
        consistency.ports, "ha",
        lambda m: m.one("ServiceMonitor")["spec"]["selector"]["matchExpressions"].pop(), "is no gateway"),
    "a route beside KubeRay's own": (
        consistency.ports, "ha", lambda m: m.service["upgradeStrategy"].update(clusterUpgradeOptions={}), "does not serve"),
    "an API without keys": (
        consistency.keys, "fleet", serve(lambda d: args(d).pop("api_keys")), "open to everybody"),
    "a pool that no group has": (
        consistency.scaling, "fleet", lambda m: m.cluster["workerGroupSpecs"][2].update(labels={"reins-serve/pool": "b200"}),
        "no group of workers has room for cogvideox-5b"),
    "workers without a GPU": (
        consistency.scaling, "single-gpu",
        lambda m: worker(m)["containers"][0].update(resources={"limits": {"cpu": "8"}}), "no group of workers has room"),
    "fewer nodes than replicas": (
        consistency.scaling, "ha", lambda m: m.cluster["workerGroupSpecs"][0].update(maxReplicas=4), "may have 6 replicas"),
    "a model that scales alone": (
        consistency.scaling, "ha", lambda m: m.cluster.pop("enableInTreeAutoscaling"), "2 nodes"),
    "directions published elsewhere": (
        consistency.recalibration, "fleet", serve(lambda d: [model.update(store="s3://other") for model in args(d)["models"]]), "s3://other"),
    "a recalibration of what is not served": (
        consistency.recalibration, "ha", serve(lambda d: args(d)["models"][0].update(name="latte-1")), "and not served"),
    "a folder that does not travel": (
        consistency.recalibration, "embedded-cpu",
        lambda m: m.job.update(entrypoint=m.job["entrypoint"].replace("/etc/reins/", "/etc/")), "does not travel"),
    "a job that keeps nothing": (
        consistency.recalibration, "embedded-cpu",
        lambda m: m.job.update(entrypoint=m.job["entrypoint"].replace("--out /data", "--out /tmp")), "is on no volume"),
    "a dashboard open to the ingress": (
        closed.network, "ha", lambda m: policy(m)["ingress"][3]["ports"].append({"port": 8265}), "reaches head:8265"),
    "a rule for everybody": (
        closed.network, "embedded-cpu", lambda m: policy(m)["ingress"].append({"ports": [{"port": 6379}]}), "reaches head:6379"),
    "a rule for all ports": (
        closed.network, "fleet", lambda m: policy(m)["ingress"][4].pop("ports"), "reaches head:10001"),
    "no policy at all": (
        closed.network, "fleet", lambda m: policy(m)["podSelector"].update(
            matchExpressions=[{"key": "app", "operator": "In", "values": ["ray"]}]), "reaches l40s:6379"),
    "an operator that is shut out": (
        closed.network, "single-gpu", lambda m: policy(m)["ingress"][1].update(ports=[{"port": 80}]), "does not reach head:8265"),
    "a container that may be root": (
        closed.privileges, "ha", lambda m: worker(m)["securityContext"].pop("runAsNonRoot"), "may be root"),
    "a root folder that can be written": (
        closed.privileges, "embedded-cpu",
        lambda m: head(m)["initContainers"][0]["securityContext"].pop("readOnlyRootFilesystem"), "head/seed-directions"),
    "an autoscaler with capabilities": (
        closed.privileges, "fleet",
        lambda m: m.cluster["autoscalerOptions"]["securityContext"].pop("capabilities"), "head/autoscaler"),
    "a container without a limit": (
        closed.privileges, "ha", lambda m: limits(m).clear(), "has no limit"),
    "a role that reads Secrets": (
        closed.privileges, "ha", lambda m: m.one("Role")["rules"][3]["resources"].append("secrets"), "may do too much"),
    "a token that nobody needs": (
        closed.privileges, "single-gpu", lambda m: m.one("ServiceAccount").pop("automountServiceAccountToken"), "have a token"),
}  # fmt: skip
