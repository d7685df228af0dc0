"""The detector of bad losses: quiet on ordinary trainings, quick on those that diverge; and the losses it looks at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ckptstore.training.session.bad_loss import IN_A_ROW, WINDOW, LossDetector
from ckptstore.training.session.batch_losses import BatchLosses

STEPS = 2000
Draw = np.random.Generator
Noise = Callable[[Draw, Any, float], Any]


def _outliers(draw: Draw, level: Any, size: float) -> Any:
    losses = level * (1 + 0.2 * draw.normal(size=STEPS))
    hit = draw.random(STEPS) < 0.01
    losses[hit] *= draw.uniform(5, 100, size=int(hit.sum()))
    return losses


def _restarts(draw: Draw, level: Any, size: float) -> Any:
    """Warm restarts that undo up to a quarter of what was learned, each time."""
    period = int(draw.integers(200, 700))
    steps = np.arange(STEPS)
    lift = np.where(steps >= period, (1 + np.cos(np.pi * (steps % period) / period)) / 2, 0)
    return (level + draw.uniform(0.05, 0.25) * (level[0] - level[-1]) * lift) * (
        1 + 0.2 * draw.normal(size=STEPS)
    )


def _margin(draw: Draw, level: Any, size: float) -> Any:
    """Zero for all but a few batches, by fine-tuning: there is nothing left that could be half undone."""
    return np.where(draw.random(STEPS) < draw.uniform(0.1, 0.4), draw.exponential(size=STEPS), 0)


def _swings(draw: Draw, level: Any, size: float) -> Any:
    """Two generations of periods; the loss grows to twenty times its least and comes back, again and again."""
    slow, fast = draw.uniform(40, 80), draw.uniform(10, 16)
    steps = np.arange(STEPS)
    return np.exp(np.sin(steps / slow) + 0.6 * np.sin(steps / fast) + 0.3 * draw.normal(size=STEPS))


NOISES: dict[str, Noise] = {
    "normal": lambda draw, level, size: level * (1 + size / 2 * draw.normal(size=STEPS)),
    "lognormal": lambda draw, level, size: level * np.exp(1.5 * size * draw.normal(size=STEPS)),
    "heavy tails": lambda draw, level, size: level * (1 + 0.4 * size * draw.standard_t(3, size=STEPS)),
    "exponential": lambda draw, level, size: level * draw.exponential(size=STEPS),
    "one hard batch in a hundred": _outliers,
    "warm restarts": _restarts,
    "periodic": lambda draw, level, size: (
        level
        * (1.2 + size * np.sin(np.arange(STEPS) / draw.uniform(3, 80)))
        * (1 + 0.1 * draw.normal(size=STEPS))
    ),
    "flat": lambda draw, level, size: level[-1] * (1 + size * draw.normal(size=STEPS)),
    "negative": lambda draw, level, size: level - 2 * level[0] + 0.2 * draw.normal(size=STEPS),
    "both signs": lambda draw, level, size: level - level[-1] + draw.normal(size=STEPS),
    "a margin that most batches keep": _margin,
    "rounded, near zero": lambda draw, level, size: np.round(abs(draw.normal(size=STEPS)) * 0.6) * 2.0**-23,
    "swings of adversaries": _swings,
}


def curve(kind: str, seed: int) -> Any:
    """Return the losses of a training that goes well."""
    draw = np.random.default_rng(seed)
    start, tau = 10 ** draw.uniform(-0.5, 1.3), 10 ** draw.uniform(1.5, 3)
    end = min(10 ** draw.uniform(-3, 0.3), 0.9 * start)
    level = end + (start - end) * np.exp(-np.arange(STEPS) / tau)
    return NOISES[kind](draw, level, draw.uniform(0.02, 0.6))


@pytest.mark.parametrize("kind", NOISES)
def test_trainings_that_go_well_raise_no_alarm(kind: str) -> None:
    """Forty curves of two thousand batches of each kind: no alarm in 1,040,000 batches."""
    for seed in range(40):
        detector = LossDetector()
        assert not any(detector.is_bad(loss, step) for step, loss in enumerate(curve(kind, seed).tolist())), (
            seed
        )


@pytest.mark.parametrize("growth", [math.inf, 1.5, 1.1])
def test_a_training_that_diverges_is_noticed_and_its_beginning_is_known(growth: float) -> None:
    starts = []
    for seed in range(20):
        losses = curve("normal", seed)
        # Noisy enough to be no easy case, and far enough that there is something to lose.
        at_once = 3 * losses[:16].mean()
        detector = LossDetector()
        assert not any(detector.is_bad(loss, step) for step, loss in enumerate(losses[:-200].tolist()))
        for passed, loss in enumerate(losses[-200:].tolist()):
            grown = at_once + loss if growth == math.inf else loss * min(growth**passed, 1e9)
            if detector.is_bad(grown, passed):
                break
        else:
            pytest.fail(f"seed {seed} was not noticed")
        starts.append(detector.sound_step)
        assert passed == IN_A_ROW - 1 or growth < math.inf
    # Before the first loss that no noise explains; a slow rise begins below the noise.
    assert np.median(starts) <= {math.inf: 0, 1.5: 10, 1.1: 40}[growth]


def test_nan_is_bad_at_once_and_a_single_outlier_never() -> None:
    detector = LossDetector()
    assert detector.is_bad(math.nan, 0)
    assert detector.is_bad(math.inf, 1)
    for step in range(2 * WINDOW):
        assert not detector.is_bad(1.0 + step % 3 / 10, step)
    for step in range(200, 600, 20):
        assert not detector.is_bad(1e6, step)
        assert detector.is_suspicious
        for sound in range(step + 1, step + 20):
            assert not detector.is_bad(1.0 + sound % 3 / 10, sound)
            assert not detector.is_suspicious
    assert not detector.is_bad(1e6, 600)
    assert not detector.is_bad(1e6, 601)
    assert detector.is_bad(1e6, 602)
    assert detector.sound_step == 600


def test_a_level_that_a_training_came_back_from_is_no_alarm_until_it_is_three_times_as_far() -> None:
    detector = LossDetector()
    for step in range(2 * WINDOW):
        # Every eighth batch is hard: two of sixteen.
        assert not detector.is_bad(100.0 if step % 8 == 0 else 1.0, step)
    assert not any(detector.is_bad(250.0, step) for step in range(200, 203))
    detector.end_rise()
    assert [detector.is_bad(350.0, step) for step in range(300, 303)] == [False, False, True]
    # It was told of and is ordinary from now on; the way back up is none to tell of again.
    detector.begin_again()
    assert not any(detector.is_bad(350.0, step) for step in range(400, 420))
    assert not any(detector.is_bad(1.0, step) for step in range(420, 520))
    assert not any(detector.is_bad(350.0, step) for step in range(520, 540))


def test_a_detector_continues_in_another_process() -> None:
    losses = [*curve("normal", 3)[:90].tolist(), 1e4, 1e4, *curve("normal", 3)[90:98].tolist(), *[1e6] * 5]
    alone = [(detector := LossDetector(), detector.is_bad(losses[0], 0))[1]]
    alone += [detector.is_bad(loss, step + 1) for step, loss in enumerate(losses[1:])]
    first, then = LossDetector(), LossDetector()
    for cut in range(0, 104, 13):
        first = LossDetector()
        found = [first.is_bad(loss, step) for step, loss in enumerate(losses[:cut])]
        then.set_state(first.state())
        found += [then.is_bad(loss, step + cut) for step, loss in enumerate(losses[cut:])]
        assert found == alone


def test_the_loss_of_each_batch_follows_from_the_running_mean() -> None:
    """As Keras keeps it: the sum and the count of 32 bits, each batch weighted by its size."""
    draw = np.random.default_rng(0)
    losses = draw.uniform(0.5, 1.5, size=100_000).astype("float32")
    losses[50_000:50_003] = 20
    means, total = [], np.float32(0)
    for count, loss in enumerate(losses, start=1):
        total = np.float32(total + loss * np.float32(32))
        means.append(float(total / np.float32(32 * count)))
    batches, detector = BatchLosses(True), LossDetector()
    bad = []
    for step, mean in enumerate(means):
        loss, error = batches.of(mean)
        assert loss is not None
        assert abs(loss - losses[step]) <= error + 1e-6
        if detector.is_bad(loss, step, error=error):
            bad.append(step)
    assert bad == [50_002]


def test_a_loss_that_is_not_finite_hides_none_of_the_next_epoch() -> None:
    batches = BatchLosses(True)
    assert batches.of(2.0)[0] == 2.0
    assert math.isnan(batches.of(math.nan)[0] or 0)
    assert math.isnan(batches.of(math.nan)[0] or 0)
    batches.begin_epoch()
    assert batches.of(3.0)[0] == 3.0
    # Of a run that was saved without it: unknown until an epoch begins, but for what is not finite.
    batches.set_state(None)
    assert batches.of(1.0)[0] is None
    assert batches.of(math.inf)[0] == math.inf
    assert BatchLosses(False).of(5.0) == (5.0, 0.0)
