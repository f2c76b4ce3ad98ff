"""The rules: they are valid, ask for what exists, and each alert fires on real series when it should and not otherwise."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.names import RULES, groups, rules, unknown
from tests.monitoring.promtool import needs_promtool, promtool

CASES = sorted(Path("tests/monitoring/alerts").glob("*.yaml"))
ALERTS = [rule["alert"] for rule in rules() if "alert" in rule]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
OPERATIONS = Path("docs/operations.md")


def cases(alert: str) -> list[tuple[Path, dict[str, Any]]]:
    """The assertions about an alert, with their files."""
    return [
        (file, case)
        for file in CASES
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == alert
    ]


def with_expression(name: str, expr: str) -> str:
    """The rule file with another expression for one rule."""
    content = groups()
    (rule,) = (rule for group in content for rule in group["rules"] if name in (rule.get("alert"), rule.get("record")))
    rule["expr"] = expr
    return yaml.safe_dump({"groups": content})


def verdict(file: Path, changed: str, folder: Path) -> tuple[bool, str]:
    """What promtool says of a file of cases under changed rules."""
    (folder / "rules.yaml").write_text(changed)
    content = yaml.safe_load(file.read_text()) | {"rule_files": [str(folder / "rules.yaml")]}
    (folder / "cases.yaml").write_text(yaml.safe_dump(content))
    return promtool("test", "rules", folder / "cases.yaml")


@needs_promtool
def test_the_rules_are_valid() -> None:
    fine, said = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert fine, said


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_rules_and_alerts_say_what_the_series_are(file: Path) -> None:
    fine, said = promtool("test", "rules", file)
    assert fine, said


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_groups_are_evaluated_in_the_order_of_the_file(file: Path) -> None:
    """Promtool evaluates groups that it is given no order for in a random one, so a rule may read its input of before."""
    assert yaml.safe_load(file.read_text())["group_eval_order"] == [group["name"] for group in groups()]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_firing_and_silent(alert: str) -> None:
    assert {bool(case["exp_alerts"]) for _, case in cases(alert)} == {True, False}


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("alert", ALERTS)
@pytest.mark.parametrize("fault", ["never fires", "always fires"])
def test_an_alert_that_never_or_always_fires_is_caught(alert: str, fault: str, tmp_path: Path) -> None:
    (rule,) = (rule for rule in rules() if rule.get("alert") == alert)
    changed = with_expression(alert, f"({rule['expr']}) and vector(0) == 1" if fault == "never fires" else "vector(1)")
    fine, said = verdict(cases(alert)[0][0], changed, tmp_path)
    assert not fine
    assert f"alertname: {alert}" in said


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_ask_for_what_exists(rule: dict[str, Any]) -> None:
    assert unknown(rule["expr"], RECORDED) == set()


@pytest.mark.parametrize(
    ("query", "missing"),
    [
        ("rate(reins_generation_total[5m])", {"reins_generation_total"}),
        ("reins_direction_swaps_total", {"reins_direction_swaps_total"}),  # with ray_ before it: a replica's
        ("sum(ray_reins_stage_seconds_count) / on (x) reins_stage_seconds_sum", {"reins_stage_seconds_sum"}),
        ("max_over_time(reins:steering_rate:ratio1m[1h:])", {"reins:steering_rate:ratio1m"}),
        ('reins_generations_total{result="failed"}', {"reins_generations_total{result}"}),
        ("ray_node_gpu_utilization", {"ray_node_gpu_utilization"}),
    ],
)
def test_what_does_not_exist_is_caught(query: str, missing: set[str]) -> None:
    assert unknown(query, RECORDED) == missing


SCORES = [f"rate(reins:version_score_{part}:total[30m])" for part in ("sum", "count")]


@needs_promtool
@pytest.mark.parametrize(
    ("case", "record", "expr"),
    [
        (
            "steering_rate",
            "reins:steered_versions:increase5m",
            "increase(reins:steered_generations:total[5m])",
        ),
        (
            "steering_rate",
            "reins:generations:total",
            "sum without (instance, pod, container) (reins_generations_total)",
        ),
        (
            "steering_rate",
            "reins:steering_rate:ratio5m",
            "reins:steered_generations:increase5m / reins:completed_generations:increase5m",
        ),
        (
            "steering_rate",
            "reins:steering_rate:ratio5m",
            "reins:steered_generations:increase5m / (reins:completed_generations:increase5m > 0)",
        ),
        ("scores", "reins:version_score:mean30m", f"{SCORES[0]} / ({SCORES[1]} > 0)"),
    ],
    ids=["new versions", "two gateways", "no traffic", "none steered", "negative scores"],
)
def test_what_a_rule_guards_against_is_tested(case: str, record: str, expr: str, tmp_path: Path) -> None:
    fine, said = verdict(Path(f"tests/monitoring/alerts/{case}.yaml"), with_expression(record, expr), tmp_path)
    assert not fine
    assert "FAILED" in said


def test_every_alert_has_a_severity_and_a_page_that_says_what_to_do() -> None:
    headings = re.findall(r"^#+ (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for rule in rules():
        if "alert" in rule:
            page, anchor = rule["annotations"]["runbook_url"].split("#")
            assert page == str(OPERATIONS)
            assert anchor == rule["alert"].lower()
            assert anchor in anchors
            assert rule["labels"]["severity"] in ("critical", "warning")
