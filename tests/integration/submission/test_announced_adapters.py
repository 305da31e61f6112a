"""What workers announce of their adapters: rows that name others are refused, with those that are known."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.integration.submission.test_model_facts import TURBO

from latentfarm import Farm, InputError, InvalidRowsError
from latentfarm.adapter_kind import AdapterKind
from latentfarm.ledger import Ledger
from latentfarm.storage.manifest import read_header

pytestmark = pytest.mark.integration

NAMES = {"lora": ["outlined", "striped"], "controlnet": ["edges"]}


def announce(ledger: Ledger, adapters: str) -> None:
    ledger.heartbeat("mini", "w", about={"facts": TURBO.model_dump_json(), "adapters": adapters})


def test_names_stay_when_their_worker_ends_and_the_latest_count(ledger: Ledger) -> None:
    assert ledger.announced_adapters("mini") is None
    announce(ledger, json.dumps(NAMES))
    ledger.sign_off("mini", "w")
    found = ledger.announced_adapters("mini")
    assert found is not None
    assert found[AdapterKind.LORA] == ("outlined", "striped")
    assert found[AdapterKind.EMBEDDING] == ()
    announce(ledger, json.dumps({"lora": [], "of a newer worker": ["x"]}))
    assert ledger.announced_adapters("mini") == dict.fromkeys(AdapterKind, ())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"lora": 3}', "null"])
def test_names_that_cannot_be_read_are_unknown(ledger: Ledger, text: str) -> None:
    announce(ledger, text)
    assert ledger.announced_adapters("mini") is None
    assert ledger.model_facts("mini") == TURBO


def test_a_row_with_an_unknown_adapter_is_refused_with_the_known_names(farm: Farm) -> None:
    announce(farm.ledger, json.dumps(NAMES))
    rows: list[str | dict[str, Any]] = [
        {"prompt": "a", "loras": "outlined:0.5"},
        {"prompt": "b", "loras": "striped,outlined2"},
        {"prompt": "c", "loras": [{"name": "edges", "scale": 1}]},
    ]
    with pytest.raises(InvalidRowsError) as caught:
        farm.submit(rows, batch="cats")
    text = str(caught.value)
    assert "lora 'outlined2' is unknown; write outlined, striped" in text
    assert "lora 'edges' is unknown" in text
    assert "2 problems (loras: 2)" in text
    assert farm.submit(rows[:1], batch="cats").status().total == 1


def test_defaults_with_an_unknown_adapter_are_refused(farm: Farm) -> None:
    announce(farm.ledger, json.dumps(NAMES))
    with pytest.raises(InputError, match="lora 'x' is unknown; write outlined, striped"):
        farm.submit(["a"], batch="cats", loras="x")


def test_a_farm_whose_workers_announce_no_names_refuses_none(farm: Farm) -> None:
    farm.ledger.heartbeat("mini", "w", about={"facts": TURBO.model_dump_json()})
    assert farm.submit([{"prompt": "a", "loras": "x"}], batch="cats").status().total == 1


def test_a_batch_keeps_no_names_and_goes_on_without_an_adapter_that_left(farm: Farm) -> None:
    announce(farm.ledger, json.dumps(NAMES))
    rows = [{"prompt": "a", "loras": "outlined"}]
    farm.submit(rows, batch="cats")
    header = read_header(farm.bucket, "cats")
    assert header is not None
    assert header.model_facts == TURBO, "without names"
    announce(farm.ledger, "{}")
    assert farm.submit(rows, batch="cats").status().total == 1
