"""One supervised worker for each device of this machine: started together, ended together, each in its own process.

As a supervisor, it imports nothing beyond the standard library but small modules of ours.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from types import FrameType

from latentfarm.errors import InputError, LatentfarmError
from latentfarm.monitoring import listen_address, logs
from latentfarm_worker.supervise.supervisor import die_with_parent, exit_code
from latentfarm_worker.supervise.watchdog import LOOK_S

log = logging.getLogger("fleet")

_SUPERVISOR = (sys.executable, "-m", "latentfarm_worker.supervise.supervisor")
_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
_MOST = 64


@dataclass(frozen=True)
class Device:
    """What a worker gets to see: ``name`` is for the log, ``environment`` for the worker."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)


def parse_devices(text: str, *, visible: str | None = None, cores: int = 1) -> list[Device]:
    """Read ``all``, ``cpu:N`` or CUDA devices such as ``0,1``, by number or UUID.

    Args:
        text: what to read.
        visible: ``CUDA_VISIBLE_DEVICES`` as it is now; ``all`` means these. None: all that there are.
        cores: how many cores ``cpu:N`` shares out.

    Raises:
        InputError: it is none of these, or there is no such device.
    """
    kind, _, count = text.partition(":")
    if kind == "cpu":
        if not (count.isascii() and count.isdigit() and 1 <= int(count) <= _MOST):
            raise _wrong(text)
        threads = str(max(1, cores // int(count)))
        alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
        return [Device(f"cpu {number}", alone) for number in range(int(count))]
    chosen = _all_gpus(visible) if text == "all" else [name.strip() for name in text.split(",")]
    if not chosen:
        raise InputError("there is no CUDA device here; write --devices cpu:1 to render on the CPU")
    if len(set(chosen)) < len(chosen) or not all(_is_gpu(name) for name in chosen):
        raise _wrong(text)
    return [Device(f"cuda {name}", {"CUDA_VISIBLE_DEVICES": name}) for name in chosen]


def _wrong(text: str) -> InputError:
    return InputError(f"devices {text!r}: write all, cpu:N with N from 1 to {_MOST}, or GPUs such as 0,1, each once")


def _is_gpu(name: str) -> bool:
    return (name.isascii() and name.isdigit()) or name.startswith(("GPU-", "MIG-"))


def _all_gpus(visible: str | None) -> list[str]:
    if visible is not None:
        return [name for each in visible.split(",") if (name := each.strip())]
    # torch is the judge of what can be used; in a process of its own, for it is large
    asked = subprocess.run([sys.executable, "-c", _COUNT_GPUS], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise InputError(f"the CUDA devices cannot be counted: {asked.stderr.strip().rpartition(os.linesep)[2]}")
    return [str(number) for number in range(int(asked.stdout))]


class DeviceSupervisors:
    """Runs a supervisor a device until all have ended; ``run`` is for the main thread."""

    def __init__(self, devices: Sequence[Device], supervisor: Sequence[str] = _SUPERVISOR) -> None:
        self._devices = devices
        self._supervisor = supervisor
        self._asked = 0
        self._woken = Event()

    def run(self) -> int:
        """Return the highest exit code: one worker that gave up does not end the others."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        running = {device.name: self._start(place, device) for place, device in enumerate(self._devices)}
        codes, told = [], 0
        while running:
            if self._asked > told:
                told += 1
                for child in running.values():
                    child.send_signal(signal.SIGTERM)
            for name, child in list(running.items()):
                if child.poll() is not None:
                    codes.append(exit_code(child.returncode))
                    level = logging.INFO if self._asked else logging.ERROR
                    log.log(level, "the worker on %s ended with exit code %d", name, codes[-1])
                    del running[name]
            self._woken.clear()
            if self._asked == told:
                self._woken.wait(LOOK_S)
        return max(codes)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked += 1
        self._woken.set()

    def _start(self, place: int, device: Device) -> subprocess.Popen[bytes]:
        address = listen_address.nth_address(os.environ.get(listen_address.VARIABLE, ""), place)
        child = subprocess.Popen(
            self._supervisor,
            env={**os.environ, **device.environment, listen_address.VARIABLE: address},
            # a terminal's Ctrl-C is for us alone, and told on
            start_new_session=True,
            # no thread was ever started here, which is when a preexec_fn is safe
            preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )
        log.info("the supervisor of %s is process %d", device.name, child.pid)
        return child


def main() -> int:
    """Run a worker on each device."""
    parser = argparse.ArgumentParser(prog="python -m latentfarm_worker.supervise.devices", description=main.__doc__)
    parser.add_argument("devices", help="all, cpu:N, or GPUs such as 0,1")
    parser.add_argument("supervisor", nargs=argparse.REMAINDER, help="the supervisor's options")
    chosen = parser.parse_args()
    logs.configure(process="fleet")
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = parse_devices(chosen.devices, visible=visible, cores=os.cpu_count() or 1)
        fleet = DeviceSupervisors(devices, [*_SUPERVISOR, *chosen.supervisor])
        return fleet.run()
    except LatentfarmError as error:
        log.critical("no worker was started: %s", error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
