"""Adapters with weights of their own, in memory: ControlNets, IP-Adapters with their image encoders, refiners.

They are loaded for jobs that wait, are on the device for rows that run, and leave when others need room.
"""

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


class LoadedModule:
    """A loaded module.

    Attributes:
        key: the digest of its files.
        name: its kind and alias, for messages.
        module: the module, on the host or on the device.
        nbytes: bytes of its weights.
        users: images in the batch that use it.
        waiting: the holds of images that use it, in the batch or before it.
    """

    def __init__(self, key: str, name: str, module: torch.nn.Module) -> None:
        self.key, self.name = key, name
        self.module: Any = module
        tensors = [*module.parameters(), *module.buffers()]
        self.nbytes = sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
        self.users = 0
        self.waiting: WeakSet[Any] = WeakSet()


class ModuleCache:
    """Modules by the digest of their files.

    Those that rows use, or that prepared images will use, stay. Of the others those used last stay, as long as all
    together take at most ``max_bytes``.

    Args:
        device: the device of the model.
        max_bytes: bytes of modules on the device, and as many on the host.
    """

    def __init__(self, device: torch.device, max_bytes: int) -> None:
        self.device = device
        self.max_bytes = max_bytes
        self._modules: OrderedDict[str, LoadedModule] = OrderedDict()
        self._lock = Lock()
        self._loading = Lock()

    def __getitem__(self, key: str) -> Any:
        """Return a module that is in use."""
        return self._modules[key].module

    @property
    def on_device(self) -> list[str]:
        """The names of the modules on the device, the one used last at the end."""
        return [each.name for each in self._modules.values() if self._is_there(each)]

    def get(self, key: str, name: str, load: Callable[[], torch.nn.Module], hold: object) -> LoadedModule:
        """Return a module, which ``load`` loads if it is not there. It stays while ``hold`` is alive. Thread-safe.

        Raises:
            Exception: what ``load`` raises.
        """
        # one at a time: two jobs with one module must not load it twice
        with self._loading:
            with self._lock:
                found = self._modules.get(key)
            if found is None:
                found = LoadedModule(key, name, load())
            with self._lock:
                found.waiting.add(hold)
                self._modules[key] = found
                self._modules.move_to_end(key)
                self._drop_unused()
            return found

    def begin(self, loaded: LoadedModule) -> None:
        """Have a module on the device until ``end``. On the engine's thread.

        Raises:
            JobError: code ``oom``: the device has no room for it.
        """
        with self._lock:
            self._modules.move_to_end(loaded.key)
            loaded.users += 1
            try:
                self._drop_unused()
                self._make_room(0 if self._is_there(loaded) else loaded.nbytes)
                self._move(loaded)
            except BaseException:
                loaded.users -= 1
                raise

    def end(self, loaded: LoadedModule) -> None:
        """Let a module leave when others need its room. On the engine's thread."""
        loaded.users -= 1

    def leave_device(self) -> None:
        """Move the modules that no row uses off the device: another model needs it. On the engine's thread."""
        with self._lock:
            self._make_room(self.max_bytes)

    def _is_there(self, loaded: LoadedModule) -> bool:
        tensor = next(loaded.module.parameters())
        return bool(tensor.device.type == self.device.type)

    def _drop_unused(self) -> None:
        """Forget the modules used longest ago that no image uses, beyond the bound."""
        for here in (True, False):
            modules = [each for each in self._modules.values() if self._is_there(each) is here]
            total = sum(each.nbytes for each in modules)
            for each in modules:
                if total > self.max_bytes and not each.waiting:
                    del self._modules[each.key]
                    total -= each.nbytes
                    log.info("%s left memory", each.name)

    def _make_room(self, nbytes: int) -> None:
        """Move modules that wait for their rows to the host, until so many bytes fit on the device."""
        if self.device.type == "cpu":
            return
        there = [each for each in self._modules.values() if self._is_there(each)]
        total = sum(each.nbytes for each in there) + nbytes
        for each in there:
            if total > self.max_bytes and not each.users:
                each.module.to("cpu")
                total -= each.nbytes

    def _move(self, loaded: LoadedModule) -> None:
        try:
            loaded.module.to(self.device)
            return
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
        # outside the handler, whose traceback holds the tensors that were moved
        loaded.module.to("cpu")
        self._make_room(self.max_bytes)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            loaded.module.to(self.device)
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            loaded.module.to("cpu")
            raise JobError(
                "oom",
                f"no memory on the device for {loaded.name} of {loaded.nbytes / _GIGABYTE:.1f} GB; use a smaller one, "
                "or a device with more memory",
            ) from None
