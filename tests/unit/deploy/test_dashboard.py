"""The dashboard's queries can be read, and ask for nothing that nobody tells; so do the alerts and KEDA's triggers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import REPOSITORY
from tests.support import tools
from tests.unit.deploy.cluster import overlay
from tests.unit.deploy.metrics import ALL, groupings_of, metrics_of, strangers_in

pytestmark = pytest.mark.unit

MONITORING = REPOSITORY / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"]}


def test_every_query_can_be_read_by_prometheus(tmp_path: Path) -> None:
    """As rules, for promtool reads no lone query: what Grafana puts in is put in."""
    queries = [query.values[0] for query in QUERIES]
    rules = [
        {"record": f"query_{n}", "expr": re.sub(r"\$__rate_interval", "1m", str(query))}
        for n, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    command = [tools.find("promtool"), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(queries)} rules found" in done.stdout


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_asks_for_what_is_told(query: str) -> None:
    assert metrics_of(query)
    assert strangers_in(query) == set()


@pytest.mark.parametrize(
    "rule",
    yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"],
    ids=lambda r: str(r["alert"]),
)
def test_an_alert_asks_for_what_is_told(rule: dict[str, Any]) -> None:
    assert metrics_of(rule["expr"])
    assert strangers_in(rule["expr"]) == set()
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert told <= groupings_of(rule["expr"])


def test_keda_asks_for_what_is_told() -> None:
    for thing in overlay("gpu-spot-autoscaled").of("ScaledObject"):
        for trigger in thing["spec"]["triggers"]:
            query = trigger["metadata"]["valueLocation"]
            # the scaler takes the first series that matches: the labels must leave one
            assert metrics_of(query) == {"latentfarm_model_jobs": ALL["latentfarm_model_jobs"]}


@pytest.mark.parametrize(
    ("query", "stranger"),
    [
        ("rate(latentfarm_image_total[1m])", "latentfarm_image_total"),
        ('latentfarm_slots{modle="x"}', "latentfarm_slots{modle}"),
        ("sum by (batch) (latentfarm_slots)", "batch"),
    ],
)
def test_a_wrong_name_is_seen(query: str, stranger: str) -> None:
    assert strangers_in(query) == {stranger}


def test_every_metric_but_the_histograms_parts_is_shown_somewhere() -> None:
    shown = {name for query in QUERIES for name in metrics_of(str(query.values[0]))}
    assert set(ALL) - shown == {"latentfarm_stage_seconds_sum", "latentfarm_stage_seconds_count"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_legend_names_only_labels_that_its_query_leaves(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= groupings_of(target["expr"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_every_panel_takes_its_data_from_the_chosen_prometheus(panel: dict[str, Any]) -> None:
    assert {each["datasource"]["uid"] for each in [panel, *panel["targets"]]} == {"${datasource}"}


def test_the_variables_of_queries_are_the_dashboards() -> None:
    text = json.dumps(DASHBOARD)
    used = set(re.findall(r"\$\{?([a-z_]+)\}?", text)) - {"__rate_interval", "__all"}
    assert used == set(VARIABLES) == {"datasource", "model", "batch"}
    for name in ("model", "batch"):
        assert strangers_in(VARIABLES[name]["definition"].removeprefix("label_values(").split(",")[0]) == set()


def test_panels_have_names_of_their_own_and_lie_beside_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    titles = [panel["title"] for panel in PANELS]
    assert len(titles) == len(set(titles)) > 15
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
        assert place["x"] + place["w"] <= 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
