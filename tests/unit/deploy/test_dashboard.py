"""The queries of the dashboard, the alerts and KEDA's triggers are valid, and use existing series only."""

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
from tests.support.deploy.cluster import overlay
from tests.support.deploy.metrics import ALL, groupings_of, metrics_of, unknown_in

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


def test_every_query_is_valid_promql(tmp_path: Path) -> None:
    # as rules, because promtool checks no single query; with Grafana's variables replaced
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
def test_a_panel_queries_existing_series(query: str) -> None:
    assert metrics_of(query)
    assert unknown_in(query) == set()


@pytest.mark.parametrize(
    "rule",
    yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"],
    ids=lambda r: str(r["alert"]),
)
def test_an_alert_queries_existing_series(rule: dict[str, Any]) -> None:
    assert metrics_of(rule["expr"])
    assert unknown_in(rule["expr"]) == set()
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert named <= groupings_of(rule["expr"])


def test_keda_queries_existing_series() -> None:
    for thing in overlay("gpu-spot-autoscaled").of("ScaledObject"):
        for trigger in thing["spec"]["triggers"]:
            query = trigger["metadata"]["valueLocation"]
            # the scaler takes the first series that matches: the labels must leave one
            assert metrics_of(query) == {"latentfarm_model_jobs": ALL["latentfarm_model_jobs"]}


@pytest.mark.parametrize(
    ("query", "unknown"),
    [
        ("rate(latentfarm_image_total[1m])", "latentfarm_image_total"),
        ('latentfarm_slots{modle="x"}', "latentfarm_slots{modle}"),
        ("sum by (batch) (latentfarm_slots)", "batch"),
    ],
)
def test_an_unknown_name_is_detected(query: str, unknown: str) -> None:
    assert unknown_in(query) == {unknown}


def test_the_metrics_without_a_panel_are_known() -> None:
    shown = {name for query in QUERIES for name in metrics_of(str(query.values[0]))}
    parts_of_the_histograms = {
        f"latentfarm_{name}_{part}"
        for name in ("stage_seconds", "server_request_duration_seconds")
        for part in ("sum", "count")
    }
    # a worker's heartbeat reports these
    of_the_heartbeat = {"latentfarm_pixels_total", "latentfarm_compute_cost_total"}
    of_put_down_images = {"latentfarm_checkpoints_total", "latentfarm_evaluations_total"}
    assert set(ALL) - shown == parts_of_the_histograms | of_the_heartbeat | of_put_down_images


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_legend_names_only_labels_of_its_query(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= groupings_of(target["expr"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_every_panel_uses_the_selected_datasource(panel: dict[str, Any]) -> None:
    assert {each["datasource"]["uid"] for each in [panel, *panel["targets"]]} == {"${datasource}"}


def test_queries_use_the_variables_of_the_dashboard() -> None:
    text = json.dumps(DASHBOARD)
    used = set(re.findall(r"\$\{?([a-z_]+)\}?", text)) - {"__rate_interval", "__all"}
    assert used == set(VARIABLES) == {"datasource", "model", "batch"}
    for name in ("model", "batch"):
        assert unknown_in(VARIABLES[name]["definition"].removeprefix("label_values(").split(",")[0]) == set()


def test_panels_have_unique_titles_and_do_not_overlap() -> None:
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
