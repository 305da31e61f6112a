from __future__ import annotations

from typing import Any

import pytest
from tests.support.image_sources import data_url

from latentfarm.ledger import Throughput
from latentfarm.model_facts import ModelFacts
from latentfarm.submission.estimate import _UNSEEDED, Estimate, make_estimate
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.prompts import ReadOptions
from latentfarm.submission.request import make_request

pytestmark = pytest.mark.unit

RED, WHITE, BLUE = (data_url(color, (128, 128)) for color in ("red", "white", "blue"))

#: 100 images of 128x128 at 25 steps with guidance took a minute and 3 MB
MEASURED = Throughput(
    images=100, work=100 * 128 * 128 * 25 * 2, busy_s=60, size_bytes=3_000_000, pixels=100 * 128 * 128
)


def estimate(
    rows: list[Any],
    *,
    sweeps: tuple[str, ...] = (),
    speed: Throughput | None = MEASURED,
    keep: float = 1,
    **defaults: Any,
) -> Estimate:
    request = make_request(rows, ReadOptions(), model="mini", expansion=Expansion.parse(sweeps), **defaults)
    return make_estimate(request, throughput=speed, count_tokens=lambda prompt: len(prompt.split()) + 2, keep=keep)


def test_rows_invalid_rows_duplicates_and_images_are_counted() -> None:
    found = estimate(
        ["a", {"prompt": "a", "id": "x"}, {"prompt": "b", "num_images_per_prompt": 3}, {"prompt": "c", "width": 1}]
    )
    assert (found.rows, found.invalid, found.duplicates, found.jobs) == (4, 1, 1, 5)
    assert found.reasons == {"width": 1}
    assert found.problems == ["row 4: width 1 is out of range; write 64 to 2048"]


def test_a_row_that_differs_in_a_field_is_not_a_duplicate() -> None:
    assert estimate(["a", {"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2}]).duplicates == 0


def test_prompts_over_max_tokens_are_counted_by_image() -> None:
    fits, too_long = " ".join(["word"] * 75), " ".join(["word"] * 76)
    found = estimate([fits, {"prompt": too_long, "num_images_per_prompt": 2}])
    assert found.over_max_tokens == 2
    assert (
        estimate([too_long, {"prompt": too_long, "prompt_syntax": "plain"}], prompt_syntax="a1111").over_max_tokens == 1
    )


def test_the_cost_scales_measurements_by_size_steps_and_guidance() -> None:
    same = estimate(["a"] * 50)
    assert same.gpu_hours == pytest.approx(30 / 3600)
    assert same.size_bytes == 1_500_000
    assert estimate(["a"] * 50, num_inference_steps=50).gpu_hours == pytest.approx(60 / 3600)
    assert estimate(["a"] * 50, guidance_scale=1).gpu_hours == pytest.approx(15 / 3600)
    larger = estimate(["a"] * 50, width=256, height=256)
    assert larger.gpu_hours == pytest.approx(120 / 3600)
    assert larger.size_bytes == 6_000_000


def test_a_sweep_multiplies_the_cost() -> None:
    found = estimate(["a"], sweeps=("num_inference_steps=25,50", "seed=1..4"))
    assert (found.rows, found.jobs) == (1, 8)
    assert found.gpu_hours == pytest.approx(4 * (0.6 + 1.2) / 3600)


def test_without_measurements_the_cost_is_unknown() -> None:
    found = estimate(["a"], speed=None)
    assert (found.size_bytes, found.gpu_hours) == (None, None)


def test_without_a_tokenizer_the_tokens_are_unknown() -> None:
    request = make_request(["a"], ReadOptions(), model="mini", expansion=Expansion.parse())
    assert make_estimate(request, throughput=None, count_tokens=None).over_max_tokens is None


FLUX = ModelFacts(
    pipeline="FluxPipeline",
    model_digest="ab12",
    native_width=256,
    native_height=128,
    num_inference_steps=50,
    guidance_scale=1,
    max_prompt_tokens=512,
)


def test_the_steps_guidance_and_size_of_the_model_count_where_a_row_sets_none() -> None:
    request = make_request(["a", {"prompt": "b", "num_inference_steps": 25, "guidance_scale": 7}], model="flux")

    found = make_estimate(request.with_facts(FLUX), throughput=MEASURED, count_tokens=None)

    assert (found.num_inference_steps, found.guidance_scale) == (50, 1)
    # an image of 128x128 at 25 steps with guidance took 0.6 s: both are twice as large, and as much work
    assert found.gpu_hours == pytest.approx(2 * 2 * 0.6 / 3600)
    assert found.size_bytes == 2 * 2 * 30_000


def test_a_default_of_the_batch_goes_before_that_of_the_model() -> None:
    request = make_request(["a"], model="flux", num_inference_steps=7)

    found = make_estimate(request.with_facts(FLUX), throughput=None, count_tokens=None)

    assert (found.num_inference_steps, found.guidance_scale) == (7, 1)


def test_prompts_are_cut_at_the_tokens_of_the_model() -> None:
    prompts = [" ".join(["word"] * count) for count in (76, 510, 511)]
    request = make_request(prompts, model="flux")

    def count(prompt: str) -> int:
        return len(prompt.split()) + 2

    known = make_estimate(request.with_facts(FLUX), throughput=None, count_tokens=count)
    unknown = make_estimate(request, throughput=None, count_tokens=count)

    assert (known.max_prompt_tokens, known.over_max_tokens) == (512, 1)
    assert (unknown.max_prompt_tokens, unknown.over_max_tokens) == (77, 3)


def test_the_steps_that_are_made_are_counted() -> None:
    rows = [{"prompt": "a", "image": RED, "num_images_per_prompt": 2}, "b"]
    found = estimate(rows, num_inference_steps=20, strength=0.5)
    assert (found.steps, found.inputs, found.adapters) == (10 * 2 + 20, 1, {})
    assert found.gpu_hours == pytest.approx(40 / 20 / 50 * 30 / 3600 * 20 / 25)
    swept = estimate(rows[:1], sweeps=("strength=0.25,0.5,1",), num_inference_steps=20)
    assert swept.steps == 2 * (5 + 10 + 20)
    # a second stage of four times the area
    second = estimate(["a"], num_inference_steps=20, hires_scale=2, hires_strength=0.5)
    assert second.steps == 30
    assert second.gpu_hours == pytest.approx((20 + 4 * 10) / 25 * 0.6 / 3600)
    assert second.size_bytes == 4 * 30_000


def test_inputs_and_adapters_are_named() -> None:
    nets = {"controlnet": ["edges", "depth"], "control_image": [RED, WHITE]}
    rows = [
        {"prompt": "a", "image": RED, "loras": "outlined"},
        {"prompt": "a", "image": BLUE, "ip_adapter": "plus", "ip_adapter_image": BLUE, **nets},
    ]
    found = estimate(rows, sweeps=("loras=outlined,striped:0.5,none",))
    assert found.inputs == 3
    assert found.adapters == {
        "controlnet": ["depth", "edges"],
        "ip_adapter": ["plus"],
        "lora": ["outlined", "striped"],
    }
    assert (found.jobs, found.duplicates) == (6, 0)


#: as tests render: 20 steps with guidance, 2 rows each
SEEDED: dict[str, Any] = {"num_inference_steps": 20, "seed": 7}


@pytest.mark.parametrize(
    ("sweep", "fields", "shared"),
    [
        ("guidance_interval=0..0.5,0..0.75,0..1", {}, 10 + 15),
        # what is later in the run may be written first
        ("guidance_interval=0..1,0..0.25,0..0.75", {}, 5 + 15),
        ("guidance_interval=0.3..1,0.1..1", {}, 2),
        ("guidance_scale=2,5,9", {"guidance_interval": "0.2..1"}, 2 * 4),
        ("negative_prompt=blurry,dark", {"guidance_interval": "0.2..1"}, 4),
        ("loras=a:1@0.5,a:0.5@0.5,a:1@0.7,b:1@0.7", {}, 10 + 10),
        ("loras=a:1,a:0.5", {}, 0),
        ("control_guidance_end=0.5,0.9,1", {"controlnet": "edges", "control_image": RED}, 10 + 18),
        ("control_guidance_start=0,0.5", {"controlnet": "edges", "control_image": RED}, 0),
        ("hires_scale=1.5,2", {"hires_strength": 0.5}, 20),
        ("hires_strength=0.5,0.7", {"hires_scale": 2}, 20),
        ("refiner_start=0.5,0.8", {"refiner": "fine"}, 10),
        ("strength=0.5,0.5", {"image": RED}, 10),
        ("strength=0.5,0.75,1", {"image": RED}, 0),
        ("num_inference_steps=20,40", {}, 0),
        ("image_format=png,webp", {}, 20),
        ("seed=1..4", {}, 0),
        ("guidance_interval=0..0.5,0..1", {"num_images_per_prompt": 3}, 3 * 10),
        ("guidance_interval=0..0.5,0..1", {"save_intermediates": True}, 0),
    ],
)
def test_steps_that_images_have_in_common_are_counted_once(sweep: str, fields: dict[str, Any], shared: int) -> None:
    found = estimate([{"prompt": "a", **fields}], sweeps=(sweep,), **SEEDED)
    assert found.shared_steps == shared
    assert found.notes.get(_UNSEEDED) is None


def test_shared_steps_cost_nothing() -> None:
    found = estimate(["a"], sweeps=("guidance_interval=0..0.5,0..1",), **SEEDED)
    # 10 steps of 2 rows and 10 of one, and 10 of 2 rows more
    assert found.gpu_hours == pytest.approx((20 + 10 + 20) / 50 * 0.6 / 3600)
    assert found.steps == 40


def test_rows_without_a_seed_share_nothing_and_are_noted() -> None:
    rows = ["a", "a", {"prompt": "a", "guidance_interval": "0..0.5"}]
    found = estimate(rows)
    assert found.shared_steps == 0
    assert found.notes == {_UNSEEDED: 1}, "equal rows are meant to give different images"


def test_guidance_that_is_an_input_of_the_model_is_in_all_steps() -> None:
    rows = [{"prompt": "a", "seed": 1, "guidance_scale": scale, "guidance_interval": "0.5..1"} for scale in (2, 3, 3)]
    request = make_request(rows, model="flux")
    found = make_estimate(
        request.with_facts(FLUX.model_copy(update={"embeds_guidance": True})), throughput=None, count_tokens=None
    )
    assert found.shared_steps == 50
    assert make_estimate(request.with_facts(FLUX), throughput=None, count_tokens=None).shared_steps == 25 + 50


def test_drafts_are_priced_by_the_share_that_is_finished() -> None:
    # 100 images take a minute; the last two rows are no drafts
    rows = [*["a"] * 98, {"prompt": "b", "draft": 0}, {"prompt": "c", "num_inference_steps": 1}]
    found = estimate(rows, draft=0.2, keep=0.1)
    drafts = found.drafts
    assert drafts is not None
    assert (drafts.jobs, drafts.keep) == (98, 0.1)
    assert (drafts.made.steps, drafts.finish.steps, drafts.saved.steps) == (98 * 5, 196, 98 * 18)
    hours = [part.gpu_hours for part in (drafts.made, drafts.finish, drafts.saved)]
    assert hours == pytest.approx([0.98 / 60 * share for share in (0.2, 0.08, 0.72)])
    unmeasured = estimate(rows, draft=0.2, speed=None).drafts
    assert unmeasured is not None
    assert (unmeasured.made.gpu_hours, unmeasured.saved.gpu_hours, unmeasured.saved.steps) == (None, None, 0)
    assert estimate(["a"]).drafts is None


def test_a_draft_in_a_second_stage_has_paid_for_its_size() -> None:
    fields = {"prompt": "a", "hires_scale": 2, "hires_strength": 0.4, "num_inference_steps": 25, "draft": 30}
    drafts = estimate([fields], guidance_scale=4).drafts
    # all but the last of 35 steps: 25, and 10 with four times as many pixels
    assert drafts is not None
    assert (drafts.made.steps, drafts.finish.steps) == (34, 1)
    assert drafts.made.gpu_hours == pytest.approx((25 + 9 * 4) / 25 * 0.6 / 3600)
    assert drafts.finish.gpu_hours == pytest.approx(4 / 25 * 0.6 / 3600)
