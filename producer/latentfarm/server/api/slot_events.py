"""The slots of watched workers as an event."""

from __future__ import annotations

from pydantic_core import to_json

from latentfarm.ledger import Slot, SlotsReport
from latentfarm.server.http.sse import ServerEvent

#: browsers show any bytes that a worker sends as this
_JPEG = "data:image/jpeg;base64,"


def slots_event(report: SlotsReport) -> ServerEvent:
    """Return the event of a report."""
    body = {"worker": report.worker, "slots": [_slot(slot) for slot in report.slots]}
    return ServerEvent(to_json(body).decode(), "slots")


def _slot(slot: Slot) -> dict[str, object]:
    preview = f"{_JPEG}{slot.preview}" if slot.preview else None
    return {"job": slot.job, "step": slot.step, "steps": slot.steps, "preview": preview}
