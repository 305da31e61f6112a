"""The ledger: the Redis record of every job's state, changed only by the Lua scripts beside this file.

``_common.lua`` begins with the table of every key. A job is named ``<batch>/<index>``; times are milliseconds of
Redis ``TIME``; nothing here knows what a picture is.
"""

from latentfarm.ledger.ledger import BatchRecord, JobRecord, Lease, Ledger

__all__ = ["BatchRecord", "JobRecord", "Lease", "Ledger"]
