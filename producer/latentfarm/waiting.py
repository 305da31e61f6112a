"""Why the jobs of a batch wait: it is paused, no worker serves its model, or other batches run first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from latentfarm.batch import BatchStatus
from latentfarm.batch_state import BatchState
from latentfarm.errors import InputError
from latentfarm.ledger import Ledger, WorkerRecord
from latentfarm.settings import DEFAULT_MODEL

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
    found = {each.batch: _reasons(ledger, each, workers, starting=starting) for each in left}
    return {batch: reasons for batch, reasons in found.items() if reasons}


def _reasons(ledger: Ledger, status: BatchStatus, workers: Workers, *, starting: bool) -> list[str]:
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
        return [*found, f"all workers of {status.model!r} stop and take no more jobs ({names}); {_cure(status.model)}"]
    if not found and not status.leased and (first := _batches_before(ledger, status)):
        found.append(
            f"batches of a higher priority run first ({_listed(first)}): `latentfarm set-priority {status.batch} N`"
        )
    return found


def _unserved(model: str, workers: Workers) -> str:
    if not workers:
        served = "no worker is running now"
    else:
        aliases = _listed(f"{alias} by {len(found)}" for alias, found in sorted(workers.items()))
        served = f"no worker serves {model!r} now (served: {aliases})"
    return f"{served}; {_cure(model)}; a worker counts once it has loaded its model"


def _cure(model: str) -> str:
    name = model if model == DEFAULT_MODEL else f"{model}=FOLDER_OR_HUB_ID"
    return f"start one with `latentfarm worker --model {name}`"


def _batches_before(ledger: Ledger, status: BatchStatus) -> list[str]:
    """Return the batches of the model that have jobs and a higher priority."""
    found = []
    for name in ledger.active_batches(status.model):
        try:
            record = ledger.batch(name)
        except InputError:
            # deleted meanwhile
            continue
        if record.priority > status.priority and not record.paused_by and record.pending + record.leased:
            found.append(name)
    return found


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - _MAX_NAMES
    return ", ".join(every[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
