"""The nets in memory: loaded for jobs that wait, on the device for rows that run, and dropped when others need room."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakSet

import torch

from latentfarm.errors import JobError
from latentfarm_worker import device_errors

log = logging.getLogger(__name__)

_GIGABYTE = 1_000_000_000


class Net:
    """A loaded net.

    Attributes:
        alias: its name, for messages.
        module: the net, on the host or on the device.
        nbytes: bytes of its weights.
        users: images in the batch that use it.
        waiting: the holds of images that use it, in the batch or before it.
    """

    def __init__(self, alias: str, module: torch.nn.Module) -> None:
        self.alias = alias
        self.module: Any = module
        tensors = [*module.parameters(), *module.buffers()]
        self.nbytes = sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
        self.users = 0
        self.waiting: WeakSet[Any] = WeakSet()


class NetCache:
    """Nets by the digest of their files.

    Nets that rows use, or that prepared images will use, stay. Of the others those used last stay, as long as all
    together take at most ``max_bytes``.

    Args:
        device: the device of the model.
        max_bytes: bytes of nets on the device, and as many on the host.
    """

    def __init__(self, device: torch.device, max_bytes: int) -> None:
        self._device = device
        self.max_bytes = max_bytes
        self._nets: OrderedDict[str, Net] = OrderedDict()
        self._lock = Lock()
        self._loading = Lock()

    def __getitem__(self, digest: str) -> Any:
        """Return the module of a net that is in use."""
        return self._nets[digest].module

    def __contains__(self, digest: str) -> bool:
        return digest in self._nets

    @property
    def on_device(self) -> list[str]:
        """The aliases of the nets on the device, the one used last at the end."""
        return [net.alias for net in self._nets.values() if self._is_there(net)]

    def get(self, digest: str, alias: str, load: Callable[[], torch.nn.Module], hold: object) -> Net:
        """Return a net, which ``load`` loads if it is not there. It stays while ``hold`` is alive. Thread-safe.

        Raises:
            Exception: what ``load`` raises.
        """
        # one at a time: two jobs of one net must not load it twice
        with self._loading:
            with self._lock:
                net = self._nets.get(digest)
                if net is not None:
                    net.waiting.add(hold)
                    self._nets.move_to_end(digest)
                    return net
            net = Net(alias, load())
            net.waiting.add(hold)
            with self._lock:
                self._nets[digest] = net
                self._drop_unused()
            return net

    def begin(self, digest: str, net: Net) -> None:
        """Have a net on the device until ``end``. On the engine's thread.

        Raises:
            JobError: code ``oom``: the device has no room for it.
        """
        with self._lock:
            self._nets.move_to_end(digest)
            net.users += 1
            self._drop_unused()
            self._make_room(net.nbytes if not self._is_there(net) else 0)
            try:
                self._move(net)
            except JobError:
                net.users -= 1
                raise

    def end(self, net: Net) -> None:
        """Let a net leave when others need its room. On the engine's thread."""
        net.users -= 1

    def leave_device(self) -> None:
        """Move the nets that no row uses off the device: another model needs it. On the engine's thread."""
        with self._lock:
            self._make_room(self.max_bytes)

    def _is_there(self, net: Net) -> bool:
        tensor = next(net.module.parameters())
        return bool(tensor.device.type == self._device.type)

    def _drop_unused(self) -> None:
        """Forget the nets used longest ago that no image uses, beyond the bound."""
        for here in (True, False):
            nets = {digest: net for digest, net in self._nets.items() if self._is_there(net) is here}
            total = sum(net.nbytes for net in nets.values())
            for digest, net in nets.items():
                if total > self.max_bytes and not net.waiting:
                    del self._nets[digest]
                    total -= net.nbytes
                    log.info("ControlNet %s left memory", net.alias)

    def _make_room(self, nbytes: int) -> None:
        """Move nets that wait for their rows to the host, until so many bytes fit on the device."""
        if self._device.type == "cpu":
            return
        there = [net for net in self._nets.values() if self._is_there(net)]
        total = sum(net.nbytes for net in there) + nbytes
        for net in there:
            if total > self.max_bytes and not net.users:
                net.module.to("cpu")
                total -= net.nbytes

    def _move(self, net: Net) -> None:
        try:
            net.module.to(self._device)
            return
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
        # outside the handler, whose traceback holds the tensors that were moved
        net.module.to("cpu")
        self._make_room(self.max_bytes)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            net.module.to(self._device)
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            net.module.to("cpu")
            raise JobError(
                "oom",
                f"no memory on the device for the ControlNet {net.alias} of {net.nbytes / _GIGABYTE:.1f} GB; "
                "use a smaller net, or a device with more memory",
            ) from None
