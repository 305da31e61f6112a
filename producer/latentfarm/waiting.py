"""Why the jobs of a batch wait: it is paused, no worker serves its model, or other batches run first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from latentfarm.batch_state import BatchState
from latentfarm.batch_status import BatchStatus
from latentfarm.ledger import BatchSummary, Ledger, WorkerRecord
from latentfarm.names import BUNDLED_MODELS

#: aliases and batches that are listed one by one
_MAX_NAMES = 10
_UNFINISHED = {
    BatchState.DELETING: "is being deleted; if that was interrupted: `latentfarm delete {0}`",
    BatchState.RECOVERING: "is being rebuilt from the bucket; if that was interrupted: `latentfarm recover {0}`",
}

Workers = Mapping[str, Sequence[WorkerRecord]]


def wait_reasons(ledger: Ledger, statuses: Iterable[BatchStatus], *, starting: bool = False) -> dict[str, list[str]]:
    """Return by batch why its jobs wait, each reason with its cure. Batches whose jobs run or have ended are left out.

    Args:
        ledger: the ledger of the batches.
        statuses: their progress.
        starting: the caller has started workers, which may not serve yet.
    """
    left = [each for each in statuses if not each.is_final]
    if not left:
        return {}
    workers: dict[str, list[WorkerRecord]] = {}
    for worker in ledger.worker_records():
        workers.setdefault(worker.model, []).append(worker)
    rivals: dict[str, list[BatchSummary]] = {}
    found: dict[str, list[str]] = {}
    for status in left:
        reasons = _reasons(status, workers, starting=starting)
        # while workers start, no other batch is in the way
        if not reasons and status.model in workers and status.pending and not status.leased:
            if status.model not in rivals:
                rivals[status.model] = ledger.batch_summaries(ledger.active_batches(status.model))
            reasons = _batches_before(status, rivals[status.model])
        if reasons:
            found[status.batch] = reasons
    return found


def _reasons(status: BatchStatus, workers: Workers, *, starting: bool) -> list[str]:
    """Return the reasons that are no other batches."""
    if status.state in _UNFINISHED:
        return [f"the batch {_UNFINISHED[status.state].format(status.batch)}"]
    found = []
    if status.paused_by:
        found.append(f"the batch is paused ({status.paused}): `latentfarm resume {status.batch}`")
    if not status.pending:
        return found
    serving = workers.get(status.model, ())
    if not serving:
        return found if starting else [*found, _unserved(status.model, workers)]
    if all(worker.draining for worker in serving):
        names = _listed(worker.name for worker in serving)
        found.append(f"all workers of {status.model!r} stop and take no more jobs ({names}); {_cure(status.model)}")
    return found


def _unserved(model: str, workers: Workers) -> str:
    if not workers:
        served = "no worker is running now"
    else:
        aliases = _listed(f"{alias} by {len(found)}" for alias, found in sorted(workers.items()))
        served = f"no worker serves {model!r} now (served: {aliases})"
    return f"{served}; {_cure(model)}; a worker counts once it has loaded its model"


def _cure(model: str) -> str:
    name = model if model in BUNDLED_MODELS else f"{model}=FOLDER_OR_HUB_ID"
    return f"start one with `latentfarm worker --model {name}`"


def _batches_before(status: BatchStatus, rivals: Iterable[BatchSummary]) -> list[str]:
    """Return the reason that is the batches of the model with a higher priority, if they have jobs."""
    first = [each.name for each in rivals if each.priority > status.priority and each.left and not each.paused]
    if not first:
        return []
    return [f"batches of a higher priority run first ({_listed(first)}): `latentfarm set-priority {status.batch} N`"]


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - _MAX_NAMES
    return ", ".join(every[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
