"""Puts the groups of rules.yaml into the cluster's PrometheusRule: `python k8s/monitoring/wrap_rules.py` after a change.

Expressions of several lines become literal blocks: kustomize adds empty lines to folded ones.
"""

from pathlib import Path

import yaml

RULES = Path(__file__).with_name("rules.yaml")
OBJECT = RULES.parents[1] / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = """\
# Made from k8s/monitoring/rules.yaml by k8s/monitoring/wrap_rules.py: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: reins
  labels: {app.kubernetes.io/part-of: reins-serve}
"""


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as literal blocks."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def wrapped(rules: str) -> str:
    """The PrometheusRule of a file of rules."""
    return HEAD + yaml.dump({"spec": yaml.safe_load(rules)}, Dumper=_Dumper, sort_keys=False, width=1000)


if __name__ == "__main__":
    OBJECT.write_text(wrapped(RULES.read_text()))
