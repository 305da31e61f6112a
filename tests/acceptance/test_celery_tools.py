"""Celery's own tools see a worker that allows it, with the published permissions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.conftest import until
from tests.support.locked_redis import DOCS, locked_redis

from latentfarm import doorbell
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

pytestmark = pytest.mark.acceptance


def test_inspect_and_events_reach_a_worker_with_the_published_permissions(settings: Settings, tmp_path: Path) -> None:
    with locked_redis(tmp_path, {"admin": "secret", "worker": "hush"}) as port:
        with redis.Redis(port=port, username="admin", password="secret") as admin:
            rules = (DOCS / "redis-acl-celery.txt").read_text().split()
            admin.execute_command("ACL", "SETUSER", "worker", *rules)
        settings = settings.model_copy(update={"redis_url": f"redis://worker:hush@127.0.0.1:{port}/0"})
        environment = {**os.environ, **settings.environment(), "LATENTFARM_CELERY_REMOTE_CONTROL": "1"}
        environment |= {"LATENTFARM_LOG_FORMAT": "text", "OMP_NUM_THREADS": "1"}
        log = tmp_path / "worker.log"
        worker = ManagedProcess("worker", [sys.executable, "-m", "latentfarm", "worker"], log=log, env=environment)
        try:
            until(lambda: " ready." in log.read_text(), timeout_s=120)
            app = doorbell.make_app(settings.redis_url, remote_control=True)
            [(name, answer)] = app.control.inspect(limit=1, timeout=10).ping().items()
            assert answer == {"ok": "pong"}
            # as in `latentfarm workers`
            assert name.removeprefix("celery@") in log.read_text().partition(" serves ")[0]
            events: list[dict[str, Any]] = []
            with app.connection_for_read() as connection:
                receiver = app.events.Receiver(connection, {"*": events.append})
                # each second without an event counts
                until(lambda: receiver.capture(limit=1) or bool(events), timeout_s=30)
            assert events[0]["type"] == "worker-heartbeat"
            assert "Traceback" not in log.read_text()
        finally:
            worker.terminate()
            worker.wait_or_kill(20)


def test_a_malformed_url_is_one_line_for_celery_too(settings: Settings, tmp_path: Path) -> None:
    environment = {**os.environ, **settings.environment(), "LATENTFARM_REDIS_URL": "redsi://:hush@h"}
    command = [sys.executable, "-m", "celery", "-A", "latentfarm_worker", "worker"]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    [line] = ran.stderr.splitlines()
    assert line.startswith("latentfarm: LATENTFARM_REDIS_URL is no URL of a Redis: ")
    assert "hush" not in line
