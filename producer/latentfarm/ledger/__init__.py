"""The ledger: the Redis record of every job's state, changed only by the Lua scripts beside this file.

``_common.lua`` begins with the table of every key. A job is named ``<batch>/<index>``; times are milliseconds of
Redis ``TIME``; nothing here knows what a picture is.
"""

from latentfarm.ledger.batch_summaries import BatchSummary
from latentfarm.ledger.cancellations import Cancellations
from latentfarm.ledger.ledger import MAX_JOBS_PER_CALL, Ledger
from latentfarm.ledger.records import BatchRecord, JobRecord, Lease, Reservation, Throughput
from latentfarm.ledger.restore import Restoration
from latentfarm.ledger.workers import WorkerRecord

__all__ = [
    "MAX_JOBS_PER_CALL",
    "BatchRecord",
    "BatchSummary",
    "Cancellations",
    "JobRecord",
    "Lease",
    "Ledger",
    "Reservation",
    "Restoration",
    "Throughput",
    "WorkerRecord",
]
