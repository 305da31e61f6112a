"""The jobs in the running call of the device, in memory that survives the process. Only the standard library is used.

A process may be killed at any instruction of a write. So there are two places; each value has a number and a checksum
and is written to the place of the older one. A torn value fails its checksum, and the one before it counts.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

#: number of the value, kind, bytes of text, checksum of all three and of the text
_HEADER = struct.Struct("<QIII")
_COUNTED = struct.Struct("<QII")
_UNKNOWN, _SEVERAL, _LONE = range(3)

#: bytes of a record: two places for a thousand leases each, whose names have 80 characters at most
RECORD_BYTES = 256 * 1024


@dataclass(frozen=True)
class AtRisk:
    """Leases, by the job's name and the epoch. ``lone`` is true if one job alone was in the call."""

    leases: tuple[tuple[str, int], ...]
    lone: bool = False

    @property
    def suspect(self) -> str | None:
        """Return the name of the only job that can be the cause, or None if there are several or none."""
        return self.leases[0][0] if self.lone and len(self.leases) == 1 else None


class AtRiskRecord:
    """A value in a buffer of ``RECORD_BYTES`` that a process writes and the next one of its name reads."""

    def __init__(self, buffer: memoryview) -> None:
        half = len(buffer) // 2
        self._places = (buffer[:half], buffer[half:])
        self._written: AtRisk | None = None

    def write(self, value: AtRisk | None) -> None:
        """Replace the value; None means that it is unknown."""
        if value is not None and value == self._written:
            return
        text = "".join(f"{name} {epoch}\n" for name, epoch in value.leases).encode() if value else b""
        kind = _UNKNOWN if value is None else _LONE if value.lone else _SEVERAL
        if len(text) > len(self._places[0]) - _HEADER.size:
            # a part of the jobs would clear the others
            kind, text = _UNKNOWN, b""
        number = max(_read(place)[0] for place in self._places) + 1
        place = self._places[number % 2]
        counted = _COUNTED.pack(number, kind, len(text))
        place[: _HEADER.size] = bytes(_HEADER.size)
        place[_HEADER.size : _HEADER.size + len(text)] = text
        place[: _HEADER.size] = counted + zlib.crc32(text, zlib.crc32(counted)).to_bytes(4, "little")
        self._written = value

    def read(self) -> AtRisk | None:
        """Return the newest value that was written whole, or None if it is unknown."""
        _, kind, text = max(_read(place) for place in self._places)
        if kind == _UNKNOWN:
            return None
        pairs = (line.rpartition(" ") for line in text.decode().splitlines())
        return AtRisk(tuple((name, int(epoch)) for name, _, epoch in pairs), lone=kind == _LONE)


def _read(place: memoryview) -> tuple[int, int, bytes]:
    """Return number, kind and text of a value; zeros if it is torn or was never written."""
    number, kind, length, checksum = _HEADER.unpack_from(place)
    text = bytes(place[_HEADER.size : _HEADER.size + length])
    counted = bytes(place[: _COUNTED.size])
    if not number or len(text) != length or zlib.crc32(text, zlib.crc32(counted)) != checksum:
        return 0, _UNKNOWN, b""
    return number, kind, text
