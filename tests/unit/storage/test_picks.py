"""The journal of picks, with writers, readers and mergers that are interleaved, and die, between any two requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentfarm.ledger import Ledger
from latentfarm.storage import picks
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import parse_picks_key, picks_key
from latentfarm.storage.pick_state import Pick, PickChange, PickLine, PickState, parse_lines
from latentfarm.storage.picks import PickJournal

pytestmark = pytest.mark.unit


class KilledError(BaseException):
    """The process ends."""


class Turns:
    """Lets one of several threads at a time send one request to the bucket."""

    def __init__(self) -> None:
        self._local = threading.local()

    def start(self, work: Callable[[], None]) -> Actor:
        return Actor(self, work)

    def enter(self, actor: Actor) -> None:
        self._local.actor = actor

    def request(self) -> None:
        """Wait for the turn, if this thread is an actor."""
        actor = getattr(self._local, "actor", None)
        if actor is not None:
            actor.wait()


class Actor:
    """A process: it stops before each of its requests, until it is stepped or killed."""

    def __init__(self, turns: Turns, work: Callable[[], None]) -> None:
        self._waits, self._may_go = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self.ended = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(turns, work), daemon=True)
        self._thread.start()
        self._waits.acquire()

    def _run(self, turns: Turns, work: Callable[[], None]) -> None:
        turns.enter(self)
        try:
            work()
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001 - the test reports it
            self.error = error
        self.ended = True
        self._waits.release()

    def wait(self) -> None:
        self._waits.release()
        self._may_go.acquire()
        if self._killed:
            raise KilledError

    def step(self, *, kill: bool = False) -> None:
        self._killed = self._killed or kill
        self._may_go.release()
        self._waits.acquire()

    def finish(self) -> None:
        while not self.ended:
            self.step()


class MemoryBucket:
    """A store with S3's consistency: a request is atomic; a deletion of several objects is not."""

    def __init__(self, turns: Turns) -> None:
        self.objects: dict[str, bytes] = {}
        self.written: list[bytes] = []
        self._turns = turns

    def keys(self, prefix: str) -> Iterator[str]:
        self._turns.request()
        return iter(sorted(key for key in self.objects if key.startswith(prefix)))

    def get(self, key: str) -> bytes:
        self._turns.request()
        if key not in self.objects:
            raise MissingObjectError(key)
        return self.objects[key]

    def put(self, key: str, body: bytes, *, content_type: str) -> None:
        assert content_type
        self._turns.request()
        self.objects[key] = body
        self.written.append(body)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self._turns.request()
            self.objects.pop(key, None)


class Clock:
    """A ledger that has a clock, which may run backwards, and the batch."""

    def __init__(self, times: Iterator[int]) -> None:
        self._times = times

    def now_us(self) -> int:
        return next(self._times)

    def batch_summaries(self, _names: list[str]) -> list[Any]:
        return [type("Summary", (), {"state": "open"})]


def journal_of(bucket: MemoryBucket) -> PickJournal:
    return PickJournal(cast("Bucket", bucket), "b")


def images_of(state: PickState) -> dict[int, Any]:
    return dict(state._images)


def joined(lines: Iterable[PickLine]) -> PickState:
    state = PickState()
    for line in lines:
        state.join(line)
    return state


@pytest.fixture(autouse=True)
def _merge_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picks, "_MAX_OBJECTS", 2)

    # on threads of a pool, requests would not be those of an actor
    def read(bucket: Bucket, keys: list[str]) -> Iterator[tuple[str, bytes]]:
        return ((key, bucket.get(key)) for key in keys)

    monkeypatch.setattr(picks, "_read", read)


CHANGES = st.lists(
    st.builds(
        PickChange,
        st.integers(0, 2),
        st.just(1),
        st.sampled_from([None, *Pick]),
        st.sampled_from([None, 1, 5]),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda change: change.index,
)


@settings(max_examples=150)
@given(
    scripts=st.lists(st.lists(st.none() | CHANGES, min_size=1, max_size=4), min_size=2, max_size=4),
    choices=st.lists(st.integers(0, 99), min_size=20, max_size=120),
    times=st.lists(st.integers(1, 50), min_size=40, max_size=40),
)
def test_no_interleaving_of_writes_merges_crashes_and_reads_loses_or_resurrects_a_decision(
    scripts: list[list[list[PickChange] | None]], choices: list[int], times: list[int]
) -> None:
    turns = Turns()
    bucket = MemoryBucket(turns)
    ledger, acknowledged = cast("Ledger", Clock(iter(times))), PickState()
    actors = [turns.start(partial(run, script, journal_of(bucket), ledger, acknowledged)) for script in scripts]
    for choice in choices:
        running = [actor for actor in actors if not actor.ended]
        if running:
            running[choice % len(running)].step(kill=choice >= 95)
    for actor in actors:
        actor.finish()
    assert [actor.error for actor in actors if actor.error is not None] == []
    everything = joined(line for body in bucket.written for line in parse_lines(body, ""))
    final = journal_of(bucket)
    final.refresh()
    assert images_of(final._state) == images_of(everything)
    assert final.counts() == everything.counts()


def run(
    script: Sequence[Sequence[PickChange] | None], journal: PickJournal, ledger: Ledger, acknowledged: PickState
) -> None:
    """Be a process that reads (None) and writes; check that it sees what any process has seen before it began."""
    for changes in script:
        # no request is sent here
        before = images_of(acknowledged)
        if changes is None:
            journal.refresh()
        else:
            journal.write(ledger, changes)
        for change in changes or ():
            decided = journal._state.decision(change.index)
            # it overrules what it has seen, even if the clock runs backwards
            assert (decided and decided.pick, decided and decided.rating) == (change.pick, change.rating)
        seen = images_of(journal._state)
        for index, image in before.items():
            assert (seen[index].pick, seen[index].rating) >= (image.pick, image.rating)
        for line in journal._state.lines():
            acknowledged.join(line)


def keys_of(sizes: list[int]) -> set[str]:
    return {picks_key("b", 1, f"{at:016x}", size) for at, size in enumerate(sizes)}


def merged(sizes: list[int]) -> list[int]:
    return sorted(parse_picks_key(key) or 0 for key in picks._to_merge(keys_of(sizes)))


def test_a_much_larger_object_is_not_merged_with_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picks, "_MAX_OBJECTS", 3)
    assert merged([1, 1, 1]) == []
    assert merged([1, 1, 1, 100_000]) == [1, 1, 1]
    assert merged([1, 1, 1, 12, 100_000]) == [1, 1, 1, 12]
    assert merged([1, 100_000, 100_000, 100_000]) == [1, 100_000, 100_000, 100_000]
    # none is within reach of the smaller ones
    assert merged([1, 100, 10_000, 1_000_000]) == []


@given(st.lists(st.integers(1, picks.MAX_DECIDED), min_size=1, max_size=100))
def test_the_objects_stay_few_for_all_sizes(sizes: list[int]) -> None:
    found: list[int] = []
    for at, size in enumerate(sizes):
        found.append(size)
        replaced = merged(found)
        for each in replaced:
            found.remove(each)
        if replaced:
            found.append(min(sum(replaced), picks.MAX_DECIDED))
        assert len(found) <= 15, at


def test_a_reader_reads_each_object_once_and_sees_what_others_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket(Turns())
    ledger = cast("Ledger", Clock(iter(range(1, 100))))
    writer, reader = journal_of(bucket), journal_of(bucket)
    for index in range(10):
        writer.write(ledger, [PickChange(index, 1, Pick.PICKED)])
        reader.refresh()
    assert reader.counts().picked == 10
    monkeypatch.setattr(bucket, "get", pytest.fail)
    reader.refresh()
    assert len(bucket.objects) <= 3


def test_the_picks_of_a_deleted_batch_do_not_count_for_the_next_one_of_its_name() -> None:
    bucket = MemoryBucket(Turns())
    ledger = cast("Ledger", Clock(iter(range(1, 100))))
    old, new = journal_of(bucket), journal_of(bucket)
    old.write(ledger, [PickChange(0, 1, Pick.PICKED)])
    bucket.objects.clear()
    old.refresh()
    assert old.decisions() == []
    old.write(ledger, [PickChange(0, 1, Pick.PICKED)])
    bucket.objects.clear()
    new.write(ledger, [PickChange(5, 2, Pick.REJECTED)])
    old.refresh()
    assert [each.index for each in old.decisions()] == [5]


def test_foreign_keys_below_picks_are_ignored() -> None:
    bucket = MemoryBucket(Turns())
    bucket.objects["batches/b/picks/README"] = b"mine"
    journal = journal_of(bucket)
    journal.refresh()
    assert journal.decisions() == []
