"""The ledger: the Redis record of every job's state. Only the Lua scripts in ``scripts/`` change it.

``scripts/_common.lua`` begins with the data model. A job is named ``<batch>/<index>``. Times are milliseconds of Redis
``TIME``. This package knows nothing of buckets and images.
"""

from latentfarm.ledger.constants import INTERACTIVE_PRIORITY, MAX_JOBS_PER_CALL
from latentfarm.ledger.events import Event
from latentfarm.ledger.ledger import Ledger
from latentfarm.ledger.live_reports import LiveReport, LiveReports
from latentfarm.ledger.records import BatchRecord, BatchSummary, Company, JobRecord, Lease, Reservation, Snapshot
from latentfarm.ledger.restore import Restoration
from latentfarm.ledger.slot_reports import Slot, SlotReports, SlotsReport
from latentfarm.ledger.worker_signals import WorkerSignal, WorkerSignals
from latentfarm.ledger.workers import HeartbeatReply, ModelRecord, Throughput, WorkerRecord

__all__ = [
    "INTERACTIVE_PRIORITY",
    "MAX_JOBS_PER_CALL",
    "BatchRecord",
    "BatchSummary",
    "Company",
    "Event",
    "HeartbeatReply",
    "JobRecord",
    "Lease",
    "Ledger",
    "LiveReport",
    "LiveReports",
    "ModelRecord",
    "Reservation",
    "Restoration",
    "Slot",
    "SlotReports",
    "SlotsReport",
    "Snapshot",
    "Throughput",
    "WorkerRecord",
    "WorkerSignal",
    "WorkerSignals",
]
