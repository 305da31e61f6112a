"""The ledger: the Redis record of every job's state, changed only by the Lua scripts beside this file.

``_common.lua`` begins with the table of every key. A job is named ``<batch>/<index>``; times are milliseconds of
Redis ``TIME``; nothing here knows what a picture is.
"""

from latentfarm.ledger.connection import Cancellations
from latentfarm.ledger.heads import BatchHead
from latentfarm.ledger.ledger import MAX_JOBS_PER_CALL, Ledger
from latentfarm.ledger.records import BatchRecord, JobRecord, Lease, Reservation, Speed
from latentfarm.ledger.restoration import Restoration
from latentfarm.ledger.workers import WorkerRecord

__all__ = [
    "MAX_JOBS_PER_CALL",
    "BatchHead",
    "BatchRecord",
    "Cancellations",
    "JobRecord",
    "Lease",
    "Ledger",
    "Reservation",
    "Restoration",
    "Speed",
    "WorkerRecord",
]
