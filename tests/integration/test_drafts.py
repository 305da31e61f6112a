"""Drafts of a batch are selected, priced, finished and discarded, and to repeat any of it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.drafted_jobs import EVALUATIONS, OF, drafted_batch, receipt, render

from latentfarm import Batch, Farm, InputError, ReadOptions
from latentfarm.batch_drafts import DraftSelection
from latentfarm.batch_state import BatchState
from latentfarm.errors import ConflictError, NotFoundError
from latentfarm.job_state import JobState
from latentfarm.ledger import Ledger
from latentfarm.recovery.recover import recover_batch
from latentfarm.storage.keys import batch_prefix
from latentfarm.storage.pick_state import Pick

pytestmark = pytest.mark.integration

ALL = DraftSelection()


def scores(index: int) -> dict[str, Any]:
    """Return the scores of a draft: sharper with its index, and every other one is near the one before it."""
    return {"sharpness": index / 100, "phash": f"{index // 2 * 0x9E3779B97F4A7C15 % (1 << 64) ^ index % 2:016x}"}


def states(batch: Batch) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for job in batch.jobs():
        found.setdefault(job.state, []).append(int(job.id.rpartition("/")[2]))
    return found


def test_drafts_are_finished_and_discarded_and_a_second_time_changes_nothing(farm: Farm) -> None:
    batch = drafted_batch(farm, ["a", "b", "c", "d", "e"])
    assert batch.status().state is BatchState.DRAFTED
    batch.pick([0], "picked", rating=4)
    batch.pick([4], "rejected")
    assert batch.finish(DraftSelection(pick=Pick.PICKED)).changed == 1
    assert batch.status().state is BatchState.OPEN
    [report, again] = [batch.finish(DraftSelection(indices=(0, 2))) for _ in range(2)]
    assert (report.drafts, report.selected, report.indices, report.before, report.changed) == (4, 1, (2,), 1, 1)
    assert (again.drafts, again.selected, again.before, again.changed) == (3, 0, 2, 0)
    rejected = DraftSelection(pick=Pick.REJECTED)
    assert [batch.discard(rejected).changed for _ in range(2)] == [1, 0]
    assert states(batch) == {"pending": [0, 2], "drafted": [1, 3], "cancelled": [4]}
    render(farm)
    assert batch.discard(ALL).indices == (1, 3)
    assert (batch.status().state, batch.discard(ALL).changed, batch.finish(ALL).changed) == (BatchState.COMPLETE, 0, 0)
    assert states(batch) == {"done": [0, 2], "cancelled": [1, 3, 4]}
    # the pick is about the image that was made of the draft as well
    [picked] = batch.results(picks=["picked"])
    assert (picked["index"], picked["state"], picked["rating"]) == (0, "done", 4)
    assert list(farm.bucket.keys(f"{batch_prefix('cats')}drafts/")) == []


def test_the_best_are_finished_by_a_number_without_near_ones_and_those_before_count(farm: Farm) -> None:
    batch = drafted_batch(farm, [f"cat {index}" for index in range(10)], scores=scores)
    batch.finish(DraftSelection(indices=(7,)))
    # 9 and 7 are sharper than 8 and 6, which are near them; 7 is finished already
    best = DraftSelection(top=3, by="sharpness", distinct=1)
    report = batch.finish(best)
    assert (report.indices, report.before, report.changed) == ((5, 9), 1, 2)
    render(farm, scores=lambda _: {"sharpness": 0.0})
    # also when their images are done, with other scores
    assert batch.finish(best).changed == 0
    assert batch.finish(DraftSelection(top=4, by="scores.sharpness", distinct=1)).indices == (3,)
    assert batch.finish(DraftSelection(top=0.5, by="sharpness")).indices == (6, 8)
    assert batch.discard(DraftSelection(top=1, by="sharpness")).indices == (4,)
    assert batch.discard(DraftSelection(top=1, by="sharpness")).changed == 0
    assert states(batch)["drafted"] == [0, 1, 2]


def test_an_interrupted_selection_of_the_best_is_continued(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = drafted_batch(farm, [f"cat {index}" for index in range(1_200)], scores=scores, stored=False)
    best, finish = DraftSelection(top=0.1, by="sharpness", distinct=1), Ledger.finish
    wanted = batch.price_drafts(best).indices
    monkeypatch.setattr(Ledger, "finish", lambda ledger, name, found: finish(ledger, name, found[: len(found) // 2]))
    interrupted = batch.finish(best)
    monkeypatch.undo()
    assert (len(wanted), interrupted.indices, interrupted.changed) == (120, wanted, 60)
    continued = batch.finish(best)
    assert (continued.before, continued.changed) == (60, 60)
    assert [*farm.ledger.indices("cats", JobState.PENDING)] == list(wanted)


def test_columns_and_ratings_order_drafts_as_scores_do(farm: Farm) -> None:
    rows = [{"prompt": f"cat {index}", "aesthetic": str(7 - index)} for index in range(4)]
    batch = farm.submit(rows, batch="cats", draft=0.3, reading=ReadOptions(keep_columns=True))
    render(farm)
    batch.pick([2], rating=5)
    batch.pick([1], rating=3)
    assert [line["index"] for line in batch.drafts(DraftSelection(top=3, by="columns.aesthetic"))] == [0, 1, 2]
    assert [line["index"] for line in batch.drafts(DraftSelection(top=3, by="rating"))] == [2, 1, 0]
    assert [line["index"] for line in batch.drafts()] == [0, 1, 2, 3]


def test_work_is_priced_by_the_receipts_and_by_what_workers_have_measured(farm: Farm) -> None:
    batch = drafted_batch(farm, [f"cat {index}" for index in range(10)])
    priced = batch.price_drafts(DraftSelection(indices=(2, 3)))
    assert priced.price is not None
    assert (priced.changed, states(batch)["drafted"]) == (0, list(range(10)))
    found = priced.price.model_dump()
    assert {name: work["evaluations"] for name, work in found.items()} == {
        "made": 10 * EVALUATIONS,
        "finish": 2 * (OF - EVALUATIONS),
        "saved": 8 * (OF - EVALUATIONS),
    }
    assert [work["gpu_hours"] for work in found.values()] == [None] * 3
    # an image of 64 x 64 pixels with guidance takes 36 s
    measured = {"images": 1.0, "work": 64 * 64 * OF * 2.0, "busy_s": 36.0, "size_bytes": 1.0, "pixels": 64 * 64.0}
    farm.ledger.heartbeat("mini", "worker-a", measured)
    batch.finish(DraftSelection(indices=(2,)))
    batch.discard(DraftSelection(indices=(9,)))
    again = batch.price_drafts(DraftSelection(indices=(2, 3))).price
    assert again is not None
    hours = [again.made.gpu_hours, again.finish.gpu_hours, again.saved.gpu_hours]
    assert hours == pytest.approx([10 * 0.01 * 0.3, 0.01 * 0.7, 7 * 0.01 * 0.7])


@pytest.mark.parametrize(
    ("selection", "error", "message"),
    [
        ({"indices": (0, 1)}, ConflictError, "job cats/1 is failed; run `latentfarm retry`, or leave it out"),
        ({"indices": (0, 2)}, ConflictError, "job cats/2 is cancelled: its draft was discarded; submit its row again"),
        ({"indices": (0, 4)}, ConflictError, "job cats/4 is pending, no draft yet; wait for it, or leave it out"),
        ({"indices": (0, 5)}, NotFoundError, "job cats/5 does not exist; the batch has the jobs 0 to 4"),
        ({"indices": (-1,)}, NotFoundError, "job cats/-1 does not exist"),
        ({"top": 1, "by": "sharp"}, InputError, "no draft of cats has the number 'sharp'; write sharpness or rating"),
        ({"distinct": 6}, InputError, "no draft of cats has a perceptual hash, scores.phash; leave out distinct"),
        ({"top": 1.5, "by": "x"}, InputError, "top 1.5: write a share below 1 such as 0.1, or a number of drafts"),
        ({"top": -1, "by": "x"}, InputError, "top -1: write a share below 1"),
        ({"top": 5}, InputError, "top 5: write by which number"),
        ({"by": "x"}, InputError, "by 'x' orders drafts, of which none is left out; write top or distinct as well"),
        ({"distinct": 65}, InputError, "distinct 65: write the bits in which two hashes differ, 0 to 64"),
    ],
)
def test_what_cannot_be_selected_is_refused_with_the_cure_and_nothing_changes(
    farm: Farm, selection: dict[str, Any], error: type[Exception], message: str
) -> None:
    batch = farm.submit(["a", "b", "c", "d", "e"], batch="cats", draft=0.3, num_inference_steps=OF)
    drafted, failed, discarded, last, waiting = farm.ledger.lease("mini", "worker-b", 5, lease_s=60)
    farm.ledger.commit(
        [(lease, receipt(farm, lease, lambda _: {"sharpness": 1})) for lease in (drafted, discarded, last)]
    )
    farm.ledger.fail(failed, {"code": "nan", "message": "not finite"})
    farm.ledger.release([waiting])
    batch.discard(DraftSelection(indices=(2,)))
    before = states(batch)
    assert before == {"drafted": [0, 3], "failed": [1], "cancelled": [2], "pending": [4]}
    for call in (batch.price_drafts, batch.finish):
        with pytest.raises(error) as refused:
            call(DraftSelection(**selection))
        assert message in str(refused.value)
    assert states(batch) == before


def test_a_job_of_which_no_draft_is_left_is_named_with_its_state(farm: Farm) -> None:
    batch = drafted_batch(farm, ["a", "b"])
    batch.finish(DraftSelection(indices=(0,)))
    with pytest.raises(ConflictError, match=r"job cats/0 is pending: its draft is being finished; leave it out"):
        batch.discard(DraftSelection(indices=(0, 1)))
    render(farm)
    with pytest.raises(ConflictError, match=r"job cats/0 is done, no draft; leave it out"):
        batch.discard(DraftSelection(indices=(0, 1)))
    assert states(batch) == {"done": [0], "drafted": [1]}
    batch.cancel()
    assert batch.finish(ALL).changed == 0
    with pytest.raises(ConflictError, match=r"job cats/1 is cancelled: its draft was discarded"):
        batch.finish(DraftSelection(indices=(1,)))


def test_after_the_loss_of_the_ledger_drafts_keep_their_picks_and_finish_is_repeated(farm: Farm) -> None:
    batch = drafted_batch(farm, ["a", "b", "c"], scores=scores)
    batch.pick([0], "picked")
    batch.pick([2], "rejected", rating=1)
    picked = DraftSelection(pick=Pick.PICKED)
    batch.finish(picked)
    batch.discard(DraftSelection(indices=(2,)))
    farm.ledger.redis.flushall()
    recover_batch(farm.ledger, farm.bucket, "cats")
    # the results of its part were not stored since, so nothing proves that it was discarded: it is drafted again
    assert states(batch) == {"drafted": [0, 1], "pending": [2]}
    assert [(each.index, each.pick) for each in batch.picks()] == [(0, "picked")]
    assert [batch.finish(picked).changed for _ in range(2)] == [1, 0]
    render(farm, scores=scores)
    assert [(line["state"], line.get("pick")) for line in batch.results()] == [
        ("done", "picked"),
        ("drafted", None),
        ("drafted", None),
    ]
    # the finished one counts, and its draft was less sharp than the others
    assert batch.price_drafts(DraftSelection(top=1, by="sharpness")).indices == (2,)
    assert batch.price_drafts(DraftSelection(top=3, by="sharpness")).before == 1
