"""Every S3 server that can be installed here: what it does with the farm's requests, and a batch from end to end.

``make test`` takes the two stores of the other tests; ``make test-s3`` all, and WRITE=1 writes the table.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from botocore.exceptions import ClientError
from tests.s3.checks import CHECKS, wrong_secret
from tests.s3.servers import HOME, SERVERS, Running, Server, release_of
from tests.support.rendering import render_loop, submit
from tests.support.tiny import make_tiny

from latentfarm.errors import LatentfarmError
from latentfarm.farm import Farm
from latentfarm.recovery.recover import recover_batch
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.results import flush_batch
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "s3-stores.md"
BEGIN, END = "<!-- written by make test-s3 -->", "<!-- end -->"
#: rows of the table, kept for runs of other servers
MEASURED = HOME / "measured"
#: for five small images; a machine under load takes 20 s
BATCH_S = 90
#: columns that are no checks of one request
CREDENTIALS, WHOLE_BATCH = "a wrong secret key", "a batch from submit to delete"
COLUMNS = [*CHECKS, CREDENTIALS, WHOLE_BATCH]


class Table:
    """What each server did, by its name and the column."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}
        self.problems: dict[str, str] = {}

    def run(self, server: Server, column: str, check: Callable[[], str], *, needed: bool) -> None:
        """Run a check and note its words; fail if the farm needs it, unless the server is known to lack it."""
        row = self.found.setdefault(server.name, {})
        try:
            row[column] = check()
        except (AssertionError, LatentfarmError, OSError) as error:
            reason = _reason(error)
            row[column] = f"**no**: {server.lacks.get(column, reason)}"
            if column in server.lacks or server.unusable or not needed:
                pytest.xfail(reason)
            raise
        finally:
            MEASURED.mkdir(parents=True, exist_ok=True)
            (MEASURED / f"{server.name}.json").write_text(json.dumps(row))

    def write(self) -> None:
        """Write the table into the page; columns are rows there, since there are more of them."""
        # rows of other runs stay: a run may take one server only, by -k
        for file in MEASURED.glob("*.json"):
            self.found.setdefault(file.stem, json.loads(file.read_text()))
        names = [each.name for each in SERVERS if each.name in self.found]
        lines = [f"Measured on {datetime.now(UTC):%Y-%m-%d} by the suite of `make test-s3`.", ""]
        lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        releases = {server.name: release_of(server) for server in SERVERS}
        lines.append("| version | " + " | ".join(releases[name] for name in names) + " |")
        for column in COLUMNS:
            cells = (self.found[name].get(column, "not measured").replace("|", "/") for name in names)
            lines.append(f"| {column} | " + " | ".join(cells) + " |")
        unusable = [each for each in SERVERS if each.unusable and each.name in self.found]
        lines += [""] + [f"- No farm can use {each.name}: {each.unusable}." for each in unusable]
        lines += [f"- {name} did not run: {problem}." for name, problem in self.problems.items()]
        lines += [f"- {name} was not measured." for name in releases if name not in {*names, *self.problems}]
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(before + "\n".join([BEGIN, "", *lines]).rstrip() + f"\n\n{END}" + after)


def _reason(error: Exception) -> str:
    """Return an error in a few words: the code that the server answered, if that is the cause."""
    cause = error.__cause__
    if isinstance(cause, ClientError):
        return f"{cause.operation_name} answers {cause.response.get('Error', {}).get('Code', '')}"
    return (str(error).splitlines() or [type(error).__name__])[0][:80]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    found = Table()
    yield found
    if os.environ.get("WRITE"):
        found.write()


def parameters() -> list[object]:
    slow = [pytest.mark.slow]
    return [pytest.param(each, id=each.name, marks=[] if each.registry == "ours" else slow) for each in SERVERS]


@pytest.fixture(scope="module", params=parameters())
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.param
    return found


@pytest.fixture(scope="module")
def running(server: Server, table: Table, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if problem := server.problem():
        table.problems[server.name] = problem
        pytest.skip(problem)
    started = server.start(server, tmp_path_factory.mktemp("store"))
    yield started
    started.stop()


@pytest.fixture
def bucket(running: Running) -> Bucket:
    """Open a connection for each check: nanio leaves the body of a refused put in the connection."""
    return Bucket.connect(running.settings)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    model = make_tiny(tmp_path_factory.mktemp("model") / "tiny")
    return load_family(model, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("column", CHECKS)
def test_the_store_does_what_the_farm_needs(table: Table, server: Server, bucket: Bucket, column: str) -> None:
    check, needed = CHECKS[column]

    def run() -> str:
        list(bucket.delete_all(""))
        return check(bucket)

    table.run(server, column, run, needed=needed)


def test_a_wrong_secret_key_is_noticed_or_listed(table: Table, server: Server, running: Running) -> None:
    table.run(server, CREDENTIALS, lambda: wrong_secret(running.settings), needed=False)


def test_a_batch_is_rendered_fetched_recovered_and_deleted(
    table: Table, server: Server, running: Running, settings: Settings, family: Family, tmp_path: Path
) -> None:
    farm = Farm.open(running.settings.model_copy(update={"redis_url": settings.redis_url}))

    def whole() -> str:
        list(farm.bucket.delete_all(""))
        batch = submit(farm, 5)
        with render_loop(farm, family) as loop:
            deadline = time.monotonic() + BATCH_S
            while not (status := batch.status()).complete:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not rendered in {BATCH_S} s: {status}")
                loop.render_all()
        flush_batch(farm.ledger, farm.bucket, "b")
        assert [line["state"] for line in batch.results()] == ["done"] * 5
        batch.fetch(tmp_path / "out")
        assert len(list((tmp_path / "out").rglob("*.png"))) == 5, "not all images are fetched"
        farm.ledger.redis.flushall()
        recover_batch(farm.ledger, farm.bucket, "b")
        assert [line["state"] for line in batch.results()] == ["done"] * 5, "recovery finds other results"
        batch.delete()
        assert list(farm.bucket.keys("")) == [], "objects stay"
        return "yes"

    table.run(server, WHOLE_BATCH, whole, needed=True)
