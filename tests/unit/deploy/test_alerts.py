"""The alert rules are valid; each is tested to fire, and not to fire."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from tests.conftest import REPOSITORY
from tests.support import tools

pytestmark = pytest.mark.unit

ALERTS = REPOSITORY / "deploy" / "monitoring" / "alerts.yaml"
CASES = Path(__file__).parent / "alerts_test.yaml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tools.find("promtool"), *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def run_cases(folder: Path, alerts: str, cases: str) -> subprocess.CompletedProcess[str]:
    (folder / "alerts.yaml").write_text(alerts)
    (folder / CASES.name).write_text(cases)
    return promtool("test", "rules", CASES.name, folder=folder)


def cases_of(alert: str) -> str:
    """Return the cases that expect this alert, or its absence."""
    found = yaml.safe_load(CASES.read_text())
    for case in found["tests"]:
        case["alert_rule_test"] = [each for each in case["alert_rule_test"] if each["alertname"] == alert]
    return str(yaml.safe_dump({**found, "tests": [case for case in found["tests"] if case["alert_rule_test"]]}))


def test_the_rules_are_valid() -> None:
    done = promtool("check", "rules", ALERTS.name, folder=ALERTS.parent)
    assert done.returncode == 0, done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_the_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    done = run_cases(tmp_path, ALERTS.read_text(), CASES.read_text())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_every_alert_has_a_case_that_fires_and_one_that_does_not(rule: dict[str, str]) -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    expected = [
        bool(each.get("exp_alerts"))
        for case in cases
        for each in case["alert_rule_test"]
        if each["alertname"] == rule["alert"]
    ]
    assert set(expected) == {True, False}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_the_cases_of_an_alert_fail_if_it_never_fires_or_does_not_wait(rule: dict[str, str], tmp_path: Path) -> None:
    text, cases = ALERTS.read_text(), cases_of(rule["alert"])
    assert run_cases(tmp_path, text, cases).returncode == 0
    before, name, after = text.partition(f"alert: {rule['alert']}\n")
    slow = after.replace("for: ", "for: 9", 1)
    assert run_cases(tmp_path, before + name + slow, cases).returncode != 0
    hasty = after.replace(f"for: {rule['for']}", "for: 0s", 1)
    assert run_cases(tmp_path, before + name + hasty, cases).returncode != 0


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_every_alert_has_a_severity_a_summary_and_a_description(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description"}


def test_the_readme_names_every_alert() -> None:
    text = (ALERTS.parent / "README.md").read_text()
    assert [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in text] == []
