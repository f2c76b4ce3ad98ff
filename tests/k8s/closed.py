"""Is the service closed to those who have no business there? Each check returns what it finds wrong, as sentences."""

from tests.k8s.consistency import selects
from tests.k8s.manifests import Manifests, Object

NAME = "kubernetes.io/metadata.name"
PRIVATE = (6379, 8265, 10001)  # whoever reaches one of them may run code


def reaches(
    manifests: Manifests, source: dict[str, str], space: dict[str, str], target: dict[str, str], port: int
) -> bool:
    """Whether the policies let a pod with the labels `source`, in a namespace with the labels `space`, to a port of another."""
    own = {NAME: manifests.one("Namespace")["metadata"]["name"]}
    policies = [one["spec"] for one in manifests.all("NetworkPolicy") if selects(one["spec"]["podSelector"], target)]
    if not any("Ingress" in policy["policyTypes"] for policy in policies):
        return True
    for policy in policies:
        for rule in policy.get("ingress", []):
            opens = "ports" not in rule or any(one.get("port", port) == port for one in rule["ports"])
            if opens and ("from" not in rule or any(_peer(peer, source, space, own) for peer in rule["from"])):
                return True
    return False


def _peer(peer: Object, source: dict[str, str], space: dict[str, str], own: dict[str, str]) -> bool:
    inside = selects(peer["namespaceSelector"], space) if "namespaceSelector" in peer else space == own
    return inside and selects(peer.get("podSelector", {}), source)


def network(manifests: Manifests) -> list[str]:
    """Who reaches what, tried for each kind of pod that there may be."""
    own = {NAME: manifests.one("Namespace")["metadata"]["name"]}
    policy = manifests.one("NetworkPolicy", "reins-ray")["spec"]["ingress"]
    named = [one["from"][0]["namespaceSelector"]["matchLabels"][NAME] for one in policy[1:4]]
    operator, monitoring, ingress = ({NAME: name} for name in named)
    labels = {pod.name: pod.labels for pod in manifests.pods}
    client, stranger, other = {"reins-serve/client": "true"}, {"app": "other"}, {NAME: "other"}
    faults = []
    for pod in manifests.serving:
        for source, space, may in (
            (stranger, other, ()), (stranger, own, ()), (client, other, (8000,)), (client, own, (8000,)),
            (stranger, ingress, (8000,)), (stranger, monitoring, (8000, 8080)), (stranger, operator, (8000, 8265)),
            (labels["recalibration"], own, (8265,)), (labels["recalibration"], other, ()),
            (labels["head"], own, (*PRIVATE, 8000, 8080)), (labels["head"], other, ()),
        ):  # fmt: skip
            for port in (*PRIVATE, 8000, 8080):
                if reaches(manifests, source, space, pod.labels, port) != (port in may):
                    faults.append(
                        f"{source} in {space} {'does not reach' if port in may else 'reaches'} {pod.name}:{port}"
                    )
    for port in PRIVATE:
        if reaches(manifests, stranger, own, labels["recalibration"], port):
            faults.append(f"{stranger} reaches recalibration:{port}")
    return faults


def privileges(manifests: Manifests) -> list[str]:
    """Nobody in particular, no capability, no way to more, nothing to write to but volumes; no token but the autoscaler's."""
    faults = []
    for pod in manifests.pods:
        secure = pod.spec["securityContext"]
        if not (
            secure.get("runAsNonRoot")
            and secure.get("runAsUser")
            and secure.get("seccompProfile", {}).get("type") == "RuntimeDefault"
        ):
            faults.append(f"{pod.name} may be root, or calls what it likes")
        containers = list(pod.containers)
        if pod.name == "head" and manifests.cluster.get("enableInTreeAutoscaling"):
            containers.append({"name": "autoscaler", **manifests.cluster["autoscalerOptions"]})
        for container in containers:
            given = container.get("securityContext", {})
            wanted = {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            if given != wanted:
                faults.append(f"{pod.name}/{container['name']} has the security context {given}")
            if (
                set(container["resources"]) != {"requests", "limits"}
                or "memory" not in container["resources"]["limits"]
            ):
                faults.append(f"{pod.name}/{container['name']} asks for no resources, or has no limit")
    for role in manifests.all("Role", "ClusterRole"):
        for rule in role["rules"]:
            if role["kind"] == "ClusterRole" or {"*", "secrets", "pods/exec"} & {
                *rule["verbs"],
                *rule["resources"],
                *rule["apiGroups"],
            }:
                faults.append(f"{role['metadata']['name']} may do too much: {rule}")
    tokens = {
        one["metadata"]["name"]
        for one in manifests.all("ServiceAccount")
        if one.get("automountServiceAccountToken") is not False
    }
    users = {pod.name for pod in manifests.pods if pod.spec["serviceAccountName"] in tokens}
    if users != ({"head"} if manifests.cluster.get("enableInTreeAutoscaling") else set()):
        faults.append(f"these pods have a token of the API server: {sorted(users)}")
    return faults
