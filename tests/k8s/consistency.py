"""Do the objects fit each other? Each check returns what it finds wrong, as sentences."""

from pathlib import Path
from unittest.mock import patch

import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve._private.build_app import build_app

from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.serving import app
from reins_serve.serving.config import ApplicationConfig
from tests.k8s.manifests import Manifests, Object, Pod, walk

DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
IMAGE_FILES = "/opt/reins-serve"  # where the image keeps the repository's `directions`

# What KubeRay makes of a RayService, by its source: labels of the service that users reach; {} is the name of the RayService
# or, with incremental upgrades, that of each RayCluster. Services have the ports of the head's container.
SERVE_LABELS = {
    "ray.io/originated-from-cr-name": "{}", "ray.io/originated-from-crd": "RayService", "ray.io/serve": "{}-serve",
}  # fmt: skip
HEAD_LABELS = {
    "ray.io/originated-from-cr-name": "{}",
    "ray.io/originated-from-crd": "RayService",
    "ray.io/node-type": "head",
}

# Secrets that k8s/README.md tells to make, with their keys.
SECRETS = {
    "reins-ray-token": {"auth_token"},
    "reins-database": {"password"},
    "reins-redis": {"password"},
    "reins-hub": {"token"},
    "reins-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "reins-tls": {"tls.crt", "tls.key"},
}


def config(manifests: Manifests) -> ApplicationConfig:
    return ApplicationConfig.model_validate(manifests.serve["applications"][0]["args"])


def delays(manifests: Manifests) -> list[str]:
    """Each delay must hold the ones inside it, or generations are cut off (KubeRay's issues 3602 and 4126)."""
    needed = {f"model-{model.name}": model.generation_timeout_s for model in config(manifests).models}
    longest, given = max(needed.values()), graceful_shutdowns(manifests)
    graceful = max(given.values())
    faults = [
        f"{name} gets {given[name]} s to finish, and a generation takes up to {seconds}"
        for name, seconds in [*needed.items(), ("gateway", longest)] if given[name] <= seconds
    ]  # fmt: skip
    if not manifests.service["rayClusterDeletionDelaySeconds"] > longest:
        faults.append(f"an old cluster is deleted before a generation of {longest} s ends")
    for pod in manifests.serving:
        drain = float(env(pod).get(DRAIN, 30))
        if not drain > graceful:
            faults.append(f"{pod.name} drains for {drain} s, replicas finish within {graceful}")
        if not pod.spec["terminationGracePeriodSeconds"] > drain:
            faults.append(f"{pod.name} is killed before it has drained for {drain} s")
    return faults


def graceful_shutdowns(manifests: Manifests) -> dict[str, float]:
    """How long Serve lets each deployment finish, as the application sets it; `deployments:` may set it anew."""
    application = manifests.serve["applications"][0]
    here = yaml.safe_load(yaml.safe_dump(application["args"]).replace(IMAGE_FILES, str(Path.cwd())))
    with patch.object(app, "serve_model"):  # would ask the store, which is on the cluster, for a live direction
        built = build_app(app.build(here), name="reins")
    given = {made.name: made._deployment_config.graceful_shutdown_timeout_s for made in built.deployments}
    over = {one["name"]: one.get("graceful_shutdown_timeout_s") for one in application.get("deployments", [])}
    return {name: over.get(name) or seconds for name, seconds in given.items()}


def env(pod: Pod) -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod.ray.get("env", []) if "value" in one}


def references(manifests: Manifests) -> list[str]:
    """Images, names and namespaces are the same everywhere, and what is named is there."""
    empty = [
        path for path, value in walk(manifests.objects) if value == "" and ".apiGroups." not in path
    ]  # the core group is ""
    faults = [f"{path} is empty" for path in empty]
    images = {container["image"] for pod in manifests.pods for container in pod.containers}
    if len(images) != 1:
        faults.append(f"the pods have different images: {sorted(images)}")
    if len({manifests.cluster["rayVersion"], manifests.job["rayClusterSpec"]["rayVersion"]}) != 1:
        faults.append("the two clusters are of different versions of Ray")
    names = {
        (given["kind"], given["metadata"]["name"]): given["metadata"].get("namespace") for given in manifests.objects
    }
    space = manifests.one("Namespace")["metadata"]["name"]
    cluster_wide = ("Namespace", "PriorityClass")
    faults += [
        f"{kind} {name} is in another namespace"
        for (kind, name), at in names.items()
        if kind not in cluster_wide and at != space
    ]
    for pod in manifests.pods:
        wanted = [("ServiceAccount", pod.spec["serviceAccountName"])]
        wanted += [("PriorityClass", pod.spec["priorityClassName"])] if "priorityClassName" in pod.spec else []
        for volume in pod.spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                wanted.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            if "configMap" in volume:
                wanted.append(("ConfigMap", volume["configMap"]["name"]))
        faults += [
            f"{pod.name} names a {kind} {name} that is not there" for kind, name in wanted if (kind, name) not in names
        ]
        volumes = {volume["name"] for volume in pod.spec["volumes"]}
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
        faults += [f"{pod.name} has no volume {name}" for name in mounted - volumes]
    return faults + _secrets(manifests) + _selectors(manifests)


def _secrets(manifests: Manifests) -> list[str]:
    faults = ["a Secret stands among the manifests"] if manifests.all("Secret") else []
    for path, value in walk(manifests.objects):
        key = path.rpartition(".")[2]
        if key == "secretKeyRef" and value["key"] not in SECRETS.get(value["name"], ()):
            faults.append(f"{path}: no Secret {value['name']} with a key {value['key']} is known")
        name = value.get("name") if key == "secretRef" else value if key == "secretName" else None
        if name is not None and name not in SECRETS:
            faults.append(f"{path}: no Secret {name} is known")
    tokens = [part.get("authOptions") for part in (manifests.cluster, manifests.job["rayClusterSpec"])]
    if tokens[0] != tokens[1] or (tokens[0] or {}).get("mode") != "token":
        faults.append("both clusters must ask for the same token")
    return faults


def _selectors(manifests: Manifests) -> list[str]:
    faults = []
    for given in manifests.all("PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        spec = given["spec"]
        selector = spec["podSelector"] if given["kind"] == "NetworkPolicy" else spec["selector"]
        if not any(selects(selector, pod.labels) for pod in manifests.pods):
            faults.append(f"{given['kind']} {given['metadata']['name']} selects no pod")
        if given["kind"] == "PodDisruptionBudget" and not isinstance(spec.get("minAvailable"), int):
            faults.append(
                f"{given['metadata']['name']}: KubeRay's pods have no scale, so that only a whole minAvailable works"
            )
    for pod in manifests.serving:
        for constraint in pod.spec.get("topologySpreadConstraints", []):
            if not selects(constraint["labelSelector"], pod.labels):
                faults.append(f"{pod.name} is spread among pods of others")
    return faults


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; of its operators only `In` and `Exists` are used here."""
    expressions = selector.get("matchExpressions", [])
    assert {one["operator"] for one in expressions} <= {"In", "Exists"}
    wanted = [(key, [value]) for key, value in selector.get("matchLabels", {}).items()]
    wanted += [(one["key"], one["values"]) for one in expressions if one["operator"] == "In"]
    there = all(one["key"] in labels for one in expressions)
    return there and all(labels.get(key) in values for key, values in wanted)


def ports(manifests: Manifests) -> list[str]:
    """One port for HTTP from Serve's configuration to the route; services and labels as KubeRay makes them."""
    name, port = manifests.one("RayService")["metadata"]["name"], manifests.serve["http_options"]["port"]
    faults = []
    for pod in manifests.serving:
        said = {one["name"]: one["containerPort"] for one in pod.ray["ports"]}
        if (said.get("serve"), said.get("metrics")) != (port, 8080):
            faults.append(f"{pod.name} has the ports {said}, Serve listens on {port}")
        for probe in ("readinessProbe", "livenessProbe"):
            asked = pod.ray[probe]["httpGet"]
            if (asked["path"], asked["port"]) not in {("/api/healthz", 52365), ("/-/healthz", "serve")}:
                faults.append(f"{pod.name} is asked for {asked}, where nothing answers")
    head = {one["name"]: one["containerPort"] for one in manifests.serving[0].ray["ports"]}
    if f"http://{name}-head-svc:{head.get('dashboard')} " not in manifests.job["entrypoint"]:
        faults.append("the recalibration is not submitted to the head service's dashboard")
    backends = [
        (path["backend"]["service"]["name"], head.get(path["backend"]["service"]["port"].get("name")))
        for ingress in manifests.all("Ingress") for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]
    ] + [
        (backend["name"], backend["port"])
        for route in manifests.all("HTTPRoute") for rule in route["spec"]["rules"] for backend in rule["backendRefs"]
    ]  # fmt: skip
    incremental = "clusterUpgradeOptions" in manifests.service["upgradeStrategy"]
    faults += [
        f"{backend} does not serve" for backend in backends if incremental or backend != (f"{name}-serve-svc", port)
    ]
    for monitor in manifests.all("ServiceMonitor", "PodMonitor"):
        spec = monitor["spec"]
        for endpoint in [*spec.get("endpoints", []), *spec.get("podMetricsEndpoints", [])]:
            if endpoint["port"] not in head:
                faults.append(f"{monitor['metadata']['name']} asks a port {endpoint['port']}")
        users, heads = (
            {key: value.format(name) for key, value in made.items()} for made in (SERVE_LABELS, HEAD_LABELS)
        )
        of_cluster = {key: value.format(f"{name}-x7k2p") for key, value in SERVE_LABELS.items()}
        if monitor["kind"] == "ServiceMonitor":
            if not selects(spec["selector"], of_cluster if incremental else users):
                faults.append(f"{monitor['metadata']['name']} selects no service of KubeRay's")
            if selects(spec["selector"], heads):
                faults.append(f"{monitor['metadata']['name']} selects the head's service, which is no gateway")
    return faults


def keys(manifests: Manifests) -> list[str]:
    """Where users come in from outside, the application asks for keys."""
    outside = (
        bool(manifests.all("Ingress", "HTTPRoute")) or "clusterUpgradeOptions" in manifests.service["upgradeStrategy"]
    )
    given = config(manifests)
    return ["the API is open to everybody"] if outside and not (given.api_keys and given.admin_key_sha256) else []


def scaling(manifests: Manifests) -> list[str]:
    """Each replica fits a group of workers, by what Ray's own autoscaler reads in the manifests, and as many as are allowed fit."""
    derived = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "reins", "namespace": "reins"}, "spec": manifests.cluster}
    )
    groups = {name: group for name, group in derived["available_node_types"].items() if group["max_workers"]}
    over = {
        one["name"]: one.get("ray_actor_options", {})
        for one in manifests.serve["applications"][0].get("deployments", [])
    }
    scales, faults = manifests.cluster.get("enableInTreeAutoscaling", False), []
    for model in config(manifests).models:
        labels = over.get(f"model-{model.name}", {}).get("label_selector", {})
        fitting = [
            group for group in groups.values()
            if labels.items() <= group["labels"].items() and group["resources"]["CPU"] >= model.num_cpus
            and group["resources"].get("GPU", 0) >= model.num_gpus
        ]  # fmt: skip
        most = model.autoscaling.max_replicas if model.autoscaling else model.num_replicas
        nodes = sum(group["max_workers" if scales else "min_workers"] for group in fitting)
        if not fitting:
            faults.append(f"no group of workers has room for {model.name}")
        elif model.num_gpus and nodes < most:
            faults.append(f"{model.name} may have {most} replicas, and its groups {nodes} nodes")
        elif not scales and model.autoscaling:
            faults.append(f"{model.name} is to scale, and no autoscaler makes room for it")
    return faults


def recalibration(manifests: Manifests) -> list[str]:
    """The scheduled job reads a configuration that fits what is served, from where its pod mounts it."""
    given = manifests.one("ConfigMap", "reins-recalibration")["data"]["recalibrate.yaml"]
    read = RecalibrateConfig.model_validate(yaml.safe_load(given))
    served, faults = {model.name: model for model in config(manifests).models}, []
    if read.model not in served:
        faults.append(f"{read.model} is recalibrated, and not served")
    elif read.store is None or read.store != served[read.model].store:
        faults.append(f"directions are published to {read.store}, and {read.model} follows {served[read.model].store}")
    pod = manifests.pods[-1]
    (folder,) = (mount["mountPath"] for mount in pod.ray["volumeMounts"] if mount["name"] == "recalibration")
    if f"--working-dir {folder} " not in manifests.job["entrypoint"]:
        faults.append(f"the job does not travel with the folder {folder}")
    mounts = {mount["mountPath"] for pod in manifests.serving for mount in pod.ray["volumeMounts"]}
    out = manifests.job["entrypoint"].partition("--out ")[2]
    if not any(out.startswith(f"{mount}/") for mount in mounts - {"/tmp"}):
        faults.append(f"what the job keeps, {out}, is on no volume")
    return faults
