"""Write the alerts of deploy/monitoring as a resource of the Prometheus operator: ``make docs``."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

HERE = Path(__file__).parent
ALERTS = HERE.parent / "monitoring" / "alerts.yaml"
RULE = HERE / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
# Written by make docs from deploy/monitoring/alerts.yaml, because kustomize cannot include a file in a resource.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: latentfarm
  namespace: latentfarm
  labels:
    app.kubernetes.io/name: latentfarm
spec:
"""


def rule_text() -> str:
    """Return the expected text of the file."""
    groups = ALERTS.read_text().partition("groups:\n")
    return HEAD + indent(f"{groups[1]}{groups[2]}", "  ")


if __name__ == "__main__":
    RULE.write_text(rule_text())
