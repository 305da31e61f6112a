"""The ledger: the Redis record of every job's state. Only the Lua scripts in ``scripts/`` change it.

``scripts/_common.lua`` begins with the data model. A job is named ``<batch>/<index>``. Times are milliseconds of Redis
``TIME``. This package knows nothing of buckets and images.
"""

from latentfarm.ledger.cancellations import Cancellations
from latentfarm.ledger.constants import MAX_JOBS_PER_CALL
from latentfarm.ledger.ledger import Ledger
from latentfarm.ledger.records import BatchRecord, BatchSummary, Company, JobRecord, Lease, Reservation, Snapshot
from latentfarm.ledger.restore import Restoration
from latentfarm.ledger.workers import Throughput, WorkerRecord

__all__ = [
    "MAX_JOBS_PER_CALL",
    "BatchRecord",
    "BatchSummary",
    "Cancellations",
    "Company",
    "JobRecord",
    "Lease",
    "Ledger",
    "Reservation",
    "Restoration",
    "Snapshot",
    "Throughput",
    "WorkerRecord",
]
