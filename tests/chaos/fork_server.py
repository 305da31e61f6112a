"""Forks processes from one that has imported the heavy modules: a worker starts in a blink, however often it dies.

The forked processes are processes like any other: each leads a session of its own and is killed with real signals.
One line of JSON in asks for a process, one line out tells its id, another its end.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Self

_PR_SET_PDEATHSIG = 1
_START_S = 180.0
#: exit code after an exception; no command of ours ends with it
_BROKE = 70
_LOOK_S = 0.02
#: two cores are shared by all of a run; no library may start threads of its own
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Born:
    """A forked process; ``pid`` is its group's too."""

    def __init__(self, nursery: Nursery, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self._nursery = nursery

    def exit_code(self) -> int | None:
        """Return the exit code, the negative signal where one ended it, or None while it lives."""
        return self._nursery.exit_code(self.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and all it started; nothing happens where it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, or None if it still lives after ``timeout_s``."""
        return self._nursery.wait(self.pid, timeout_s)


class Nursery:
    """The process that forks, and this side of the pipe to it; a context manager that kills all it made."""

    def __init__(self, preload: Sequence[str], *, log: Path) -> None:
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.fork_server", *preload],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env={**os.environ, **_ONE_THREAD},
                cwd=Path(__file__).parents[2],
                text=True,
            )
        self._changed = Condition()
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._tickets = count()
        self._gone = False
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        living = set(self._pids.values()) - set(self._codes)
        for pid in living:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in living:
            self.wait(pid, 5)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(
        self, name: str, entry: str, arguments: Mapping[str, Any], *, env: Mapping[str, str] | None = None, log: Path
    ) -> Born:
        """Fork a process that calls ``entry``, ``module:function``, with the arguments, its output in ``log``."""
        ticket = next(self._tickets)
        request = {"ticket": ticket, "entry": entry, "arguments": arguments, "env": dict(env or {}), "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        with self._changed:
            came = self._changed.wait_for(lambda: ticket in self._pids or self._gone, _START_S)
            if not came or self._gone:
                raise RuntimeError(f"{name} was not started; the nursery has ended or hangs")
            return Born(self, name, self._pids[ticket])

    def exit_code(self, pid: int) -> int | None:
        """Return how a process ended, or None."""
        with self._changed:
            return self._codes.get(pid)

    def wait(self, pid: int, timeout_s: float) -> int | None:
        """Return how a process ended, waiting for it."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes or self._gone, timeout_s)
            return self._codes.get(pid)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._changed:
                if "ticket" in told:
                    self._pids[told["ticket"]] = told["pid"]
                else:
                    self._codes[told["pid"]] = told["code"]
                self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _live(request: Mapping[str, Any]) -> None:
    """Be the new process, for the rest of its life."""
    code = _BROKE
    try:
        os.setsid()
        _die_with_parent()
        nothing = os.open(os.devnull, os.O_RDONLY)
        out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(nothing, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(request["env"])
        random.seed()
        module, _, function = request["entry"].partition(":")
        code = int(getattr(import_module(module), function)(**request["arguments"]) or 0)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - nothing may return into the nursery
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


def _main() -> None:
    _die_with_parent()
    for module in sys.argv[1:]:
        import_module(module)
    gc.freeze()
    pending = b""
    while True:
        _reap()
        if not select.select([0], [], [], _LOOK_S)[0]:
            continue
        piece = os.read(0, 65536)
        if not piece:
            return
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if not pid:
                _live(request)
            print(json.dumps({"ticket": request["ticket"], "pid": pid}), flush=True)


if __name__ == "__main__":
    _main()
