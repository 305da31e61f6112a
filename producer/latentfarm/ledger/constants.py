"""The numbers and words that the ledger's Lua scripts share with Python."""

from __future__ import annotations

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState, PausedBy
from latentfarm.job_state import INVALID_ROW, JobState
from latentfarm.ledger.records import Company
from latentfarm.limits import PART_JOBS

#: version of the data model; it rises with every change that older scripts would misread
SCHEMA = "5"
#: the key that has the version; every script declares it
SCHEMA_KEY = "{lf}:schema"
#: the key that had it up to schema 3, when keys began with "lf:"
OLD_SCHEMA_KEY = "lf:schema"
#: jobs in one string of state bytes
CHUNK_JOBS = 1_000_000
#: charged attempts after which a job's own error is final
MAX_ATTEMPTS = 3
#: jobs in one lease, commit, retry, finish or discard: the arguments of a script are limited
MAX_JOBS_PER_CALL = 1_000
#: priority of interactive batches
INTERACTIVE_PRIORITY = 900
#: share of failures that pauses a batch [default: 0.1]
DEFAULT_BUDGET = 0.1

#: a batch's rate is counted in slots; milliseconds, and how many make the rate
RATE_SLOT_MS, RATE_SLOTS = 10_000, 12
#: a worker's rate is counted in windows; milliseconds, and how many make the rate
WINDOW_MS, WINDOWS = 30_000, 4

#: error code of a job that was lost with its workers again and again
POISON = "poison"

#: constants of the scripts, by their names in Lua
LUA_CONSTANTS: dict[str, str | int] = {
    "SCHEMA": SCHEMA,
    "OLD_SCHEMA_KEY": OLD_SCHEMA_KEY,
    "CHUNK": CHUNK_JOBS,
    "PART": PART_JOBS,
    # exceeds every virtual time; with priorities up to 1,000 a double leaves a quarter of a lease
    "PRIORITY_STEP": 2**40,
    "MAX_ATTEMPTS": MAX_ATTEMPTS,
    # in the stream; Redis keeps a few more
    "MAX_EVENTS": 10_000,
    # that of batches whose jobs are not counted by owner, and how those of interactive batches begin
    "UNCOUNTED": f"{BatchKind.SUBMITTED}/",
    "INTERACTIVE_ACCOUNT": f"{BatchKind.INTERACTIVE}/",
    "INVALID_ROW": INVALID_ROW,
    "POISON": POISON,
    # until a job runs again after its first error or crash; doubled with each
    "RETRY_DELAY_MS": 1_000,
    # a crash names the job; a loss may have any cause, and the job may only have waited, so more of them are needed
    "POISON_CRASHES": 3,
    "POISON_LOSSES": 6,
    # the budget is spent after so many failures without a success, or checked once so many jobs have ended
    "BUDGET_FIRST_FAILURES": 50,
    "BUDGET_MIN_JOBS": 500,
    "RATE_SLOT_MS": RATE_SLOT_MS,
    "RATE_KEEP_S": (RATE_SLOTS + 6) * RATE_SLOT_MS // 1000,
    "WINDOW_MS": WINDOW_MS,
    "WINDOWS": WINDOWS,
    **{f"COMPANY_{company.name}": int(company) for company in Company},
    **{state.name: int(state) for state in JobState},
    **{f"BATCH_{state.name}": state.value for state in BatchState},
    **{f"PAUSED_BY_{by.name}": by.value for by in PausedBy},
}
