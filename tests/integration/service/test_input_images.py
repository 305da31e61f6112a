"""Jobs on images: inputs come from the bucket, each once; one that is gone, changed or slow harms its own job only."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import until
from tests.support.engines import single_thread
from tests.support.input_images import digest, paint, paint_mask, png
from tests.support.rendering import SMALL, render_loop
from tests.support.tiny import make_tiny

from latentfarm import Batch, Farm, UnavailableError
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import INPUTS_PREFIX, MAX_OBJECT_BYTES, input_key
from latentfarm_worker.models import Family
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.tools.verification import Verification

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


class WatchedBucket(Bucket):
    """The real bucket; it counts the reads of inputs, and calls ``before_get`` with the digest before each."""

    def __init__(self, real: Bucket) -> None:
        super().__init__(real.name, where=real.where, open_session=lambda: (real.client, real.credentials))
        self.gets: Counter[str] = Counter()
        self.before_get: Callable[[str], None] = lambda _digest: None

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        if key.startswith(INPUTS_PREFIX):
            self.gets[key] += 1
            self.before_get(f"sha256:{key.removeprefix(INPUTS_PREFIX)}")
        return super().get(key, max_bytes=max_bytes)


def store(farm: Farm, image: Image.Image) -> str:
    """Store an input image, and return its digest."""
    body = png(image)
    farm.bucket.put(input_key(digest(body)), body)
    return digest(body)


def submit(farm: Farm, rows: list[dict[str, Any]]) -> Batch:
    return farm.submit([{"prompt": f"p{at}", **SMALL, "seed": at, **row} for at, row in enumerate(rows)], batch="b")


def render(loop: RenderLoop, batch: Batch) -> None:
    while not batch.status().complete:
        loop.render_all()
        loop.wait_for_uploads(10)


def set_patience(loop: RenderLoop, *, missing_s: float = 0.3, unavailable_s: float = 0.3) -> None:
    inputs = loop._supply._inputs
    inputs._missing_s, inputs._unavailable_s = missing_s, unavailable_s


def errors(batch: Batch) -> dict[int, str]:
    found = ((at, batch.job(at).error) for at in range(batch.status().total))
    return {at: error["code"] for at, error in found if error is not None}


def test_images_masks_and_texts_in_one_batch_are_rendered_and_verified(farm: Farm, tmp_path: Path) -> None:
    image, mask, wide = store(farm, paint(1)), store(farm, paint_mask()), store(farm, paint(2, 128, 64))
    batch = submit(
        farm,
        [
            {},
            {"image": image},
            {"image": image, "mask_image": mask, "scheduler": "euler_a"},
            {"image": wide, "resize": "crop", "strength": 0.5},
            {"image": image, "mask_image": mask, "mask_blur": 2, "strength": 0.7},
            {"guidance_scale": 1.0},
        ],
    )
    settings = farm.settings.model_copy(
        update={"model_source": str(make_tiny(tmp_path / "tiny")), "device": "cpu", "dtype": "float32", "slots": 2}
    )
    from latentfarm_worker.build import load_model

    with render_loop(farm, load_model(settings), slots=2) as loop:
        render(loop, batch)
    assert errors(batch) == {}
    results = {result["index"]: result for result in batch.results()}
    made = np.asarray(Image.open(io.BytesIO(farm.bucket.get(results[2]["key"])))).astype(int)
    kept = np.asarray(paint_mask()) == 0
    assert (made[kept] == np.asarray(paint(1)).astype(int)[kept]).all()
    found = list(Verification(batch, settings, dtype=None).run(range(6)))
    assert [each.differences for each in found] == [()] * 6
    assert all(each.same_bytes for each in found)


def test_an_input_that_rows_share_is_read_once(farm: Farm, family: Family) -> None:
    images, mask = [store(farm, paint(at)) for at in range(3)], store(farm, paint_mask())
    batch = submit(farm, [{"image": images[at % 3], **({"mask_image": mask} if at % 2 else {})} for at in range(40)])
    bucket = WatchedBucket(farm.bucket)
    with render_loop(farm, family, bucket, slots=4) as loop:
        render(loop, batch)
    assert errors(batch) == {}
    assert bucket.gets == dict.fromkeys(map(input_key, (*images, mask)), 1)


def test_an_input_that_is_gone_or_changed_fails_its_own_job(farm: Farm, family: Family) -> None:
    good, gone, changed = (store(farm, paint(at)) for at in range(3))
    batch = submit(farm, [{"image": good}, {"image": gone}, {}, {"image": changed}, {"image": good}, {"image": gone}])
    farm.bucket.delete([input_key(gone)])
    farm.bucket.put(input_key(changed), png(paint(9)))
    with render_loop(farm, family, slots=2) as loop:
        set_patience(loop)
        render(loop, batch)
    assert errors(batch) == {1: "input_missing", 3: "input_changed", 5: "input_missing"}
    assert batch.status().done == 3
    error = batch.job(3).error
    assert error is not None
    assert f"image {changed}: the object {input_key(changed)} has the sha256" in error["message"]


def test_an_input_of_another_size_is_resized_as_its_row_names(farm: Farm, family: Family) -> None:
    wide = store(farm, paint(2, 128, 64))
    batch = submit(farm, [{"image": wide, "resize": mode} for mode in ("crop", "pad", "stretch")])
    with render_loop(farm, family, slots=2) as loop:
        render(loop, batch)
    assert errors(batch) == {}


def test_an_input_that_comes_slowly_delays_its_own_job_only(farm: Farm, family: Family) -> None:
    good, slow = store(farm, paint(1)), store(farm, paint(2))
    batch = submit(farm, [{"image": slow}, *({"image": good} if at % 2 else {} for at in range(12))])
    bucket, released = WatchedBucket(farm.bucket), Event()

    def wait(found: str) -> None:
        if found == slow:
            released.wait(60)

    bucket.before_get = wait
    with render_loop(farm, family, bucket, slots=2) as loop:
        rendering = Thread(target=render, args=(loop, batch))
        rendering.start()
        until(lambda: batch.status().done == 12, timeout_s=60)
        assert not batch.status().complete
        released.set()
        rendering.join(60)
    assert errors(batch) == {}
    assert bucket.gets[input_key(slow)] == 1


def test_a_store_that_does_not_give_an_input_is_queried_again(farm: Farm, family: Family) -> None:
    good, late, never = (store(farm, paint(at)) for at in range(3))
    batch = submit(farm, [{"image": good}, {"image": late}, {"image": never}, {}])
    bucket, tries = WatchedBucket(farm.bucket), Counter[str]()

    def refuse(found: str) -> None:
        tries[found] += 1
        if found == never or (found == late and tries[late] < 3):
            raise UnavailableError("503 Slow Down")

    bucket.before_get = refuse
    with render_loop(farm, family, bucket, slots=2) as loop:
        set_patience(loop, unavailable_s=1.0)
        render(loop, batch)
    assert errors(batch) == {2: "input_unavailable"}
    assert batch.job(2).attempts == 3, "another try might help"
    assert tries[late] == 3


def test_an_encoder_without_memory_fails_the_job_of_its_image_only(farm: Farm, family: Any) -> None:
    good, large = store(farm, paint(1)), store(farm, paint(2))
    batch = submit(farm, [{"image": large}, {"image": good}, {}])

    class Short:
        """The family, whose encoder has no memory for one image."""

        def __getattr__(self, name: str) -> Any:
            return getattr(family, name)

        def encode_image(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> Any:
            if (pixels.numpy() == np.asarray(paint(2))).all():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
            return family.encode_image(pixels, kept)

    short: Any = Short()
    with render_loop(farm, short, slots=2) as loop:
        render(loop, batch)
    assert errors(batch) == {0: "oom"}
    assert batch.status().done == 2
