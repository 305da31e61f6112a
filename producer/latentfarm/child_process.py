"""How this project starts a child process: with default signals, in a session of its own, and never outliving us.

Only the standard library is imported, because supervisors must stay small.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1


def start_child(
    command: Sequence[str], *, env: Mapping[str, str], output: IO[bytes] | None = None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process that is sent SIGTERM when this one dies. Call it before any thread is started.

    Args:
        command: Program and arguments.
        env: The whole environment.
        output: File for stdout and stderr [default: those of this process].
        pass_fds: File descriptors that the child inherits.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        env=env,
        pass_fds=pass_fds,
        # a terminal's Ctrl-C reaches this process only, which then stops its children in order
        start_new_session=True,
        # code after a fork may deadlock if another thread holds a lock: hence "before any thread"
        preexec_fn=_prepare,  # noqa: PLW1509
    )


def reset_signals() -> None:
    """Set the signals that stop a process to their defaults.

    A script's background job, ``nohup make test &``, begins with SIGINT ignored and would pass that on to its children.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies, even of SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _prepare() -> None:
    reset_signals()
    die_with_parent()
