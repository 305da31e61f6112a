"""Fork real processes from one that has imported the heavy modules: a worker starts without importing torch again.

``ForkServer`` starts a server process that imports ``PRELOAD`` once. Each process is a fork of it, or of a fork. It has
its own session, environment, files and default signals, and dies of real signals. The server forks twice, and the test
process is the subreaper of the orphan (prctl(2)), so it waits for it as for any child.

``ForkingPopen`` stands in for ``subprocess.Popen``: ``python -m latentfarm ...`` becomes a fork, every other command
starts as usual.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Self

from latentfarm.child_process import die_with_parent

PRELOAD = (
    "torch",
    "diffusers.schedulers.scheduling_euler_discrete",
    "boto3",
    "celery.bin.worker",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "kombu.transport.redis",
    "latentfarm_worker.service.worker",
    "latentfarm_worker.models",
    "latentfarm.cli",
)
_PR_SET_CHILD_SUBREAPER = 36
#: tests share two cores; no library of a forked worker may start threads of its own
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_REPOSITORY = Path(__file__).parents[2]
#: exit code after an exception in a forked entry point
_BROKEN = 70
_MAX_REQUEST_BYTES = 1024 * 1024
_real_popen = subprocess.Popen


class ForkedProcess:
    """A forked process; with ``new_session``, ``pid`` is also its process group."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self._code: int | None = None

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        if self._code is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process group; nothing happens if it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, or None if the process still runs after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.exit_code()


class ForkServer:
    """The process that forks; a context manager that kills what it forked."""

    def __init__(self, preload: Sequence[str] = PRELOAD, *, log: Path) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        with theirs, log.open("ab") as out:
            self._process = _real_popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno()), *preload],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd=_REPOSITORY,
            )
        self._lock = threading.Lock()
        self._forked: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the forked processes that still run, and end the server."""
        for pid in self._forked:
            with suppress(ProcessLookupError, ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        self._socket.close()
        self._process.wait(10)

    def start(
        self, name: str, entry: str, arguments: Mapping[str, Any], *, env: Mapping[str, str] | None = None, log: Path
    ) -> ForkedProcess:
        """Fork a process that calls ``entry``, ``module:function``, in a session of its own, its output in ``log``."""
        environment = {**os.environ, **_ONE_THREAD, **(env or {})}
        request = {"entry": entry, "arguments": arguments, "env": environment, "new_session": True, "with_parent": True}
        with Path(os.devnull).open("rb") as nothing, log.open("ab") as out:
            return ForkedProcess(name, self.fork(request, [nothing.fileno(), out.fileno(), out.fileno()]))

    def fork(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        """Fork a process as ``_become`` describes; return its pid. Three descriptors are its standard files."""
        with self._lock:
            body = json.dumps({**request, "parent": os.getpid()}).encode()
            socket.send_fds(self._socket, [body], list(descriptors))
            answer = self._socket.recv(64)
        if not answer:
            raise RuntimeError("the fork server has ended; see its log")
        self._forked.append(int(answer))
        return int(answer)


class ForkingPopen(_real_popen):  # type: ignore[type-arg]
    """A ``subprocess.Popen`` that forks ``python -m latentfarm...`` instead of starting an interpreter.

    In a test process the fork server forks. A forked process, where ``_get_server`` is None, forks itself.
    """

    def _execute_child(  # noqa: PLR0917 (the signature of CPython's private method)
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,  # noqa: FBT001
        pass_fds: Any,
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: int,
        shell: bool,  # noqa: FBT001
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        *rest: Any,
    ) -> None:
        module = None if shell else _module_of(args)
        pipes = (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        if module is None:
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                *pipes, *rest,
            )  # fmt: skip
            return
        standard = [mine if mine >= 0 else number for number, mine in enumerate((p2cread, c2pwrite, errwrite))]
        name, arguments = module
        request = {
            "module": name,
            "argv": arguments,
            "env": {**os.environ} if env is None else {**env},
            "cwd": str(cwd or Path.cwd()),
            "new_session": rest[-2],
            "pass_fds": list(pass_fds),
        }
        if _get_server is not None:
            request["with_parent"] = preexec_fn is not None
            self.pid = _get_server().fork(request, [*standard, *pass_fds])
        else:
            self.pid = _fork_self(request, [*standard, *pass_fds], preexec_fn)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


_get_server: Callable[[], ForkServer] | None = None


def install(get_server: Callable[[], ForkServer] | None) -> None:
    """Put ``ForkingPopen`` in the place of ``subprocess.Popen``; the server starts when it is first needed."""
    global _get_server  # noqa: PLW0603
    _get_server = get_server
    subprocess.Popen = ForkingPopen  # type: ignore[misc]


def uninstall() -> None:
    """Restore ``subprocess.Popen``."""
    subprocess.Popen = _real_popen  # type: ignore[misc]


def _module_of(args: Any) -> tuple[str, list[str]] | None:
    """Return the module and its arguments if the command is one of ours, else None."""
    words = [str(word) for word in args] if isinstance(args, Sequence) and not isinstance(args, str | bytes) else []
    if len(words) > 2 and words[0] == sys.executable and words[1] == "-m":
        name, arguments = words[2], words[3:]
    elif words and words[0] == str(Path(sys.executable).with_name("latentfarm")):
        name, arguments = "latentfarm", words[1:]
    else:
        return None
    return (name, arguments) if name.partition(".")[0] in {"latentfarm", "latentfarm_worker", "tests"} else None


def _fork_self(request: Mapping[str, Any], descriptors: Sequence[int], preexec_fn: Callable[[], None] | None) -> int:
    pid = os.fork()
    if not pid:
        # objects of the parent live on here: collected, they would close descriptors that are reused by then
        gc.freeze()
        if preexec_fn is not None:
            preexec_fn()
        _become(request, list(descriptors))
    return pid


def _exec(_path: str, args: Sequence[str]) -> NoReturn:
    """Stand in for ``os.execv``: run a module in this process, as a new program would."""
    module = _module_of(args)
    assert module is not None, args
    gc.freeze()
    request = {"module": module[0], "argv": module[1], "env": {**os.environ}, "cwd": str(Path.cwd())}
    _become(request, [0, 1, 2])


def _become(request: Mapping[str, Any], descriptors: list[int]) -> NoReturn:
    """Be the new process for the rest of its life: session, signals, files, environment, then its program."""
    code = _BROKEN
    try:
        if request.get("new_session"):
            os.setsid()
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # a fork keeps the parent's, whose number another file has here
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _take_files(descriptors, request.get("pass_fds", []))
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request.get("cwd", _REPOSITORY))
        install(None)
        os.execv = _exec  # type: ignore[assignment]
        _forget_exit_handlers()
        logging.root.handlers.clear()
        _share_cores()
        code = _run(request)
    except SystemExit as end:
        code = _exit_code(end)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - nothing may return into the server
        traceback.print_exc()
        code = 1
    finally:
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _run(request: Mapping[str, Any]) -> int:
    if "entry" in request:
        module, _, function = request["entry"].partition(":")
        return int(getattr(import_module(module), function)(**request["arguments"]) or 0)
    sys.argv = [request["module"], *request["argv"]]
    with warnings.catch_warnings():
        # a preloaded module that runs as a program is imported twice
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    return 0


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    sys.stderr.write(f"{end.code}\n")
    return 1


def _take_files(descriptors: list[int], numbers: Sequence[int]) -> None:
    """Give the descriptors the numbers 0, 1, 2 and ``numbers``; close all others."""
    targets = [0, 1, 2, *numbers]
    # out of the way first: a descriptor may be in the place of another
    safe = [os.dup2(each, 1000 + at) for at, each in enumerate(descriptors)]
    for source, target in zip(safe, targets, strict=True):
        os.dup2(source, target)
        os.set_inheritable(target, target < 3)
    kept = {*targets}
    for number in (int(path.name) for path in Path("/proc/self/fd").iterdir()):
        if number not in kept:
            with suppress(OSError):
                os.close(number)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)))
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), line_buffering=os.isatty(1))
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), errors="backslashreplace", line_buffering=True
    )


def _forget_exit_handlers() -> None:
    """Drop what the parent registered for its own end."""
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]


def _share_cores() -> None:
    """Do what torch does with OMP_NUM_THREADS when it is imported, which was before."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))


def _serve(server: socket.socket) -> None:
    """Fork a process for each request until the test process closes its end."""
    while True:
        body, descriptors, _, _ = socket.recv_fds(server, _MAX_REQUEST_BYTES, 64)
        if not body:
            return
        request = json.loads(body)
        reader, writer = os.pipe()
        go_between = os.fork()
        if not go_between:
            pid = os.fork()
            if pid:
                os.write(writer, str(pid).encode())
                os._exit(0)
            # its first parent ends; the test process takes its place
            while os.getppid() != request["parent"]:
                time.sleep(0.001)
            if request.get("with_parent"):
                die_with_parent()
            _become(request, list(descriptors))
        os.waitpid(go_between, 0)
        # not before: the process is now a child of the test process, which may wait for it at once
        server.send(os.read(reader, 32))
        for descriptor in (*descriptors, reader, writer):
            os.close(descriptor)


def _main() -> None:
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in sys.argv[2:]:
        import_module(module)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as server:
        _serve(server)


if __name__ == "__main__":
    # as the module that a forked process imports: one class of each name
    from tests.support.fork_server import _main as main

    main()
