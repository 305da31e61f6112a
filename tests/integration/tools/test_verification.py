"""Images of a render loop are rendered again from their receipts; every kind of difference is reported."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.support.engines import single_thread
from tests.support.loras import catalogue_of
from tests.support.refined import make_refinable
from tests.support.tiny import Kind, make_tiny

from latentfarm import Batch, Farm, InputError, ModelError
from latentfarm.batch_drafts import DraftSelection
from latentfarm.storage.keys import results_key
from latentfarm.storage.part_codec import pack, unpack
from latentfarm.storage.results import flush_due
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import load_family
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.tools.comparison import JPEG_TOLERANCE, SHORT_DTYPE_TOLERANCE, TOLERANCE, ComparisonResult
from latentfarm_worker.tools.verification import Verification, sample_finished

pytestmark = pytest.mark.integration

SMALL = {"width": 64, "height": 64, "num_inference_steps": 3, "scheduler": "euler"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # several threads would mostly wait for each other's cores
    with single_thread():
        yield


def work(
    farm: Farm,
    model: Path,
    *,
    micro_batch: int = 4,
    decode_group: int = 1,
    deterministic: bool = True,
    embed_metadata: bool = True,
    compiled: bool = False,
    adapters: Path | None = None,
) -> None:
    """Render all pending jobs as a worker does, with its real threads, ledger and bucket."""
    family = load_family(model, dtype=torch.float32, device=torch.device("cpu"))
    if adapters is not None:
        family.use_catalogue(catalogue_of(adapters, adapters / "cache"))
    if compiled:
        family.compile()
    loop = RenderLoop(
        ledger=farm.ledger,
        bucket=farm.bucket,
        engine=Engine(
            family,
            slots=micro_batch,
            micro_batch=micro_batch,
            decode_group=decode_group,
            deterministic=deterministic,
        ),
        model="mini",
        worker="worker-a",
        lease_ttl_s=30,
        embed_metadata=embed_metadata,
    )
    loop.render_all()
    loop.wait_for_uploads(30)
    loop.close()
    flush_due(farm.ledger, farm.bucket)


def rendered(farm: Farm, model: Path, rows: int = 3, **how: Any) -> Batch:
    batch = farm.submit([{"prompt": f"p{n}", "seed": n, **SMALL} for n in range(rows)], batch="b")
    work(farm, model, **how)
    assert batch.status().done == rows
    return batch


def results_of(batch: Batch, model: Path, **how: Any) -> dict[str, ComparisonResult]:
    settings = batch.connection.settings.model_copy(update={"model_source": str(model)})
    run = Verification(batch, settings, **{"dtype": None, **how})
    return {each.job: each for each in run.run(sample_finished(batch, None, seed=0))}


def tamper_with_receipt(batch: Batch, index: int, **fields: Any) -> None:
    # the newest generation
    key = max(batch.connection.bucket.keys(f"batches/{batch.name}/results/"), key=lambda key: (len(key), key))
    lines = unpack(batch.connection.bucket.get(key), name=key)
    request = {**lines[index]["request"], **fields.pop("request", {})}
    changed = {**lines[index], **fields, "request": request}
    lines[index] = {name: value for name, value in changed.items() if value is not None}
    batch.connection.bucket.put(key, pack(lines))


def test_every_kind_of_image_has_the_same_bytes_when_rendered_again(farm: Farm, model: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"guidance_scale": 1.0},
        {"negative_prompt": "größer", "scheduler": "dpm++2m-karras", "num_inference_steps": 5},
        {"height": 128, "save_intermediates": True},
        {"scheduler": "euler_a"},
        {"image_format": "webp"},
        {"image_format": "jpeg"},
    ]
    batch = farm.submit([{"prompt": f"p{n}", **SMALL, **kind} for n, kind in enumerate(kinds)], batch="b")
    work(farm, model, decode_group=2)
    # twice as large, hence in calls of half the rows and images
    sizes = [(line["micro_batch"], line.get("decode_group", 1)) for line in batch.results()]
    assert sizes == [(4, 2), (4, 2), (4, 2), (2, 1), (4, 2), (4, 2), (4, 2)]
    found = results_of(batch, model)
    assert len(found) == len(kinds)
    assert [each for each in found.values() if each.differences or not each.same_bytes or each.tolerance] == []


def test_images_of_two_stages_have_the_same_bytes_and_each_stage_its_own_calls(farm: Farm, model: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"hires_scale": 1.5},
        {"hires_scale": 2, "hires_upscaler": "pixel", "scheduler": "euler_a", "hires_steps": 2, "hires_strength": 1},
        {},
    ]
    batch = farm.submit([{"prompt": f"p{n}", "seed": n, **SMALL, **row} for n, row in enumerate(rows)], batch="b")
    work(farm, model, micro_batch=8, decode_group=4)
    first, second, plain = batch.results()
    with Image.open(io.BytesIO(farm.bucket.get(second["key"]))) as image:
        assert image.size == (128, 128)
    assert (second["request"]["width"], second["hires"]["width"]) == (64, 128)
    # four times as large, hence in calls of a quarter of the rows and images
    assert [line["micro_batch"] for line in (first, second, plain)] == [8, 8, 8]
    assert second["hires"]["micro_batch"] == 2
    assert [line.get("decode_group", 1) for line in (first, second, plain)] == [1, 1, 4]
    found = results_of(batch, model)
    assert len(found) == len(rows)
    assert [each for each in found.values() if each.differences or not each.same_bytes or each.tolerance] == []


def test_images_with_a_refiner_have_the_same_bytes_and_a_receipt_of_its_stage(farm: Farm, tmp_path: Path) -> None:
    found = make_refinable(tmp_path)
    rows: list[dict[str, Any]] = [{"refiner": "fine"}, {"refiner": "fine", "refiner_start": 0.4}, {}]
    batch = farm.submit([{"prompt": f"p{n}", "seed": n, **SMALL, **row} for n, row in enumerate(rows)], batch="b")
    work(farm, found.folder, adapters=found.refiners)
    first, second, plain = batch.results()
    assert first["refinement"]["plan"] != second["refinement"]["plan"]
    assert (first["adapters"], "adapters" in plain) == (second["adapters"], False)
    assert [each["name"] for each in first["adapters"]] == ["fine"]
    with Image.open(io.BytesIO(farm.bucket.get(second["key"]))) as image:
        assert "Refiner: fine, Refiner switch at: 0.4" in image.info["parameters"]
    settings = batch.connection.settings.model_copy(
        update={"model_source": str(found.folder), "adapters": str(found.refiners)}
    )
    results = [*Verification(batch, settings, dtype=None).run(sample_finished(batch, None, seed=0))]
    assert len(results) == len(rows)
    assert [each for each in results if each.differences or not each.same_bytes or each.tolerance] == []


@pytest.mark.parametrize("kind", ["sd3", "flux", "schnell", "flux2", "zimage"])
def test_images_of_each_flow_matching_family_have_the_same_bytes_in_another_worker(
    farm: Farm, tmp_path: Path, kind: Kind
) -> None:
    model = make_tiny(tmp_path / kind, kind=kind)
    rows: list[dict[str, Any]] = [
        {"num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": "grey"},
        {"num_inference_steps": 3, "guidance_scale": 0.0, "scheduler": "flow_euler-karras"},
        {"num_inference_steps": 4, "scheduler": "unipc", "width": 96},
        {"num_inference_steps": 2, "scheduler_options": {"stochastic_sampling": True}},
    ]
    batch = farm.submit(
        [{"prompt": f"p{n}", "width": 64, "height": 64, **row} for n, row in enumerate(rows)], batch="b"
    )
    work(farm, model)
    assert batch.status().done == len(rows)
    found = results_of(batch, model)
    assert [each.same_bytes for each in found.values()] == [True] * len(rows)


def test_images_that_went_on_elsewhere_are_made_again_in_their_spans(farm: Farm, model: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"draft": 2, "num_inference_steps": 4, "scheduler": "dpm++2m-sde"},
        # in its second stage, whose calls have a quarter of the rows
        {"draft": 0.8, "hires_scale": 2, "hires_strength": 1},
        {"draft": 2},
        {},
    ]
    batch = farm.submit([{"prompt": f"p{n}", "seed": n, **SMALL, **row} for n, row in enumerate(rows)], batch="b")
    work(farm, model, micro_batch=8)
    batch.finish(DraftSelection(indices=(0, 1)))
    work(farm, model, micro_batch=16)
    batch.finish(DraftSelection(indices=(2,)))
    work(farm, model, micro_batch=8)
    spans = [
        [(span["start"], span["stop"], span["micro_batch"]) for span in line.get("spans", ())]
        for line in batch.results()
    ]
    assert spans == [
        [(0, 2, 8), (2, 4, 16)],
        [(0, 3, 8), (3, 5, 2), (5, 6, 4)],
        [(0, 2, 8), (2, 3, 8)],
        [],
    ]
    found = results_of(batch, model)
    assert [(each.same_bytes, each.differences, each.other_conditions) for each in found.values()] == [
        (True, (), ())
    ] * len(rows)
    # as if another device had begun it
    [first, *rest] = next(iter(batch.results()))["spans"]
    tamper_with_receipt(batch, 0, spans=[{**first, "device": "cuda, another"}, *rest])
    moved = results_of(batch, model)["b/0"]
    assert moved.other_conditions == ("evaluations 0 to 2: 8 rows, float32, cuda, another",)
    assert (moved.tolerance, moved.differences) == (TOLERANCE, ())


def test_images_without_metadata_have_the_same_bytes_too(farm: Farm, model: Path) -> None:
    found = results_of(rendered(farm, model, embed_metadata=False), model)
    assert [each.same_bytes for each in found.values()] == [True] * 3


def test_each_image_is_rendered_with_the_threads_and_micro_batch_of_its_receipt(farm: Farm, model: Path) -> None:
    batch = farm.submit([{"prompt": f"p{n}", **SMALL} for n in range(4)], batch="b")
    farm.ledger.redis.hset("{lf}:batch:b", "canary", 2)
    work(farm, model, micro_batch=2)
    farm.ledger.resume("b")
    torch.set_num_threads(2)
    work(farm, model, micro_batch=6)
    torch.set_num_threads(1)
    recorded = [(line["threads"], line["micro_batch"]) for line in batch.results()]
    assert recorded == [(1, 2), (1, 2), (2, 6), (2, 6)]
    run = Verification(batch, farm.settings.model_copy(update={"model_source": str(model)}), dtype=None)
    assert all(each.same_bytes for each in run.run(range(4)))
    assert run.conditions == {
        f"cpu, float32, micro-batch {rows}, threads {threads}" for rows, threads in ((2, 1), (6, 2))
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # Inductor imports a deprecated module of torch
def test_images_of_a_compiled_model_have_the_same_bytes_when_it_is_compiled_again(
    farm: Farm, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    batch = rendered(farm, model, compiled=True)
    assert {line["compiled"] for line in batch.results()} == {True}
    run = Verification(batch, farm.settings.model_copy(update={"model_source": str(model)}), dtype=None)
    assert all(each.same_bytes for each in run.run(range(3)))
    assert run.conditions == {"cpu, float32, micro-batch 4, threads 1, compiled"}


def test_images_of_a_worker_that_is_not_deterministic_are_compared_within_the_tolerance(
    farm: Farm, model: Path
) -> None:
    batch = rendered(farm, model, deterministic=False)
    assert {line["deterministic"] for line in batch.results()} == {False}
    found = results_of(batch, model)
    assert {(each.tolerance, each.differences) for each in found.values()} == {(TOLERANCE, ())}


def test_conditions_that_differ_are_named_and_the_image_is_compared_within_the_tolerance(
    farm: Farm, model: Path
) -> None:
    batch = rendered(farm, model, 1, embed_metadata=False)
    [line] = batch.results()
    here = {name: line[name] for name in ("device", "processor", "instruction_set", "threads", "torch")}
    gpu = {"device": "cuda", "device_name": "NVIDIA L4", "cudnn": 91002, "processor": None, "threads": None}
    for changes, expected in (
        ({"torch": "2.12.0"}, (f"torch: 2.12.0 in the receipt, {torch.__version__} here",)),
        ({"processor": "Cray"}, (f"processor: Cray in the receipt, {here['processor']} here",)),
        (gpu, ("device: cuda in the receipt, cpu here",)),
        ({"device_name": None, "cudnn": None}, ()),
    ):
        tamper_with_receipt(batch, 0, **{**here, **changes})
        [found] = results_of(batch, model).values()
        assert (found.other_conditions, found.same_bytes, found.differences) == (expected, True, ())
        assert found.tolerance == (TOLERANCE if expected else 0)


def test_an_older_receipt_with_free_exactness_is_compared_within_the_tolerance(farm: Farm, model: Path) -> None:
    batch = rendered(farm, model, 1)
    tamper_with_receipt(batch, 0, exactness="free")
    [found] = results_of(batch, model).values()
    assert (found.tolerance, found.differences) == (TOLERANCE, ())


def test_a_replaced_object_is_reported_with_both_digests_and_its_difference(farm: Farm, model: Path) -> None:
    batch = rendered(farm, model)
    line = list(batch.results())[1]
    with Image.open(io.BytesIO(farm.bucket.get(line["key"]))) as image:
        image.putpixel((5, 5), tuple(255 - channel for channel in image.getpixel((5, 5))))  # type: ignore[union-attr]
        out = io.BytesIO()
        image.save(out, format="PNG")
    farm.bucket.put(line["key"], out.getvalue())
    found = results_of(batch, model)
    assert [name for name, each in found.items() if each.differences] == ["b/1"]
    largest = found["b/1"].largest_difference
    first, second = found["b/1"].differences
    assert first.startswith("the object has sha256 ")
    assert line["sha256"] in first
    assert second == f"the bytes differ from the image rendered again; largest difference {largest}/255"
    assert (largest or 0) > TOLERANCE


@pytest.mark.parametrize("body", [b"not an image", b""])
def test_an_object_that_is_not_an_image_is_reported(farm: Farm, model: Path, body: bytes) -> None:
    batch = rendered(farm, model, 1)
    farm.bucket.put(next(iter(batch.results()))["key"], body)
    [found] = results_of(batch, model).values()
    assert found.differences[-1] == "the object is not an image of 64x64"


def test_a_missing_object_is_reported(farm: Farm, model: Path) -> None:
    batch = rendered(farm, model, 2)
    key = next(iter(batch.results()))["key"]
    farm.bucket.delete([key])
    found = results_of(batch, model)
    assert found["b/0"].differences == (f"the object {key} is missing",)
    assert found["b/1"].differences == ()


def test_a_receipt_with_another_seed_is_reported_with_the_field(farm: Farm, model: Path) -> None:
    batch = rendered(farm, model)
    tamper_with_receipt(batch, 2, request={"seed": 8})
    found = results_of(batch, model)
    assert [name for name, each in found.items() if each.differences] == ["b/2"]
    assert found["b/2"].differences == ("seed: 8 in the receipt, 2 in the image, 2 rendered again",)


def test_a_receipt_with_another_micro_batch_is_reported_with_the_field(farm: Farm, model: Path) -> None:
    batch = rendered(farm, model)
    tamper_with_receipt(batch, 0, micro_batch=6)
    found = results_of(batch, model)
    assert [name for name, each in found.items() if each.differences] == ["b/0"]
    assert "micro_batch: 6 in the receipt, 4 in the image, 6 rendered again" in found["b/0"].differences


def test_images_of_another_model_are_refused_with_both_digests(farm: Farm, model: Path, tmp_path: Path) -> None:
    batch = rendered(farm, model, 1)
    other = make_tiny(tmp_path / "other", seed=1)
    digests = [
        load_family(each, dtype=torch.float32, device=torch.device("cpu")).model_digest for each in (model, other)
    ]
    with pytest.raises(ModelError) as refused:
        results_of(batch, other)
    assert "b/0" in str(refused.value)
    assert all(digest in str(refused.value) for digest in digests)


def test_another_dtype_is_compared_within_a_tolerance_that_is_reported(farm: Farm, model: Path) -> None:
    [found] = results_of(rendered(farm, model, 1), model, dtype="bfloat16").values()
    assert (found.tolerance, found.same_bytes, found.differences) == (SHORT_DTYPE_TOLERANCE, False, ())
    assert found.largest_difference is not None
    assert 0 < found.largest_difference <= SHORT_DTYPE_TOLERANCE


def test_a_jpeg_has_a_larger_tolerance_under_other_conditions(farm: Farm, model: Path) -> None:
    batch = farm.submit([{"prompt": "p", **SMALL, "image_format": "jpeg"}], batch="b")
    work(farm, model)
    [found] = results_of(batch, model, tolerance=True).values()
    assert (found.tolerance, found.same_bytes, found.differences) == (TOLERANCE + JPEG_TOLERANCE, True, ())


def test_if_a_receipt_lacks_conditions_pixels_are_compared(farm: Farm, model: Path) -> None:
    batch = rendered(farm, model, 1, embed_metadata=False)
    key = results_key("b", 0)
    kept = {"job", "index", "state", "attempts", "key", "sha256", "bytes", "epoch"}
    [line] = unpack(farm.bucket.get(key), name=key)
    found_by_recover = {"missing": "device, torch, dtype, micro_batch", "tolerance": SHORT_DTYPE_TOLERANCE}
    earlier = {"missing": "processor, instruction_set, threads, torch, micro_batch", "tolerance": TOLERANCE}
    for old, expected in ({}, found_by_recover), ({"device": "cpu", "dtype": "float32", "slots": 2}, earlier):
        farm.bucket.put(key, pack([{name: line[name] for name in kept} | old]))
        [found] = results_of(batch, model).values()
        assert (found.tolerance, found.differences) == (expected["tolerance"], ())
        assert found.other_conditions == (f"not in the receipt: {expected['missing']}",)


def test_a_sample_is_drawn_by_its_seed_among_finished_images_only(farm: Farm) -> None:
    batch = farm.submit([{"prompt": f"p{n}", **SMALL} for n in range(50)], batch="b")
    with pytest.raises(InputError, match="no finished image"):
        sample_finished(batch, 5, seed=0)
    leases = farm.ledger.lease("mini", "w", 40, lease_s=30)
    farm.ledger.commit([(lease, {"key": "k"}) for lease in leases[::2]])
    done = {lease.index for lease in leases[::2]}
    chosen = [list(sample_finished(batch, 5, seed=seed)) for seed in range(20)]
    assert all(len(set(each)) == 5 and set(each) <= done and each == sorted(each) for each in chosen)
    assert set().union(*chosen) == done
    assert list(sample_finished(batch, 5, seed=3)) == chosen[3]
    assert set(sample_finished(batch, None, seed=0)) == set(sample_finished(batch, 500, seed=0)) == done
