"""The turns of a worker's models: the loaded one first, no swap between its jobs, and a bound for those that wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.render_loops import RenderLoops
from latentfarm_worker.service.turns import Turn, Turns

pytestmark = pytest.mark.unit

TURN_S, STEP_S, STEPS, LOAD_S, BEAT_S = 60.0, 1.0, 8, 20.0, 3.0


@dataclass
class Farm:
    """A farm without other workers, whose clock moves with each step and load; heartbeats report jobs to ``Turns``."""

    models: tuple[str, ...]
    #: by model, the times at which jobs arrive
    arrivals: Mapping[str, list[float]]
    now: float = 0.0
    beaten: float = 0.0
    loaded: str = ""
    #: what happened, in order: loads by name, and the model of each image that ends
    events: list[str] = field(default_factory=list)
    #: by model, when each of its jobs began
    began: dict[str, list[float]] = field(default_factory=dict)
    #: times at which a client sends an interactive job to a model
    urgent: list[tuple[float, str]] = field(default_factory=list)
    #: by model, when each interactive job began
    answered: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turns = Turns(self.models, turn_s=TURN_S, clock=lambda: self.now)
        self.left = {model: sorted(self.arrivals.get(model, [])) for model in self.models}
        self.clients: dict[str, int] = dict.fromkeys(self.models, 0)
        self.began = {model: [] for model in self.models}
        self.answered = {model: [] for model in self.models}
        loops = {model: cast("RenderLoop", Loop(self, model)) for model in self.models}
        self.loops = RenderLoops(loops, self.turns)

    def pending(self, model: str) -> int:
        return sum(arrival <= self.now for arrival in self.left[model])

    def pass_time(self, seconds: float) -> None:
        # heartbeats and signals come while a step or a load takes its time
        for _ in range(int(seconds)):
            self._pass_second()

    def _pass_second(self) -> None:
        self.now += 1
        for each in [each for each in self.urgent if each[0] <= self.now]:
            self.urgent.remove(each)
            self.clients[each[1]] += 1
            self.turns.on_urgent(each[1])
        if self.now >= self.beaten + BEAT_S:
            self.beaten = self.now
            for model in self.models:
                self.turns.on_pending(model, self.pending(model))

    def run(self) -> None:
        """Render everything; a doorbell rings whenever a job arrives at an idle worker."""
        while any(self.left.values()):
            if not self.loops.render_all():
                self.pass_time(STEP_S)


class Loop:
    """The render loop of one model, with one slot."""

    def __init__(self, farm: Farm, model: str) -> None:
        self.farm, self.model = farm, model
        self.steps_left = 0
        self.stopped = self.asleep = False

    @property
    def unfinished(self) -> bool:
        return self.steps_left > 0

    def sleep(self) -> None:
        self.asleep = True

    def render_all(self, turn: Turn) -> int:
        ended = 0
        while not turn.interrupted:
            if not self.steps_left and not self._begin(turn):
                break
            if self.farm.loaded != self.model:
                self.farm.loaded = self.model
                self.farm.events.append(f"load {self.model}")
                self.farm.pass_time(LOAD_S)
                turn.extend(LOAD_S)
            self.farm.pass_time(STEP_S)
            self.steps_left -= 1
            if not self.steps_left:
                ended += 1
                self.farm.events.append(self.model)
        return ended

    def _begin(self, turn: Turn) -> bool:
        farm = self.farm
        if farm.clients[self.model] and not (turn.urgent and turn.over):
            farm.clients[self.model] -= 1
            farm.answered[self.model].append(farm.now)
        elif turn.urgent or turn.over or not farm.pending(self.model):
            return False
        else:
            farm.left[self.model].pop(0)
            farm.began[self.model].append(farm.now)
        self.steps_left = STEPS
        return True


def test_a_model_without_others_that_wait_is_not_swapped_between_its_jobs() -> None:
    farm = Farm(("a", "b"), {"a": [0.0] * 50})
    farm.run()
    assert farm.events == ["load a", *["a"] * 50]


def test_the_loaded_model_is_first_and_the_other_follows_when_it_has_no_more() -> None:
    # three jobs of each take less than a turn
    farm = Farm(("a", "b"), {"a": [0.0] * 3, "b": [0.0] * 3})
    farm.run()
    assert farm.events == ["load a", "a", "a", "a", "load b", "b", "b", "b"]
    # b is loaded now: it is first, although a waits as long
    later = farm.now
    farm.left = {"a": [later], "b": [later]}
    farm.run()
    assert farm.events[8:] == ["b", "load a", "a"]


def test_a_model_that_has_had_its_turn_lets_the_one_that_waits_longest_go_on() -> None:
    farm = Farm(("a", "b", "c"), {"a": [0.0] * 60, "c": [1.0] * 60, "b": [10.0] * 60})
    farm.run()
    loads = [event for event in farm.events if event.startswith("load")]
    assert loads[:6] == ["load a", "load c", "load b", "load a", "load c", "load b"]
    # one image is begun within the turn and ends after it
    assert farm.events[1 : farm.events.index("load c")] == ["a"] * 8


@given(
    arrivals=st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(0, 400).map(float), min_size=1, max_size=40), min_size=1
    )
)
def test_no_model_waits_longer_than_the_turns_of_the_others(arrivals: dict[str, list[float]]) -> None:
    farm = Farm(tuple("abcd"), arrivals)
    farm.run()
    # the image that runs at the end of a turn, and the time until a heartbeat reports waiting jobs
    bound = 3 * (LOAD_S + TURN_S + STEPS * STEP_S) + BEAT_S
    for model, began in farm.began.items():
        # the others of the model wait behind its first one
        for arrival in arrivals.get(model, []):
            following = min(start for start in began if start >= arrival)
            assert following - arrival <= bound, (model, arrival, following)


def test_an_interactive_job_interrupts_the_other_model_which_goes_on_where_it_was() -> None:
    farm = Farm(("a", "b"), {"a": [0.0] * 4, "b": [0.0]}, urgent=[(LOAD_S + 3, "b")])
    farm.run()
    # a's first image has made three of its steps; b's batch waits its turn although b is loaded
    assert farm.answered["b"] == [LOAD_S + 3]
    assert farm.events == ["load a", "load b", "b", "load a", "a", "a", "a", "a", "load b", "b"]


def test_an_interactive_job_of_the_model_that_renders_swaps_nothing() -> None:
    farm = Farm(("a", "b"), {"a": [0.0] * 2}, urgent=[(LOAD_S + 3, "a")])
    farm.run()
    assert farm.events == ["load a", "a", "a", "a"]
    assert farm.answered["a"] == [LOAD_S + STEPS]


def test_clients_of_two_models_are_answered_in_turns() -> None:
    stream = [(float(at), model) for at in range(1, 80) for model in "bc"]
    farm = Farm(("a", "b", "c"), {"a": [0.0]}, urgent=stream)
    farm.run()
    assert farm.answered["c"][0] <= 1 + LOAD_S + TURN_S + STEPS * STEP_S + LOAD_S
    assert len(farm.answered["b"]) == len(farm.answered["c"]) == 79


def test_a_turn_that_is_over_stays_over() -> None:
    now = 0.0
    turns = Turns(("a", "b"), turn_s=TURN_S, clock=lambda: now)
    turn = turns.next(())
    assert turn is not None
    turns.on_pending("b", 1)
    now = TURN_S
    assert turn.over
    turns.on_pending("b", 0)
    assert turn.over
