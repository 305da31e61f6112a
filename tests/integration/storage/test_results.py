"""The results of a batch: their content in every format, and the cost of reading them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from tests.conftest import Command
from tests.support.fetching import work

from latentfarm import Farm
from latentfarm.settings import Settings
from latentfarm.storage.results import flush_due
from latentfarm.submission.prompts import ReadOptions

pytestmark = pytest.mark.integration


def test_results_are_the_same_lines_in_every_format(
    farm: Farm, settings: Settings, latentfarm: Command, tmp_path: Path
) -> None:
    rows: list[str | dict[str, Any]] = [{"prompt": 'say "hi",\ncat', "id": "x", "class": 3}, "=1+1", "c"]
    batch = farm.submit(rows, batch="cats", reading=ReadOptions(keep_columns=True))
    work(farm, batch, fail=frozenset({1}))
    out = latentfarm("results", "cats", settings=settings)
    assert out.returncode == 0, out.stderr
    lines = [json.loads(line) for line in out.stdout.splitlines()]
    assert [line["state"] for line in lines] == ["done", "failed", "done"]
    assert (lines[0]["columns"], lines[1]["error"]["code"]) == ({"class": 3}, "nan")
    for name in ("r.csv", "r.parquet"):
        assert latentfarm("results", "cats", "-o", name, settings=settings).returncode == 0
    with (tmp_path / "r.csv").open(newline="") as opened:
        cells = list(csv.DictReader(opened))
    table = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    for line, row, cell in zip(lines, table, cells, strict=True):
        for name in ("job", "id", "state", "key", "prompt", "seed", "width"):
            assert line.get(name) == row[name], name
            assert cell[name] == ("" if row[name] is None else str(row[name]))
    assert (cells[0]["columns"], table[1]["error_code"]) == ('{"class": 3}', "nan")
    done = latentfarm("results", "cats", "--state", "done", "--state", "pending", settings=settings).stdout
    assert [json.loads(line)["index"] for line in done.splitlines()] == [0, 2]


def test_results_read_two_objects_for_a_thousand_jobs_and_no_image(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = farm.submit(["a"] * 1500, batch="cats")
    work(farm, batch)
    flush_due(farm.ledger, farm.bucket)
    read: list[str] = []
    get = farm.bucket.get

    def counted(key: str) -> bytes:
        read.append(key.split("/")[2])
        return get(key)

    monkeypatch.setattr(farm.bucket, "get", counted)
    assert sum(1 for _ in batch.results()) == 1500
    assert sorted(read) == ["manifest", "manifest", "results", "results"]


def test_a_closed_pipe_ends_the_results_without_an_error(farm: Farm, settings: Settings, tmp_path: Path) -> None:
    farm.submit(["a long prompt " * 20] * 3000, batch="cats")
    command = [sys.executable, "-m", "latentfarm", "results", "cats"]
    environment = {**os.environ, **settings.environment()}
    for form in ("jsonl", "csv"):
        running = subprocess.Popen(
            [*command, "--format", form],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        assert running.stderr is not None
        assert "job" in running.stdout.readline()
        running.stdout.close()
        errors = running.stderr.read()
        running.stderr.close()
        assert (running.wait(timeout=60), errors) == (0, "")
