"""A real worker in a locked farm, with a canary in every prompt and secret, and what was sent, stored and logged."""

from __future__ import annotations

import base64
import json
import os
import pickle
import secrets
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import redis
from tests.conftest import until
from tests.support.input_images import paint, png
from tests.support.locked_redis import locked_redis
from tests.support.s3_front import Right, front

from latentfarm import doorbell
from latentfarm.batch_drafts import DraftSelection
from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState
from latentfarm.farm import Farm
from latentfarm.inputs.collection import collect_inputs
from latentfarm.ledger import INTERACTIVE_PRIORITY, Ledger
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.bucket_check import check_bucket
from latentfarm.storage.keys import image_key, intermediates_key, manifest_key
from latentfarm.storage.multipart_upload import MultipartUpload, abort_uploads_before
from latentfarm.storage.part_codec import pack, unpack
from latentfarm.submission.request import SubmitOptions

#: part of every text of the user
CANARY = "canary-7f3a"
TOKEN = "token-91c2"
SMALL = {"num_inference_steps": 2, "width": 64, "height": 64}
ROLES = ("producer", "worker")


@dataclass
class Run:
    """A farm after one run: its users, and everything that was sent, stored and logged."""

    port: int
    passwords: dict[str, str]
    settings: dict[str, Settings]
    logs: list[Path]
    pickled: Path
    secrets: list[str]
    requests: dict[str, set[Right]] = field(default_factory=lambda: {role: set() for role in ROLES})
    commands: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    webhook: str = ""

    def client(self, user: str) -> Any:
        password = self.passwords[user]
        # a monitor may be silent for long
        return redis.Redis(port=self.port, db=1, username=user, password=password, socket_timeout=None)


class Mark:
    """Creates a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def pickled_message(file: Path) -> str:
    """Return a hostile message: the doorbell's task with a pickled body."""
    headers = {"task": doorbell.TASK_NAME, "id": str(uuid.uuid4()), "lang": "py", "root_id": "x", "parent_id": None}
    properties = {
        "correlation_id": headers["id"],
        "delivery_tag": str(uuid.uuid4()),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "render.mini"},
        "body_encoding": "base64",
        "priority": 0,
    }
    return json.dumps(
        {
            "body": base64.b64encode(pickle.dumps(Mark(file))).decode(),
            "content-encoding": "binary",
            "content-type": "application/x-python-serialize",
            "headers": headers,
            "properties": properties,
        }
    )


def submit(run: Run) -> None:
    """Submit prompts with the canary: two valid, one that cannot be rendered, two invalid and a forged one."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"{CANARY} one", "negative_prompt": CANARY, "id": f"{CANARY}-1", **SMALL},
        {"prompt": f"{CANARY} two", "note": CANARY, "save_intermediates": True, **SMALL},
        {"prompt": f"{CANARY} three", **SMALL, "scheduler_options": {"nope": 1}},
        {"prompt": f"{CANARY} four", "width": CANARY, CANARY: CANARY},
        {"prompt": CANARY * 500},
        {"prompt": f"{CANARY} six", **SMALL},
    ]
    farm = Farm.open(run.settings["producer"])
    from latentfarm.submission.prompts import ReadOptions

    rules = SubmitOptions(validate_first=False, max_invalid=1.0, webhook=f"https://hooks.invalid/{TOKEN}?t={TOKEN}")
    batch = farm.submit(rows, batch="cats", options=rules, reading=ReadOptions(keep_columns=True))
    forge(farm.bucket, 5, prompt=CANARY * 500)
    # a worker that was lost after its put: the collection of orphans removes what it stored
    ledger = Ledger.connect(run.settings["worker"].redis_url)
    [lost] = ledger.lease("mini", "lost", 1, lease_s=30)
    run.leftovers = [image_key("cats", lost.index, lost.epoch), intermediates_key("cats", lost.index, lost.epoch)]
    for key in run.leftovers:
        farm.bucket.put(key, b"half an image")
    ledger.release([lost])
    run.messages = [str(message) for message in run.client("admin").lrange("render.mini", 0, -1)]
    assert run.messages
    assert batch.status().total == 6


def forge(bucket: Bucket, index: int, **fields: Any) -> None:
    key = manifest_key("cats", 0)
    lines = unpack(bucket.get(key))
    lines[index] |= fields
    bucket.put(key, pack(lines))


def collect(run: Run) -> None:
    """Use ended batches as their user does, and one that runs."""
    farm = Farm.open(run.settings["producer"])
    batch = farm.batch("cats")
    until(lambda: batch.status().is_final)
    batch.wait(timeout_s=60)
    # the retry opens a flushed part again, so that the next flush has to read it
    assert batch.retry(code="scheduler") == 1
    until(lambda: batch.status().is_final)
    # a worker flushes it, and deletes the object of the first flush: `wait` would do so if it came first
    until(lambda: not farm.ledger.full_parts())
    batch.wait(timeout_s=60)
    # orphans are collected a minute after the end of their batch; do not wait for it
    run.client("admin").zadd("{lf}:orphans", {"cats": 1})
    until(lambda: not run.client("admin").exists("{lf}:orphans"), timeout_s=60)
    until(lambda: bool(run.client("admin").hget("{lf}:batch:cats", "webhook_error")), timeout_s=60)
    run.webhook = str(run.client("admin").hget("{lf}:batch:cats", "webhook_error"))
    run.results = list(batch.results())
    serve(run, farm)
    use_input(farm)
    use_drafts(farm)
    batch.fetch(run.logs[0].parent / "out")
    check_bucket(farm.bucket)
    assert farm.ledger.ping()
    quick, slow = {"prompt": "a", "num_inference_steps": 1}, {"prompt": "a", "num_inference_steps": 500}
    other = farm.submit([quick, *[slow] * 20], batch="dogs")
    until(lambda: other.status().done > 0)
    assert other.status().images_per_s
    other.pause(now=True)
    # their worker hears of it: they would take minutes
    until(lambda: not other.status().leased)
    other.resume()
    other.set_priority(3)
    other.cancel()


def use_drafts(farm: Farm) -> None:
    """Finish one of two drafts, and discard the other."""
    batch = farm.submit([{"prompt": "a", "draft": 0.5, **SMALL}] * 2, batch="drafts")
    assert batch.wait(timeout_s=60).state is BatchState.DRAFTED
    batch.finish(DraftSelection(indices=(0,)))
    assert batch.wait(timeout_s=60).done == 1
    batch.discard(DraftSelection())
    assert batch.wait(timeout_s=60).complete


def serve(run: Run, farm: Farm) -> None:
    """Use the farm as a server does: for an image that a client waits for, and that expires."""
    options = SubmitOptions(kind=BatchKind.INTERACTIVE, owner="alice", priority=INTERACTIVE_PRIORITY, keep_s=3600)
    with farm.ledger.live_reports() as reports:
        assert reports.wait(0.01) == []
        after = farm.ledger.last_event_id()
        row = {**SMALL, "prompt": CANARY, "num_inference_steps": 4}
        image = farm.submit([row], batch="interactive-0", options=options, partial_images=1)
        until(lambda: any(report.preview for report in reports.wait(0.1)))
    watch_slots(farm.ledger)
    ended = ("complete", "interactive-0")
    until(lambda: ended in [(each.event, each.batch) for each in farm.ledger.read_events(after, block_s=1)])
    assert image.status().complete
    use_files(farm.bucket)
    assert farm.ledger.queue_submission("later")
    assert farm.ledger.resolve_submission(*farm.ledger.claim_submission(30) or ("", 0))
    assert not farm.ledger.has_submission("later")
    assert not farm.ledger.request_drain("unknown")
    assert [name for _, name in farm.ledger.newest_batches(before=(2**53, "none"))] == ["cats"]
    run.client("admin").zadd("{lf}:expiring", {"interactive-0": 1}, xx=True)
    until(lambda: farm.ledger.count_interactive() == 0, timeout_s=60)


def use_input(farm: Farm) -> None:
    """Render on an input image, and delete it once no batch names it."""
    source = "data:image/png;base64," + base64.b64encode(png(paint(1))).decode()
    row = {"prompt": CANARY, "image": source, "num_inference_steps": 2}
    batch = farm.submit([row], batch="birds")
    batch.wait(timeout_s=60)
    assert batch.status().done == 1
    batch.delete()
    assert collect_inputs(farm.bucket, grace_s=-60) == 1


def watch_slots(ledger: Ledger) -> None:
    """Watch the worker as a server does."""
    names = [worker.name for worker in ledger.worker_records()]
    with ledger.slot_reports(names) as reports:
        assert reports.wait(0) is None
        ledger.watch_workers(names)
        until(lambda: reports.wait(0.1) is not None)


def use_files(bucket: Bucket) -> None:
    """Store, read and delete objects where a server has the files and batches of OpenAI's clients."""
    whole, cut = (MultipartUpload(bucket, f"files/{name}") for name in ("whole", "cut"))
    for upload in (whole, cut):
        upload.put_part(b"a line")
    whole.complete()
    cut.abort()
    abort_uploads_before(bucket, "files/", datetime.now(UTC))
    bucket.put("openai/batches/b.json", b"{}")
    for key in ("files/whole", "openai/batches/b.json"):
        assert bucket.get(key)
        bucket.delete([key])


@contextmanager
def locked_farm(servers: Settings, folder: Path) -> Iterator[Run]:
    """Render in a farm whose users and roles have only the published permissions; yield what was seen."""
    # other modules leave batches in the bucket
    list(Bucket.connect(servers).delete_all(""))
    passwords = {user: f"password-{secrets.token_hex(8)}" for user in ("admin", *ROLES)}
    hook_secret = base64.b64encode(secrets.token_bytes(32)).decode()
    seen: dict[str, set[Right]] = {role: set() for role in ROLES}
    with (
        locked_redis(folder, passwords) as port,
        front(servers, {}, seen["producer"]) as for_producer,
        front(servers, {}, seen["worker"]) as for_worker,
    ):
        base = {"producer": for_producer, "worker": for_worker}
        urls = {role: f"redis://{role}:{passwords[role]}@127.0.0.1:{port}/1" for role in ROLES}
        settings = {role: base[role].model_copy(update={"redis_url": urls[role]}) for role in ROLES}
        known = [*passwords.values(), servers.s3_secret_key.get_secret_value(), hook_secret]
        log = folder / "worker.log"
        found = Run(port, passwords, settings, [log, folder / "redis.log"], folder / "pickled", known, seen)
        with found.client("admin").monitor() as monitor:
            found.client("admin").ping()
            watching = Thread(target=record_commands, args=(monitor, found.commands), daemon=True)
            watching.start()
            submit(found)
            found.client("admin").rpush("render.mini", pickled_message(found.pickled))
            environment = settings["worker"].environment() | {
                "LATENTFARM_HOUSEKEEPING_INTERVAL_S": "0.3",
                "LATENTFARM_WEBHOOK_SECRET": f"whsec_{hook_secret}",
            }
            # the bare command: Celery's own defaults must need no further permission
            command = [sys.executable, "-m", "celery", "-A", "latentfarm_worker", "worker"]
            worker = ManagedProcess("worker", command, log=log, env={**os.environ, **environment})
            try:
                collect(found)
            finally:
                worker.terminate()
                worker.wait_or_kill(40)
            delete_all(found)
            found.client("admin").publish("end", "end")
            watching.join(10)
        yield found


def delete_all(run: Run) -> None:
    farm = Farm.open(run.settings["producer"])
    farm.batch("dogs").delete()


def record_commands(monitor: Any, commands: list[str]) -> None:
    """Record every command that Redis receives, with its arguments, until ``PUBLISH end``."""
    for received in monitor.listen():
        commands.append(received["command"])
        if received["command"].upper().startswith("PUBLISH END"):
            return
