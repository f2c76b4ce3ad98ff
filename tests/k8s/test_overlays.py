"""The manifests of every overlay, as rendered: no check finds anything wrong in them, and each check finds what is planted."""

from collections.abc import Callable

import pytest
import yaml

from tests.k8s import closed, consistency, schemas
from tests.k8s.manifests import K8S, OVERLAYS, Manifests, render
from tests.k8s.planted import PLANTED, head

CHECKS = (
    schemas.kuberay, schemas.kubernetes, schemas.monitoring_and_gateway, schemas.serve_config,
    consistency.delays, consistency.references, consistency.ports, consistency.keys, consistency.scaling,
    consistency.recalibration, closed.network, closed.privileges,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_wrong(overlay: str, check: Callable[[Manifests], list[str]]) -> None:
    assert check(render(overlay)) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str) -> None:
    check, overlay, plant, expected = PLANTED[name]
    given = render(overlay)
    assert check(given) == []
    plant(given)
    assert any(expected in fault for fault in check(given)), check(given)


def test_every_check_has_a_planted_fault() -> None:
    assert {check for check, *_ in PLANTED.values()} == set(CHECKS)


@pytest.mark.parametrize("overlay", ("single-gpu", "fleet", "ha"))
def test_the_cluster_has_the_rules_of_the_file(overlay: str) -> None:
    rules = yaml.safe_load((K8S / "monitoring" / "rules.yaml").read_text())
    assert render(overlay).one("PrometheusRule")["spec"] == rules, "run python k8s/monitoring/wrap_rules.py"


def test_upgrades_keep_serving_wherever_there_is_room_for_two_clusters() -> None:
    types = {overlay: render(overlay).service["upgradeStrategy"]["type"] for overlay in OVERLAYS}
    assert types == {
        "embedded-cpu": "NewCluster", "single-gpu": "None", "fleet": "NewClusterWithIncrementalUpgrade", "ha": "NewCluster",
    }  # fmt: skip


@pytest.mark.parametrize("overlay", ("embedded-cpu", "single-gpu"))
def test_an_sqlite_file_is_used_on_one_node_alone(overlay: str) -> None:
    given = render(overlay)
    assert consistency.config(given).database_url.startswith("sqlite:")
    for pod in given.serving:
        (term,) = pod.spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert all(consistency.selects(term["labelSelector"], other.labels) for other in given.serving)


@pytest.mark.parametrize("overlay", ("fleet", "ha"))
def test_pods_on_many_nodes_share_postgresql_object_storage_and_volumes_for_many(overlay: str) -> None:
    given = render(overlay)
    config = consistency.config(given)
    assert config.database_url.startswith("postgresql") and config.num_gateways > 1
    assert config.output_dir.startswith("s3://") and all(model.store.startswith("s3://") for model in config.models)
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in given.all("PersistentVolumeClaim"))
    for pod in given.serving:
        assert "PGPASSWORD" in [one["name"] for one in pod.ray["env"]]


def test_the_head_of_ha_is_pinned_and_its_state_outlives_it() -> None:
    given = render("ha")
    assert head(given)["nodeSelector"]
    assert given.cluster["gcsFaultToleranceOptions"]["redisAddress"]
    assert (
        "externalStorageNamespace" not in given.cluster["gcsFaultToleranceOptions"]
    )  # old and new cluster would share it
    assert [one["metadata"]["name"] for one in given.all("PodDisruptionBudget")] == ["reins-workers"]
