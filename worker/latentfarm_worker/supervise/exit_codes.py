"""Exit codes of a worker and of its supervisor.

0: stopped on request: by a signal to the supervisor or the worker, or by a spot notice. 2: invalid configuration. 3:
Redis or the bucket is unavailable, or a worker without a supervisor ended though nothing requested it. 75: a new
process may work: the device is lost, or the engine stalled without a supervisor. 76: the supervisor stopped restarting
the worker. 128 plus the signal's number: killed by a signal.
"""

from __future__ import annotations

import signal

EXIT_CONFIGURATION = 2
EXIT_UNAVAILABLE = 3
#: the device is lost to this process, or its engine stalled: a new process may work
EXIT_RESTART = 75
#: the worker was lost several times in a row without an image in between
EXIT_CRASH_LOOP = 76


def exit_code_of(returncode: int) -> int:
    """Return the supervisor's exit code for a worker's return code, which is negative for a signal.

    A worker that is still loading dies of SIGTERM or SIGINT: it was stopped in order.
    """
    if returncode in {0, -signal.SIGTERM, -signal.SIGINT}:
        return 0
    return 128 - returncode if returncode < 0 else returncode


def describe(returncode: int) -> str:
    """Return a return code in words, for a log line."""
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
