"""Images that begin alike: one of them makes the evaluations that they have in common, and the others go on from there.

What is the same is found by the numbers that determine each evaluation, so an image has the same bytes as alone. An
image waits for another one, its leader, only while that is in this engine and has not made the last evaluation that
both have in common. Urgent images wait for none. Images that had trouble neither lead nor follow.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from latentfarm.job import LATER_FIELDS
from latentfarm.recent_cache import RecentCache
from latentfarm_worker.engine.admission import AdmissionQueue
from latentfarm_worker.engine.continuation import columns_read, made_by
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint, RenderSpan
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.parking import copy_to_host
from latentfarm_worker.engine.running_images import RunningImages
from latentfarm_worker.models.base import Family

#: bytes of beginnings that stay in host memory: one of 512 x 512 pixels takes 0.1 to 0.5 MB
_MAX_BYTES = 128 * 1024**2
#: keys of beginnings, and batches among whose images some began alike, that are remembered
_KEYS, _BATCHES = 4096, 64
#: images that may wait for a leader, by slot
_HELD_BY_SLOT = 4
#: the column of ``ImageState.table`` with the guidance scale
_GUIDANCE = 2


class _Beginning(NamedTuple):
    """The state after the first evaluations of an image: where they were made, and the ring columns on the host."""

    span: RenderSpan
    columns: dict[int, torch.Tensor]

    @property
    def size(self) -> int:
        return sum(column.nbytes for column in self.columns.values())


@dataclass(eq=False)
class _Course:
    """What determines the evaluations of the first stage of an image.

    Attributes:
        key: equal for images that may begin alike.
        chain: digests over all that determines the state after each number of evaluations; empty until it is needed.
        turns: numbers of evaluations after which others may take another way: where guidance ends, for example.
        stops: numbers of evaluations after which the state is kept for others.
        expects: whether it is kept after all turns, for images that may come.
    """

    key: bytes
    chain: list[bytes] = field(default_factory=list)
    turns: frozenset[int] = frozenset()
    stops: set[int] = field(default_factory=set)
    expects: bool = False


class Forks:
    """Finds images of an engine that begin alike. It belongs to the engine's thread.

    Args:
        family: the loaded model.
        running, queue: the images of the engine.
        slots: those of the engine.
    """

    def __init__(
        self, family: Family, running: RunningImages, queue: AdmissionQueue[ImageState], *, slots: int
    ) -> None:
        self._family = family
        self._running = running
        self._queue = queue
        self._most_held = _HELD_BY_SLOT * slots
        self._courses: WeakKeyDictionary[ImageState, _Course] = WeakKeyDictionary()
        #: by the rows of a call, and by the digest in a chain
        self._kept: RecentCache[tuple[int, bytes], _Beginning] = RecentCache(_MAX_BYTES, size=lambda kept: kept.size)
        #: the keys of what was kept
        self._keys: RecentCache[bytes, int] = RecentCache(_KEYS)
        #: batches whose images leave their beginnings to those that come later
        self._batches: RecentCache[str, int] = RecentCache(_BATCHES)

    def add(self, image: ImageState) -> None:
        """Consider an image that is about to be queued."""
        # what is made of others on the way is not shared; a checkpoint may be of another device, which rounds otherwise
        own = image.job.save_intermediates or image.job.partial_images
        if not own and image.first is None and image.checkpoint is None:
            self._courses[image] = _Course(_key_of(self._family, image))

    # -- before a step ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Decide which waiting images go on from a beginning that is kept, and which wait for a leader."""
        waiting = [image for image in self._queue if image in self._courses]
        if not waiting:
            return
        running = [image for image in self._running if image in self._courses]
        counts = Counter(self._courses[image].key for image in (*running, *waiting))
        leaders: defaultdict[Hashable, list[ImageState]] = defaultdict(list)
        for image in running:
            leaders[self._courses[image].key].append(image)
        held = 0
        for image in waiting:
            self._check_rows(image)
            key = self._courses[image].key
            new = image.cohort is None and not image.begun
            if new and (counts[key] > 1 or self._keys.get(key)):
                image.held = self._follow(image, leaders[key], may_wait=held < self._most_held)
            else:
                image.held = False
            held += image.held
            if not image.held:
                leaders[key].append(image)
                self._expect_others(image)

    def _follow(self, image: ImageState, leaders: Iterable[ImageState], *, may_wait: bool) -> bool:
        """Let an image go on from the longest beginning that is kept; or return True, if a leader will have more."""
        course = self._course(image)
        # a draft makes its last evaluation itself, of which it is an estimate
        most = _evaluations(image) - (image.draft_at is not None and image.draft_at <= image.plan.num_evaluations)
        leader, common = None, 0
        for each in leaders:
            if each.cohort is None:
                shared = min(_common(course, self._course(each)), most, _evaluations(each))
                if shared > max(common, each.step_index):
                    leader, common = each, shared
        waits = may_wait and leader is not None and not image.urgent
        if self._begin_with_kept(image, course, most, least=common if waits else 1):
            return False
        if waits and leader is not None:
            self._courses[leader].stops.add(common)
            self._batches.put(image.job.batch, common)
        return waits

    def _begin_with_kept(self, image: ImageState, course: _Course, most: int, *, least: int) -> bool:
        """Let an image go on from the longest beginning of ``least`` to ``most`` evaluations; return whether one is."""
        rows = self._rows_of_call(image)
        for done in range(most, least - 1, -1):
            kept = self._kept.get((rows, course.chain[done]))
            if kept is not None and kept.columns.keys() >= {*columns_read(image.plan.ring_coefficients, done)}:
                self._fork(image, kept, done)
                return True
        return False

    def _fork(self, image: ImageState, kept: _Beginning, done: int) -> None:
        """Let an image go on from a beginning, before the images that have none."""
        image.checkpoint = image.given = ImageCheckpoint(
            made=made_by(self._family, image)._replace(spans=(kept.span,)),
            stage=1,
            step_index=done,
            evaluations=done,
            columns=kept.columns,
            table=image.table(),
        )
        image.forked = done
        image.restart()
        self._batches.put(image.job.batch, done)
        self._queue.remove(image)
        self._queue.resume(image)

    def _check_rows(self, image: ImageState) -> None:
        """Let an image begin again if calls of the model have other rows by now than in the beginning that it has.

        So its bytes are those of one micro-batch.
        """
        begun = image.checkpoint
        if begun is None or begun is not image.given or not image.forked:
            return
        if begun.made.spans[-1].micro_batch != self._rows_of_call(image):
            image.checkpoint, image.given, image.forked = None, None, 0
            image.restart()

    def _expect_others(self, image: ImageState) -> None:
        """Let an image leave its state where others of its batch may take another way, if some have."""
        course = self._courses[image]
        if not course.expects and self._batches.get(image.job.batch):
            course.expects = True
            course.stops |= self._course(image).turns

    # -- within a step ---------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Keep the states that others wait for, or may come for. It waits for the device if there is one."""
        batch = self._running.batch
        if batch is None:
            return
        stopping = [image for image in self._running if image in self._courses and self._stops(image)]
        if not stopping:
            return
        waiting = [image for image in self._queue if image.held]
        columns = []
        for image in stopping:
            key = self._courses[image].key
            plans = [each.plan for each in waiting if self._courses[each].key == key]
            columns.append(batch.columns(image, plans))
        host = iter(copy_to_host([column for each in columns for column in each.values()]))
        for image, each in zip(stopping, columns, strict=True):
            course = self._courses[image]
            kept = _Beginning(image.spans[0]._replace(stop=image.step_index), {at: next(host) for at in each})
            self._kept.put((batch.micro_batch, course.chain[image.step_index]), kept)
            self._keys.put(course.key, image.step_index)

    def _stops(self, image: ImageState) -> bool:
        """Return whether the state of an image is kept now."""
        course = self._courses[image]
        if image.step_index not in course.stops:
            return False
        course.stops.discard(image.step_index)
        # an image that went on after memory ran out may have been made by calls of other rows
        alike = {span.micro_batch for span in image.spans} == {self._rows_of_call(image)}
        return alike and image.cohort is None and image.step_index > image.forked

    def _rows_of_call(self, image: ImageState) -> int:
        """Return the rows of a call of the model when the image begins."""
        batch = self._running.batch
        if batch is not None and batch.shape == image.shape:
            return batch.micro_batch
        return self._running.rows_of_call(image.shape, self._queue.max_rows(image.shape))

    def _course(self, image: ImageState) -> _Course:
        """Return the course of an image with its chain."""
        course = self._courses[image]
        if not course.chain:
            links = [*_links(image)]
            course.chain = [course.key]
            for link in links:
                course.chain.append(hashlib.blake2b(course.chain[-1] + link.numbers, digest_size=16).digest())
            course.turns = frozenset(_turns(image, [link.changing for link in links]))
        return course


class _Link(NamedTuple):
    """What determines an evaluation: all of it, and what rows may change on the way."""

    numbers: bytes
    changing: Hashable


def _key_of(family: Family, image: ImageState) -> bytes:
    """Return a digest over all that determines an image but for what ``_links`` has."""
    job, prompt, plan = image.job, image.prompts[0], image.plan
    fields = {name: value for name, value in job.request().items() if name not in LATER_FIELDS}
    facts = [
        fields,
        # the digests of adapters, and those of embeddings in its prompts
        image.adapters,
        prompt.loras,
        prompt.tokens.text_class,
        job.guidance_scale if family.embeds_guidance else None,
        plan.init_noise_sigma,
        plan.noised[:1],
    ]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).digest()


def _links(image: ImageState) -> Iterator[_Link]:
    """Yield what determines each evaluation of the first stage."""
    plan, table = image.plan, image.table().clone()
    for at, row in enumerate(table):
        changing = (
            (float(row[_GUIDANCE]), image.job.negative_prompt) if at in image.guided else None,
            tuple(hold.at(at) for hold in image.holds),
        )
        row[_GUIDANCE] = 0.0
        facts = (plan.uses_noise[at], plan.noised[at + 1 : at + 2], changing)
        yield _Link(row.numpy().tobytes() + repr(facts).encode(), changing)


def _turns(image: ImageState, changing: Sequence[Hashable]) -> Iterator[int]:
    """Yield the evaluations before which something changes that others may change elsewhere, and the last one."""
    found = [at for at, (before, after) in enumerate(pairwise(changing), 1) if before != after]
    yield from found
    if image.second is not None or not found:
        yield len(changing)


def _common(course: _Course, other: _Course) -> int:
    """Return the evaluations after which two images are in the same state."""
    length = min(len(course.chain), len(other.chain))
    return bisect_left(range(1, length), 1, key=lambda done: int(course.chain[done] != other.chain[done]))


def _evaluations(image: ImageState) -> int:
    """Return the evaluations that an image makes of its first stage."""
    return image.plan.num_evaluations if image.draft_at is None else min(image.plan.num_evaluations, image.draft_at)
