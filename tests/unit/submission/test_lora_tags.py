"""LoRAs in prompts in AUTOMATIC1111's syntax."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.edit_fields import LoraUse
from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.limits import MAX_ADAPTER_SCALE, MAX_LORAS
from latentfarm.submission.lora_tags import split_tags, take_loras
from latentfarm.submission.request import make_request

pytestmark = pytest.mark.unit

A1111 = Defaults(prompt_syntax="a1111")
NAMES = st.text(st.characters(categories=("L", "N"), include_characters="_-."), min_size=1, max_size=20)
SCALES = st.floats(-MAX_ADAPTER_SCALE, MAX_ADAPTER_SCALE).map(lambda scale: round(scale, 4))
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<>\0"), max_size=20)
USES = st.lists(st.builds(LoraUse, name=NAMES, scale=SCALES), max_size=MAX_LORAS, unique_by=lambda lora: lora.name)


@given(USES, st.data())
def test_tags_are_taken_out_of_any_prompt(loras: list[LoraUse], data: st.DataObject) -> None:
    texts = [f"a cat {data.draw(TEXTS)}", *(data.draw(TEXTS) for _ in loras)]
    tags = [f"<lora:{lora.name}:{lora.scale}>" for lora in loras]
    prompt = texts[0] + "".join(tag + text for tag, text in zip(tags, texts[1:], strict=True))
    rest, found = split_tags(prompt)
    assert rest == "".join(texts).strip()
    assert found == tuple(loras)


@given(st.text(st.sampled_from("<>lora:hypernet .059=-ab,"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    prompt = f"a cat {text}"
    try:
        rest, loras = split_tags(prompt)
    except InputError as error:
        problem = str(error)
    else:
        assert rest.startswith("a cat")
        assert "<lora:" not in rest
        assert len({lora.name for lora in loras}) == len(loras)
        return
    assert problem.startswith("prompt ")
    assert "write" in problem or "remove it" in problem


@pytest.mark.parametrize(
    ("tag", "lora"),
    [
        ("<lora:outlined>", LoraUse(name="outlined")),
        ("<lora:outlined:0.8>", LoraUse(name="outlined", scale=0.8)),
        ("<LORA : outlined : -.5 >", LoraUse(name="outlined", scale=-0.5)),
        ("<lyco:outlined:1>", LoraUse(name="outlined")),
        ("<lora:outlined:0.8:0.8>", LoraUse(name="outlined", scale=0.8)),
        ("<lora:outlined:te=0.8:unet=0.8>", LoraUse(name="outlined", scale=0.8)),
    ],
)
def test_a_tag_may_have_the_forms_of_the_web_ui(tag: str, lora: LoraUse) -> None:
    assert split_tags(f"a cat, {tag} red") == ("a cat,  red", (lora,))


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("a <lora:outlined:0.8 cat", "which is not a tag; write <lora:name:0.8>"),
        ("a cat <lora:>", "whose name '' is not a name; write 1 to 128 characters"),
        ("a cat <lora:my style:1>", "whose name 'my style' is not a name"),
        ("a cat <lora:outlined:much>", "whose scale 'much' is invalid; write a valid number"),
        ("a cat <lora:outlined:11>", "whose scale '11' is invalid; write less than or equal to 10"),
        ("a cat <lora:outlined:nan>", "whose scale 'nan' is invalid; write greater than or equal to -10"),
        ("a cat <lora:outlined:0.5:0.8>", "whose two scales differ; a LoRA has one scale"),
        ("a cat <lora:outlined:unet=0.5>", "whose two scales differ"),
        ("a cat <lora:outlined:1:1:1>", "which has too many scales"),
        ("a cat <lora:outlined:0.5:dyn=4>", "'dyn=4' is not supported"),
        ("a cat <lora:a:1><lora:a:0.5>", "has the LoRA a twice; write it once"),
        ("a cat <hypernet:a:1>", "hypernetworks are not supported; remove it"),
        (" <lora:a:1> ", "has LoRAs only; describe the image too"),
    ],
)
def test_a_malformed_tag_is_refused(prompt: str, problem: str) -> None:
    with pytest.raises(InputError, match=r"^prompt ") as caught:
        take_loras(Row(prompt=prompt), A1111)
    assert problem in str(caught.value)
    # other syntaxes render it as written
    assert take_loras(Row(prompt=prompt), Defaults()).prompt == prompt


def test_tags_are_added_to_the_loras_of_the_row_or_of_the_defaults() -> None:
    striped, outlined = LoraUse(name="striped", scale=0.5), LoraUse(name="outlined")
    defaults = Defaults(prompt_syntax="a1111", loras=(striped, outlined))
    tagged = "a cat <lora:outlined:0.3>"
    assert take_loras(Row(prompt=tagged), defaults).loras == (striped, LoraUse(name="outlined", scale=0.3))
    row = take_loras(Row(prompt=tagged, loras=("furry:2",)), defaults)
    assert row.loras == (LoraUse(name="furry", scale=2), LoraUse(name="outlined", scale=0.3))
    with pytest.raises(InputError, match="has the LoRA outlined, and so has loras; write it once"):
        take_loras(Row(prompt=tagged, loras=("outlined",)), defaults)
    many = "a cat " + "".join(f"<lora:a{number}>" for number in range(MAX_LORAS + 1))
    with pytest.raises(InputError, match=f"gives the row {MAX_LORAS + 1} LoRAs; write at most {MAX_LORAS}"):
        take_loras(Row(prompt=many), A1111)
    for row, shared in (
        (Row(prompt="a", negative_prompt=tagged), A1111),
        (Row(prompt="a"), Defaults(negative_prompt=tagged, prompt_syntax="a1111")),
    ):
        with pytest.raises(InputError, match="has a LoRA; move it to the prompt"):
            take_loras(row, shared)


def test_rows_of_a_request_have_the_loras_of_their_prompts() -> None:
    request = make_request(["a cat <lora:outlined:0.5>", "a dog"], model="mini", prompt_syntax="a1111")
    assert [row.given() for _, row in request.rows()] == [  # type: ignore[union-attr]
        {"loras": (LoraUse(name="outlined", scale=0.5),), "prompt": "a cat"},
        {"prompt": "a dog"},
    ]
