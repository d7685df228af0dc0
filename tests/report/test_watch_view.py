"""The screen of `ckptstore watch`, made of records: its size, what it shows, hostile names, and the order of runs."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ckptstore.records import (
    Attempt,
    Checkpoint,
    DiskSpace,
    Epoch,
    Observation,
    ObservedRun,
    Run,
    RunState,
    SavingCost,
)
from ckptstore.report.glyphs import ASCII, GLYPHS, glyphs_for
from ckptstore.report.progress import finished_epochs, finished_share, time_left_s
from ckptstore.report.table import cell_width
from ckptstore.report.watch_lines import ChangeLines, watch_document, without_clocks
from ckptstore.report.watch_view import SORT_KEYS, Choice, sorted_runs, watch_view
from records import CHECKPOINT, PATH

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
NASTY = "n\x1b[31m\x9b2J\u202egpj.\u2028\x07\x7f\U000e0041 损失"
STATES: tuple[RunState, ...] = ("running", "saving", "hung", "interrupted", "finished", "failed", "stopped")


def saved(
    version: int, epoch: int, batch: int | None = None, *, age_s: float = 41, **metrics: float
) -> Checkpoint:
    return replace(
        CHECKPOINT,
        version=version,
        epoch=epoch,
        batch=batch,
        step=epoch * 400 + (400 if batch is None else batch + 1),
        metrics=metrics,
        nbytes=12_345_678,
        created_at=NOW - timedelta(seconds=age_s),
    )


def epochs_of(count: int, *, every_s: float = 130, **metrics: list[float]) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(
            epoch=number,
            batch=None,
            step=400 * (number + 1),
            version=number + 1,
            created_at=NOW - timedelta(seconds=every_s * (count - number)),
            metrics={name: values[number] for name, values in metrics.items()},
        )
        for number in range(count)
    )


def observed(name: str = "digits", state: RunState = "running", **changes: Any) -> ObservedRun:
    """Return a run in its thirteenth of 50 epochs, with some of its fields changed."""
    is_active = state in ("running", "saving", "hung")
    attempt = Attempt(run=name, attempt=3, started_at=NOW - timedelta(hours=3), host="gpu-17", pid=4711)
    if not is_active:
        attempt = replace(attempt, ended_at=NOW - timedelta(hours=2), reason="oom", signal="SIGKILL")
    of_run = {
        "epoch": 12,
        "batch": 99,
        "step": 4900,
        "steps_per_s": 4.0 if is_active else None,
        "latest": saved(14, 12, 59),
        "best": saved(9, 8, age_s=700, val_loss=0.1203),
        "resume_point": saved(14, 12, 59),
        "epochs": 50,
        "batches": 400,
        "last_attempt": attempt,
        "attempts": 3,
        "checkpoints": 14,
    }
    fields = {
        name: changes.pop(name)
        for name in list(changes)
        if name in Run.__dataclass_fields__ and name != "epochs"
    }
    curve = [1 / (number + 1) for number in range(12)]
    of_view = {
        "phase": "training" if is_active else None,
        "metrics": {"loss": 0.0913, "val_loss": 0.2},
        "monitor": ("val_loss", "min"),
        "epochs": epochs_of(12, loss=curve, val_loss=curve),
        "cost": SavingCost(saves=14, blocked_s=0.012, share=0.0041),
    }
    return ObservedRun(run=Run(name=name, state=state, **of_run | fields), **of_view | changes)


def observation(*runs: ObservedRun, **changes: Any) -> Observation:
    disk = DiskSpace(total=500 * 10**9, free=123 * 10**9, full_in_s=3.2 * 86_400)
    return Observation(**{"store": PATH, "at": NOW, "runs": runs, "disk": disk} | changes)


def lines_of(
    seen: Observation, choice: Choice | None = None, width: int = 80, height: int = 24, **more: Any
) -> list[str]:
    """Return the screen's lines, after a check that they fit, and that nothing in them acts on a terminal."""
    view = watch_view(seen, choice or Choice(), width=width, height=height, **more)
    lines = view.plain.split("\n")
    assert len(lines) == height
    assert all(cell_width(line) <= width for line in lines), [
        line for line in lines if cell_width(line) > width
    ]
    assert all(char.isprintable() for line in lines for char in line)
    return lines


def test_a_screen_of_80_by_24_shows_everything_about_a_run() -> None:
    lines = lines_of(observation(observed(), observed("other", "interrupted")))
    text = "\n".join(lines)
    assert lines[0].startswith("/runs/digits") and "2 runs, 1 training" in lines[0]
    assert re.search(r"▶ digits +running +12/50 +8[0-9] min ", lines[2])
    assert re.search(r"  other +interrupted +12/50 ", lines[3])
    assert "── digits ─ running ──" in lines[4]
    for shown in (
        r"epochs +12/50 +█+░+ +24 %  8\d min left, until \d\d:\d\d",
        r"batches +100/400 +█+░+ +25 %  4 steps/s, step 4900",
        r"val_loss +0\.2 +█+[▂-▇]+▁+ +best 0\.1203 in epoch 8",
        r"loss +0\.0913 +█+[▂-▇]+▁+",
        r"best +version 9, 11 min old, val_loss 0\.1203: epoch 8, end, step 3600",
        r"resume point +version 14, 41 s old: epoch 12, batch 59, step 4860",
        r"last save +41 s ago, version 14 of 12\.3 MB; 14 checkpoints",
        r"saving +0\.41 % of the time, 12 ms of waiting for each of 14 saves",
        r"attempts +3 \(2 restarts\); the last began 3\.0 h ago on gpu-17, process 4711",
        r"disk +123 GB free, full in 3\.2 days at this rate, of 500 GB",
    ):
        assert re.search(shown, text), shown
    assert lines[-1].split() == [
        "n",
        "next",
        "p",
        "previous",
        "s",
        "sort:",
        "newest",
        "?",
        "help",
        "q",
        "quit",
    ]


def test_a_narrow_screen_leaves_out_what_matters_least() -> None:
    lines = lines_of(observation(observed(), observed("other", "interrupted")), width=60, height=20)
    heading = lines[1]
    assert all(name in heading for name in ("run", "state", "epochs", "left", "val_loss", "saved"))
    assert "progress" not in heading
    text = "\n".join(lines)
    assert re.search(r"epochs +12/50 +\S+ +24 %  8\d min left, until \d\d:\d\d$", text, re.MULTILINE)
    assert re.search(r"disk +123 GB free", text)


def test_of_40_runs_the_chosen_one_is_in_sight_and_the_rest_counted() -> None:
    runs = [observed(f"run-{number:02}", STATES[number % 7]) for number in range(40)]
    seen = observation(*runs)
    choice = Choice(sort="name")
    for number in (*range(40), 0):
        choice = replace(choice, run=f"run-{number:02}")
        lines = lines_of(seen, choice)
        rows = [line for line in lines if re.match(r"[▶ ] run-", line)]
        assert len(rows) >= 5
        [marked] = [line for line in rows if line.startswith("▶")]
        assert f"run-{number:02}" in marked and STATES[number % 7] in marked
        above, below = (
            int(found[1]) if (found := re.search(f"{sign}(\\d+)", lines[1])) else 0 for sign in "↑↓"
        )
        assert above + len(rows) + below == 40
        assert rows[0].split("run-")[1].startswith(f"{above:02}")
        assert f"── run-{number:02} ─" in "\n".join(lines)
    assert [
        Choice(run="run-39", sort="name").moved(seen, 1).run,
        Choice(run="run-00", sort="name").moved(seen, -1).run,
    ] == [
        "run-00",
        "run-39",
    ]


@pytest.mark.parametrize(
    "glyphs", [GLYPHS, ASCII, replace(ASCII, encoding="latin-1")], ids=["utf-8", "ascii", "latin-1"]
)
def test_no_size_state_or_name_breaks_the_screen(glyphs: Any) -> None:
    draw = random.Random(7)
    names = (NASTY, "x" * 99, "损失" * 40, "a", "\ud800")
    odd = (math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0, 5e-324)
    for _ in range(150):
        runs = []
        for number in range(draw.choice((0, 1, 2, 7, 40))):
            metrics = {draw.choice(names): draw.choice(odd) for _ in range(3)} | {
                "val_loss": draw.choice(odd)
            }
            changes = {
                name: None
                for name in (
                    "epoch",
                    "batch",
                    "step",
                    "latest",
                    "best",
                    "resume_point",
                    "last_attempt",
                    "batches",
                )
                if draw.random() < 0.3
            }
            count = draw.choice((0, 1, 2, 30))
            run = observed(
                f"{draw.choice(names)}{number}",
                draw.choice(STATES),
                metrics=metrics,
                phase=draw.choice((None, "paused", "validating")),
                note=draw.choice(("", NASTY, "x" * 200)),
                phase_s=draw.choice((None, 90.0)),
                monitor=draw.choice((None, ("val_loss", "min"), (NASTY, "max"))),
                epochs=epochs_of(count, val_loss=[draw.choice(odd) for _ in range(count)]),
                cost=draw.choice((None, SavingCost(saves=1, blocked_s=3.0))),
                steps_per_s=draw.choice((None, 0.0, 1e-9, 1e9)),
                **changes,
            )
            runs.append(run)
        choice = Choice(
            run=draw.choice((None, "gone")), sort=draw.choice(SORT_KEYS), help=draw.random() < 0.1
        )
        disk = draw.choice((None, DiskSpace(total=0, free=0), DiskSpace(total=1, free=1, full_in_s=0.0)))
        seen = observation(*runs, disk=disk, problem=draw.choice((None, NASTY, "one\ntwo")))
        size = {"width": draw.choice((1, 7, 20, 60, 80, 200)), "height": draw.choice((1, 2, 5, 24, 60))}
        lines = lines_of(seen, choice, glyphs=glyphs, **size)
        assert "\n".join(lines).encode(glyphs.encoding)


def test_what_an_encoding_cannot_show_is_drawn_in_ascii() -> None:
    assert glyphs_for("utf-8") is GLYPHS
    assert {glyphs_for(name) for name in ("ascii", "iso-8859-1", "cp437", None, "nonsense")} == {ASCII}
    assert GLYPHS.curve([0, 1, 2, 3], 8) == "▁▃▆█"
    assert GLYPHS.curve([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▁▂▄▅▇██"
    assert GLYPHS.curve([900, 4, 3, 2, 1], 8) == "██▅▁▁"
    assert GLYPHS.curve([1.0, 1.0], 8) == "▄▄"
    assert GLYPHS.curve([math.nan, math.inf, 1.0], 8) == "xx▄"
    assert GLYPHS.curve([-1e308, 1e308], 8) == "▁█"
    assert [len(GLYPHS.curve(list(range(count)), 8)) for count in (0, 1, 8, 9, 500)] == [0, 1, 8, 8, 8]
    assert GLYPHS.shorten("损失", 3) == "损…"
    lines = lines_of(observation(observed("损失")), glyphs=ASCII)
    assert "> \\u635f\\u5931  running" in lines[2]


def test_a_problem_is_shown_above_the_runs_last_seen() -> None:
    lines = lines_of(
        observation(observed(), problem="the manifest is old\nto upgrade it: ckptstore upgrade /runs")
    )
    assert lines[1:3] == ["the manifest is old", "to upgrade it: ckptstore upgrade /runs"]
    assert "digits" in lines[4]
    assert lines_of(observation(problem="no store here yet"))[1] == "no store here yet"
    assert lines_of(observation())[1] == "no runs yet"
    alone = observed(attempts=0, last_attempt=None, best=None, resume_point=None, latest=None, cost=None)
    text = "\n".join(lines_of(observation(replace(alone, epochs=(), metrics={}))))
    for name, known in (
        ("best", "none yet"),
        ("resume point", "none yet"),
        ("last save", "none yet"),
        ("saving", "not known yet"),
        ("attempts", "none recorded"),
    ):
        assert re.search(f"^ {name} +{known}$", text, re.MULTILINE), name


def test_phases_and_ends_are_told() -> None:
    def rule(run: ObservedRun) -> str:
        return next(line for line in lines_of(observation(run)) if line.startswith("──"))

    assert "running: validating (90 s) ─" in rule(
        observed(note="validating", phase="validating", phase_s=90.0)
    )
    assert "─ running: validating ─" in rule(observed(note="validating", phase="validating", phase_s=1.0))
    assert "─ running ─" in rule(observed(note="between two epochs", phase="paused", phase_s=1.0))
    assert "between two epochs (2 min) ─" in rule(
        observed(note="between two epochs", phase="paused", phase_s=120.0)
    )
    assert "─ hung: silent for 31 min ─" in rule(
        observed(state="hung", note="silent for 31 min", phase_s=2000.0)
    )
    assert rule(observed("x" * 99, "stopped", note=f"{NASTY} disk full" * 9)).startswith(
        "── xxxxxxxxx… ─ stopped: n\\x1b"
    )
    failed = observed(state="failed")
    assert failed.run.last_attempt is not None
    detail = {"type": "ValueError", "message": "bad\x1b[2J"}
    attempt = replace(failed.run.last_attempt, reason="exception", signal=None, exit_code=1, detail=detail)
    text = "\n".join(lines_of(observation(replace(failed, run=replace(failed.run, last_attempt=attempt)))))
    assert re.search(r"ended +2\.0 h ago: exception, ValueError: bad\\x1b\[2J\n", text)
    assert "batches" not in text
    assert "2.0 h ago: oom, SIGKILL" in "\n".join(lines_of(observation(observed(state="interrupted"))))


def test_the_newest_run_is_followed_until_another_one_is_chosen() -> None:
    old = observed("old")
    assert old.run.last_attempt is not None
    later = replace(old.run.last_attempt, started_at=NOW)
    new = observed("new", last_attempt=later)
    over = observed("over", "finished", last_attempt=replace(later, started_at=NOW + timedelta(days=1)))
    seen = observation(old, new, over)

    def chosen(choice: Choice) -> str:
        found = choice.chosen(seen)
        assert found is not None
        return found.run.name

    assert chosen(Choice()) == "new"  # one that trains comes before one that has ended later
    assert chosen(Choice(run="old")) == "old"
    assert chosen(Choice(run="gone")) == "new"
    assert Choice().moved(seen, 1).run == "old"
    assert Choice(help=True).moved(observation(), 1) == Choice(help=True)


def test_runs_are_sorted_by_what_is_asked_for() -> None:
    runs = [
        observed("b", "finished", epoch=49, batch=None, step=20_000, best=saved(1, 1, val_loss=0.3)),
        observed("a", "running", epoch=1, best=saved(2, 1, val_loss=0.2)),
        observed("d", "hung", epoch=2, best=None),
        observed("c", "failed", epoch=3, best=saved(3, 1, val_loss=0.1)),
    ]
    orders = {
        sort: "".join(run.run.name for run in sorted_runs(observation(*runs), sort)) for sort in SORT_KEYS
    }
    assert orders == {"newest": "adbc", "name": "abcd", "state": "dcab", "progress": "bcda", "metric": "cabd"}
    choice, orders_by_key = Choice(), []
    for _ in SORT_KEYS:
        choice = choice.sorted_by_next()
        orders_by_key.append(choice.sort)
    assert orders_by_key == [*SORT_KEYS[1:], SORT_KEYS[0]]


def test_time_left_counts_batches_of_this_epoch_and_whole_epochs_with_what_comes_between() -> None:
    run = observed(epochs=())
    assert time_left_s(run) == (50 * 400 - 12 * 400 - 100) / 4.0
    # Epochs of 130 s, of which 100 s are batches: validation and saves take the rest.
    assert time_left_s(observed()) == 300 / 4.0 + 37 * 130
    # The epochs before this attempt do not count, since the training stood still between.
    began = Attempt(run="digits", attempt=4, started_at=NOW)
    assert time_left_s(observed(last_attempt=began)) == time_left_s(run)
    assert time_left_s(observed(state="hung")) is None
    assert time_left_s(observed(state="finished")) is None
    assert time_left_s(observed(epochs=(), steps_per_s=None)) is None
    at_the_end = observed(epoch=49, batch=None, step=20_000)
    assert (time_left_s(at_the_end), finished_share(at_the_end.run), finished_epochs(at_the_end.run)) == (
        0.0,
        1.0,
        50,
    )
    done = observed(state="finished", epoch=49, batch=399, step=20_000).run
    assert (finished_epochs(done), finished_share(done)) == (50, 1.0)
    at_the_beginning = observed(epoch=3, batch=None, step=1200).run
    assert (finished_epochs(at_the_beginning), finished_share(at_the_beginning)) == (3, 0.06)


def test_a_line_is_printed_for_each_change_but_not_for_each_batch() -> None:
    changes = ChangeLines()
    first = observation(observed(), observed(NASTY, "interrupted"))
    lines = list(changes.lines(first))
    assert len(lines) == 2
    assert (
        "digits  running  epochs 12/50  step 4900  val_loss 0.2  version 14 saved 41 s ago  2 restarts"
        in lines[0]
    )
    assert "ended: oom" in lines[1] and lines[1].isprintable()
    assert list(changes.lines(observation(observed(batch=100, step=4901), *first.runs[1:]))) == []
    epoch = observation(observed(epoch=13, batch=None, step=5200), *first.runs[1:])
    assert len(list(changes.lines(epoch))) == 1
    [problem] = changes.lines(replace(epoch, problem="one\ntwo"))
    assert problem.endswith("/runs/digits: one; two")
    assert list(changes.lines(replace(epoch, problem="one\ntwo"))) == []
    back, gone = changes.lines(observation(observed(epoch=13, batch=None, step=5200)))
    assert back.endswith("the store can be read again")
    assert gone.isprintable() and gone.endswith("removed")


def test_the_document_has_the_runs_fields_and_what_is_shown_beside_them() -> None:
    document = watch_document(
        observation(observed(metrics={"loss": math.nan}), observed("b", "finished", latest=None))
    )
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    run = document["runs"][0]
    assert set(observed().run.to_json()) < set(run)
    assert {
        name: run[name] for name in ("metrics", "monitor", "finished", "checkpoint_age_s", "restarts")
    } == {
        "metrics": {"loss": "NaN"},
        "monitor": "val_loss",
        "finished": 0.245,
        "checkpoint_age_s": 41.0,
        "restarts": 2,
    }
    assert (run["saving_share"], run["time_left_s"]) == (0.0041, 4885.0)
    assert document["disk"] == {"total": 500 * 10**9, "free": 123 * 10**9, "full_in_s": 276_480.0}
    later = watch_document(
        observation(
            observed(metrics={"loss": math.nan}),
            observed("b", "finished", latest=None),
            at=NOW + timedelta(seconds=9),
        )
    )
    assert later != document
    assert without_clocks(later) == without_clocks(document)
