"""The overhead budget: saves as often as possible for at most a share of the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.training.saving.overhead_budget import OverheadBudget
from ckptstore.training.saving.schedule import (
    AnySchedule,
    EveryEpoch,
    EveryInterval,
    SaveSchedule,
    WithinOverhead,
)


@dataclass
class Run:
    """A training in a time of its own: so long a step, so long a copy, so long a write that slows steps down."""

    step_s: float
    blocked_s: float
    write_s: float
    slowed: float = 0.0  # by which share, while it writes
    share: float = 0.035
    now: float = 0.0
    cost_s: float = 0.0
    saves: list[int] = field(default_factory=list)
    asks: bool = False  # whether a batch is all there is to note, and tells when its hooks end
    hook_s: float = 0.0
    batches_each: int = 1  # of one hook
    quiet: int = 0

    def __post_init__(self) -> None:
        self.budget = OverheadBudget(self.share, nbytes=0, clock=lambda: self.now)
        self.until: float | None = None

    def train(self, batches: int, first: int = 0) -> Run:
        each = self.batches_each
        for batch in range(first, first + batches, each):
            saving = self.until is not None
            longer = self.slowed * min(self.step_s, self.until - self.now) if self.until is not None else 0.0
            self.now += self.step_s * each + longer
            self.cost_s += longer
            if self.until is not None and self.now >= self.until:
                self.until = None
                self.budget.settled(self.write_s)
            quiet = self.asks and not saving and self.budget.is_quiet(each)
            self.quiet += quiet
            if not quiet:
                self.budget.batches_done(each, saving=saving)
            due = not quiet and self.until is None and self.budget.is_due()
            self.now += self.hook_s
            if self.asks:
                self.budget.hook_ends()
            if due:
                self.save(batch)
        return self

    def save(self, batch: int) -> None:
        self.now += self.blocked_s
        self.cost_s += self.blocked_s
        self.until = self.now + self.write_s
        self.saves.append(batch)
        self.budget.saved()


@given(
    step_ms=st.integers(1, 400),
    blocked_ms=st.integers(1, 2_000),
    write_ms=st.integers(1, 20_000),
    slowed=st.floats(0, 0.5),
    share=st.sampled_from([0.005, 0.035, 0.2]),
)
def test_it_costs_no_more_than_the_share(
    step_ms: int, blocked_ms: int, write_ms: int, slowed: float, share: float
) -> None:
    run = Run(step_ms / 1000, blocked_ms / 1000, write_ms / 1000, slowed, share)
    run.train(4_000)
    # One save before anything is known of it, and one that is under way.
    cost_of_a_save = run.blocked_s + run.write_s * slowed
    assert run.cost_s <= share * run.now + 2 * cost_of_a_save


def test_no_more_is_left_unused_than_must_be() -> None:
    run = Run(step_s=0.01, blocked_s=0.005, write_s=0.02).train(20_000)
    assert 0.8 * 0.035 * run.now <= run.cost_s <= 0.035 * run.now + 0.01
    gaps = {later - earlier for earlier, later in zip(run.saves[5:], run.saves[6:], strict=False)}
    assert gaps <= {16, 17}
    assert run.budget.interval().batches == 17


def test_a_slow_disk_is_never_asked_for_more_than_it_can() -> None:
    run = Run(step_s=0.01, blocked_s=0.0001, write_s=5.0).train(20_000)
    gaps = [later - earlier for earlier, later in zip(run.saves, run.saves[1:], strict=False)]
    assert min(gaps) >= 500
    assert run.budget.interval().batches == 500


def test_the_interval_is_tuned_during_the_run() -> None:
    run = Run(step_s=0.01, blocked_s=0.005, write_s=0.02).train(5_000)
    before = run.budget.interval().batches
    assert run.budget.new_interval() is not None
    assert run.budget.new_interval() is None
    run.step_s = 0.1
    run.train(5_000, first=5_000)
    assert before == 17
    assert run.budget.interval().batches == 2
    news = run.budget.new_interval()
    assert news is not None
    assert news.detail()["batches"] == 2
    assert news.detail()["step_s"] == pytest.approx(0.1)


def test_steps_that_are_slow_by_chance_do_not_count_as_the_cost_of_saving() -> None:
    run = Run(step_s=0.01, blocked_s=0.005, write_s=0.02)
    for batch in range(3_000):
        if batch % 10 == 9:
            run.now += 0.04
        run.train(1, first=batch)
    assert run.budget.interval().step_s == pytest.approx(0.01, rel=0.5)
    assert run.budget.interval().slowed_s < 0.02


def test_a_long_validation_is_no_reason_for_many_saves() -> None:
    run = Run(step_s=0.01, blocked_s=0.005, write_s=0.02).train(1_000)
    before = len(run.saves)
    run.budget.pause()
    run.now += 1_000.0
    run.train(100, first=1_000)
    assert len(run.saves) - before <= 100 // 17 + 2
    assert run.budget.interval().step_s == pytest.approx(0.01)


def test_steps_are_measured_in_short_epochs_too() -> None:
    """The first steps are slow; all epochs are over before it is time for another look since they began."""
    run = Run(step_s=0.002, blocked_s=0.002, write_s=0.01)
    budget = run.budget
    for epoch in range(40):
        for batch in range(75):
            run.now += 0.002 if epoch or batch > 20 else 0.02
            budget.batches_done(1, saving=False, computed=budget.needs_measurement())
        budget.pause()
        run.now += 0.1
    assert budget.step_s == pytest.approx(0.002)


def test_after_many_saves_at_any_cost_at_most_one_is_owed() -> None:
    """Each of 30 epochs is the best so far and saved, at twice the share; the next saves come as they did before."""
    run = Run(step_s=0.01, blocked_s=0.05, write_s=0.01).train(2_000)
    usual = max(later - earlier for earlier, later in pairwise(run.saves[5:]))
    cost_s, now = run.cost_s, run.now
    for first in range(2_000, 3_500, 50):
        run.train(50, first=first)
        run.budget.pause()
        run.budget.forgive()
        run.save(first + 49)
    assert run.cost_s - cost_s > 2 * 0.035 * (run.now - now)
    run.train(2_000, first=3_500)
    after = [batch for batch in run.saves if batch >= 3_500]
    assert after[0] - 3_499 <= 2 * usual
    assert max(later - earlier for earlier, later in pairwise(after)) <= usual + 1


def test_a_save_at_any_cost_leaves_what_is_earned() -> None:
    """It is paid for as any other, where nothing is owed: a run of rare ones costs no more than the share."""
    run = Run(step_s=0.01, blocked_s=0.05, write_s=0.01).train(1_000)
    for first in range(1_000, 20_000, 1_000):
        run.train(1_000, first=first)
        run.budget.pause()
        run.budget.forgive()
        run.save(first + 999)
    assert run.cost_s <= 0.035 * run.now + 0.1


def test_most_batches_are_only_counted_and_are_known_all_the_same() -> None:
    run = Run(step_s=0.002, blocked_s=0.005, write_s=0.02, asks=True)
    run.train(20_000)
    assert run.quiet > 10_000
    assert run.budget.step_s == pytest.approx(0.002)
    assert 0.7 * 0.035 * run.now < run.cost_s + 20_000 * 1.5e-5 < 0.035 * run.now
    # The record is of what was done; hooks have taken a quarter of it.
    gaps = [later - earlier for earlier, later in pairwise(run.saves[-20:])]
    assert run.budget.interval().batches == pytest.approx(sum(gaps) / len(gaps), rel=0.02)


@pytest.mark.parametrize(
    "ends",
    [
        OverheadBudget.pause,
        OverheadBudget.saved,
        OverheadBudget.not_saved,
        lambda budget: budget.settled(0.02),
    ],
)
def test_a_change_of_the_due_time_ends_the_quiet(ends: Callable[[OverheadBudget], object]) -> None:
    run = Run(step_s=0.002, blocked_s=0.005, write_s=0.02, asks=True).train(20_000)
    for batch in range(20_000, 20_500):
        if run.budget.is_quiet(0):
            break
        run.train(1, first=batch)
    assert run.budget.is_quiet(0)
    ends(run.budget)
    assert not run.budget.is_quiet(0)


def test_however_long_it_is_to_the_next_save_batches_are_looked_at() -> None:
    run = Run(step_s=0.002, blocked_s=5.0, write_s=0.02, asks=True).train(100_000)
    assert 1 <= len(run.saves) <= 2
    saves, run.step_s = len(run.saves), 0.004
    run.train(10_000, first=100_000)
    assert len(run.saves) == saves
    assert run.budget.step_s == pytest.approx(0.004)


@pytest.mark.parametrize("not_known", ["an epoch's end", "batches beside a save", "what a save has cost"])
def test_no_batch_is_only_counted_where_more_is_to_be_known(not_known: str) -> None:
    run = Run(step_s=0.002, blocked_s=5.0, write_s=0.02, asks=True).train(100_000)
    budget = run.budget
    if not_known == "an epoch's end":
        budget.pause()
    else:
        budget.saved()
        budget.batches_done(1, saving=True, computed=False)
    if not_known == "what a save has cost":
        budget.settled(0.02)
    for _ in range(3):
        assert not budget.is_due()
        assert not budget.is_quiet(1)


def test_hooks_use_at_most_nine_tenths_of_the_earned_time() -> None:
    """Batches are so short that their hooks alone would cost more than the share."""
    run = Run(step_s=0.0002, blocked_s=0.001, write_s=0.001, asks=True)
    run.train(100_000)
    assert 0.05 * 0.035 * run.now < run.cost_s < 0.15 * 0.035 * run.now


def test_fixed_costs_are_paid_and_do_not_delay_the_first_save() -> None:
    run = Run(step_s=0.01, blocked_s=0.005, write_s=0.02)
    run.budget.charge(0.5)
    run.train(20_000)
    cost_of_a_save = run.blocked_s + run.write_s
    assert 0.8 * 0.035 * run.now <= run.cost_s + 0.5 <= 0.035 * run.now + cost_of_a_save
    assert run.saves[0] < 100
    # While three quarters of what is earned pay for it, there are a quarter as many.
    early = [batch for batch in run.saves if batch < 1_600]
    late = [batch for batch in run.saves if batch >= 18_400]
    assert 0.2 * len(late) <= len(early) <= 0.3 * len(late)


@pytest.mark.parametrize(
    ("busy", "cores", "lost"), [(2.0, 2, 1.0), (1.5, 2, 0.5), (1.0, 2, 0.0), (1.2, 16, 0.0), (7.0, 4, 1.0)]
)
def test_another_process_costs_the_time_without_an_idle_core(busy: float, cores: int, lost: float) -> None:
    def first_save(owe: Callable[[OverheadBudget], None]) -> float:
        now = [0.0]
        budget = OverheadBudget(
            0.5,
            nbytes=10_000_000_000,
            clock=lambda: now[0],
            processor_clock=lambda: busy * now[0],
            cores=cores,
        )
        for _ in range(5):
            budget.batches_done(1, saving=False)
            now[0] += 1.0
        owe(budget)
        while not budget.is_due():
            now[0] += 0.125
        return now[0]

    seen = first_save(lambda budget: budget.charge_processor_time(4.0))
    assert seen == first_save(lambda budget: budget.charge(4.0 * lost))


@dataclass
class Device:
    """Batches on a device that runs asynchronously, except in a measurement; saves slow it down."""

    budget: OverheadBudget
    clock: list[float]
    step_s: float = 0.01
    slower: float = 0.5
    done_at: float = 0.0
    until: float = 0.0
    was_saving: bool = False
    looks_beside: int = 0
    lost_s: float = 0.0

    @classmethod
    def made(cls, clock: list[float], share: float = 0.5) -> Device:
        return cls(OverheadBudget(share, nbytes=0, clock=lambda: clock[0]), clock)

    def batch(self) -> None:
        self.clock[0] += 1e-4
        begun = max(self.done_at, self.clock[0])
        longer = self.slower * max(0.0, min(self.step_s, self.until - begun))
        self.lost_s += longer
        self.done_at = begun + self.step_s + longer
        looking = self.budget.needs_measurement(saving=self.was_saving)
        if looking:
            self.clock[0] = max(self.clock[0], self.done_at)
        self.looks_beside += looking and begun < self.until
        self.budget.batches_done(1, saving=self.was_saving, computed=looking)
        self.was_saving = self.clock[0] < self.until

    def save(self, write_s: float) -> None:
        self.clock[0] = max(self.clock[0], self.done_at)
        self.budget.batches_done(0, saving=False)
        self.clock[0] += 0.002
        self.until = self.clock[0] + write_s
        self.budget.saved()
        self.was_saving = True


def test_a_save_is_measured_without_waiting_for_the_device() -> None:
    device = Device.made([0.0])
    for _ in range(100):
        device.batch()
    for _ in range(10):
        device.save(0.1)
        while device.clock[0] < device.until:
            device.batch()
        device.budget.settled(0.1)
        for _ in range(20):
            device.batch()
    # A tenth of a second, in which each batch takes half as long again.
    assert device.budget.interval().slowed_s == pytest.approx(0.1 / 3, rel=0.3)
    assert device.budget.step_s == pytest.approx(0.01, rel=0.05)
    assert device.looks_beside <= 10


def test_where_epochs_are_over_before_a_save_is_its_cost_is_guessed_once() -> None:
    device = Device.made([0.0])
    for _ in range(100):
        device.batch()
    device.save(0.1)
    for _ in range(2):
        device.batch()
    device.budget.pause()
    device.budget.settled(0.1)
    assert device.budget.interval().slowed_s == 0.05
    # The next one is looked at more closely.
    device.looks_beside = 0
    device.save(0.1)
    for _ in range(5):
        device.batch()
    device.budget.pause()
    device.budget.settled(0.1)
    assert device.looks_beside == 5
    assert 0.02 < device.budget.interval().slowed_s < 0.05


def test_a_save_that_is_waited_for_slows_nothing_down() -> None:
    run = Run(step_s=0.01, blocked_s=0.02, write_s=0.02)
    for batch in range(1_000):
        run.train(1, first=batch)
        if run.until is not None:
            run.until = None
            run.budget.settled(0.02)
    assert run.budget.interval().slowed_s == 0.0
    assert run.budget.new_interval() is not None


@pytest.mark.parametrize("per_epoch", [1, 2, 3, 4])
@pytest.mark.parametrize("step_s", [0.002, 0.3])
def test_epochs_of_few_batches_are_saved_at_no_more_than_the_share(per_epoch: int, step_s: float) -> None:
    device = Device.made([0.0], share=0.035)
    device.step_s = step_s
    saves, until = 0, math.inf
    while device.clock[0] < 120.0:
        for _ in range(per_epoch):
            device.batch()
            if device.clock[0] >= until:
                until = math.inf
                device.budget.settled(0.1)
        device.clock[0] = max(device.clock[0], device.done_at)
        device.budget.pause()
        if until == math.inf and device.budget.is_due():
            device.clock[0] += 0.002
            until = device.until = device.clock[0] + 0.1
            device.budget.saved()
            device.was_saving = True
            saves += 1
    assert saves > 10
    assert device.lost_s + saves * 0.002 <= 1.1 * 0.035 * 120.0


def test_a_failed_save_is_no_measurement() -> None:
    device = Device.made([0.0])
    for _ in range(100):
        device.batch()
    device.save(0.1)
    while device.clock[0] < device.until:
        device.batch()
    device.budget.failed()
    device.was_saving = False
    for _ in range(20):
        device.batch()
    device.save(0.0)
    device.budget.settled(0.001)
    for _ in range(20):
        device.batch()
    assert device.budget.interval().slowed_s < 0.001


def test_a_save_that_is_waited_for_and_fails_is_paid_for_and_is_no_batch() -> None:
    run = Run(step_s=0.1, blocked_s=0.01, write_s=0.01, share=0.1)
    run.train(200)
    saves, step_s, blocked_s = len(run.saves), run.budget.step_s, run.budget.interval().blocked_s
    assert saves
    for batch in range(20):
        run.now += 0.1
        run.budget.not_saved()
        run.train(1, first=200 + batch)
    assert run.budget.step_s == pytest.approx(step_s)
    run.train(80, first=220)
    # Two seconds are earned in twenty.
    assert len(run.saves) == saves
    assert run.budget.interval().blocked_s == pytest.approx(blocked_s)
    run.train(400, first=300)
    assert len(run.saves) > saves


@pytest.mark.parametrize("counted", [True, False])
def test_hooks_of_each_batch_are_charged(counted: bool) -> None:
    saves = {}
    for hook_s in (0.0, 0.0001):
        run = Run(step_s=0.01, blocked_s=0.005, write_s=0.02, asks=True, hook_s=hook_s)
        if not counted:
            run.budget.is_quiet = lambda _: False  # type: ignore[method-assign]
        run.train(20_000)
        assert (run.quiet > 10_000) is counted
        saves[hook_s] = len(run.saves)
        assert run.cost_s + 20_000 * hook_s <= 0.035 * run.now + 0.01
    # Of three parts in a hundred one goes for that: 0.1 ms of 10.
    assert 0.6 < saves[0.0001] / saves[0.0] < 0.75


def test_one_slow_hook_does_not_change_the_cost_of_counting() -> None:
    saves = {}
    for by_chance_s in (0.0, 0.01):
        run = Run(step_s=0.01, blocked_s=0.005, write_s=0.02, asks=True)
        for batch in range(0, 20_000, 1_000):
            run.budget.pause()  # the first batch of an epoch is never only counted
            run.hook_s = by_chance_s
            run.train(1, first=batch)
            run.hook_s = 0.0
            run.train(999, first=batch + 1)
        saves[by_chance_s] = len(run.saves)
    assert saves[0.01] == pytest.approx(saves[0.0], rel=0.05)


def test_one_time_work_is_a_fixed_cost() -> None:
    saves = []
    for once in (False, True):
        run = Run(step_s=0.005, blocked_s=0.005, write_s=0.02, asks=True)
        run.budget.batches_done(1, saving=False)
        run.now += 0.1
        run.budget.hook_ends(once=once)
        run.train(400, first=1)
        saves.append(len(run.saves))
        noted = run.budget.interval().batches
        assert (noted < 50) is once
    # Half of what is earned pays for it, and not nine tenths.
    assert saves[0] == 0
    assert saves[1] >= 2


@pytest.mark.parametrize("each", [1, 4, 32])
def test_the_interval_is_in_batches_however_many_a_hook_is_called_for(each: int) -> None:
    run = Run(step_s=0.0005, blocked_s=0.005, write_s=0.02, asks=True, batches_each=each).train(256_000)
    gaps = [later - earlier for earlier, later in pairwise(run.saves[-20:])]
    assert run.budget.interval().batches == pytest.approx(sum(gaps) / len(gaps), rel=0.1)


def test_nothing_is_due_before_a_step_is_known() -> None:
    budget = OverheadBudget(0.5, nbytes=0, clock=iter(range(100)).__next__)
    assert not budget.is_due()
    budget.batches_done(1, saving=False)
    assert not budget.is_due()


def test_a_large_state_is_not_saved_before_time_for_it_is_earned() -> None:
    seconds = {}
    for nbytes in (1_000, 10_000_000_000):
        run = Run(step_s=0.1, blocked_s=1.0, write_s=1.0)
        run.budget = OverheadBudget(0.035, nbytes=nbytes, clock=lambda run=run: run.now)
        seconds[nbytes] = run.train(10_000).saves[0] * 0.1
    assert seconds[1_000] < 1
    assert seconds[10_000_000_000] == pytest.approx(10 / 0.035, rel=0.2)


def test_a_save_that_is_due_anyway_takes_nothing_from_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("is_due", "pause", "forgive"):
        monkeypatch.setattr(OverheadBudget, name, lambda budget, name=name: calls.append(name))
    within = WithinOverhead(0.1, nbytes=1, wait_for_device=lambda: None)
    assert AnySchedule(EveryEpoch(), within).due_at_epoch_end(last=False)
    assert calls == ["pause"]
    assert not AnySchedule(within).due_at_epoch_end(last=False)
    assert calls == ["pause", "pause", "is_due"]


@pytest.mark.parametrize("others", [(), (EveryInterval(3600),)], ids=["alone", "with an interval"])
def test_the_best_is_saved_whatever_the_budget_says(
    monkeypatch: pytest.MonkeyPatch, others: tuple[SaveSchedule, ...]
) -> None:
    calls: list[str] = []
    for name in ("is_due", "forgive"):
        monkeypatch.setattr(OverheadBudget, name, lambda budget, name=name: calls.append(name))
    within = WithinOverhead(0.1, nbytes=1, wait_for_device=lambda: None)
    assert AnySchedule(*others, within).due_at_epoch_end(last=False, best=True, saving=True)
    assert calls == ["forgive"]


def test_an_interval_starts_when_the_store_is_open() -> None:
    now = [0.0]
    schedule = AnySchedule(EveryInterval(10, clock=lambda: now[0]))
    now[0] = 9.0  # the store was waited for
    schedule.begin()
    now[0] = 18.0
    assert not schedule.due_after(1)
    now[0] = 19.0
    assert schedule.due_after(1)
