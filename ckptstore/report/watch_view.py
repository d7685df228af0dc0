"""The screen of `ckptstore watch`: a table of the runs, and below it everything about the chosen one.

Pure: it is made from an `Observation`, what the user has chosen, and the size of the terminal, which it never exceeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from ckptstore.records import Observation, ObservedRun, newest_run
from ckptstore.report.glyphs import GLYPHS, Glyphs
from ckptstore.report.progress import finished_share
from ckptstore.report.run_details import run_details
from ckptstore.report.run_table import STYLES, run_table
from ckptstore.report.screen import Screen
from ckptstore.report.text import age_text

if TYPE_CHECKING:
    from rich.text import Text

SortKey = Literal["newest", "name", "state", "progress", "metric"]
SORT_KEYS: tuple[SortKey, ...] = get_args(SortKey)
# By how much they need a person.
_STATES = ("hung", "failed", "stopped", "interrupted", "running", "saving", "finished")
# Lines of the details that are shown however many runs there are.
_LEAST_DETAILS = 12
# A phase that has lasted no longer may be over by now.
_SHORT_S = 5.0
_HELP = (
    ("n, down", "next run"),
    ("p, up", "previous run"),
    ("s", "sort by another column"),
    ("?", "this page, and back"),
    ("q", "quit; no training notices"),
    ("", ""),
    ("epochs", "finished, of all; batches: finished, of those of the epoch"),
    ("left", "until all epochs are trained, at the speed of late"),
    ("saved", "age of the newest checkpoint"),
    ("saving", "share of the time that the training waits for its saves"),
    ("hung", "no new batch for far longer than usual"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The choice of the user: which run, in which order.

    Attributes:
        run: The chosen run; None to follow the newest.
        sort: Order of the runs.
        help: True to see the page of the keys instead.
    """

    run: str | None = None
    sort: SortKey = "newest"
    help: bool = False

    def chosen(self, observation: Observation) -> ObservedRun | None:
        """Return the chosen run, or the newest where there is no such run any more; None where there are none."""
        by_name = {observed.run.name: observed for observed in observation.runs}
        if self.run in by_name:
            return by_name[self.run]
        newest = newest_run(observed.run for observed in observation.runs)
        return None if newest is None else by_name[newest.name]

    def moved(self, observation: Observation, steps: int) -> Choice:
        """Return the choice of the run that is some rows below the chosen one; after the last comes the first."""
        names = [observed.run.name for observed in sorted_runs(observation, self.sort)]
        chosen = self.chosen(observation)
        if chosen is None:
            return self
        place = (names.index(chosen.run.name) + steps) % len(names)
        return replace(self, run=names[place], help=False)

    def sorted_by_next(self) -> Choice:
        """Return the same choice in the next order."""
        place = SORT_KEYS.index(self.sort) + 1
        return replace(self, sort=SORT_KEYS[place % len(SORT_KEYS)], help=False)


def sorted_runs(observation: Observation, sort: SortKey) -> list[ObservedRun]:
    """Return the runs in an order; those that it does not tell apart by their names.

    ``"newest"`` puts those that train first, ``"state"`` those that need a person, ``"progress"`` the most advanced,
    and ``"metric"`` the best by the metric that their callback watches.
    """
    runs = sorted(observation.runs, key=lambda observed: observed.run.name)
    if sort == "newest":
        runs.sort(key=_newest_first)
    elif sort == "state":
        runs.sort(key=lambda observed: _STATES.index(observed.run.state))
    elif sort == "progress":
        runs.sort(key=lambda observed: -(finished_share(observed.run) or 0.0))
    elif sort == "metric":
        runs.sort(key=_best_first)
    return runs


def _newest_first(observed: ObservedRun) -> tuple[bool, float]:
    begun = observed.run.begun_at
    return not observed.run.is_active, 0.0 if begun is None else -begun.timestamp()


def _best_first(observed: ObservedRun) -> tuple[bool, str, float]:
    """Return a key: runs that watch other metrics are apart, and those without a best come last."""
    best = observed.run.best
    if observed.monitor is None or best is None or observed.monitor[0] not in best.metrics:
        return True, "", 0.0
    name, mode = observed.monitor
    return False, name, best.metrics[name] if mode == "min" else -best.metrics[name]


def watch_view(
    observation: Observation, choice: Choice, *, width: int, height: int | None, glyphs: Glyphs = GLYPHS
) -> Text:
    """Return the screen: `height` lines of at most `width` cells, the last with the keys.

    Args:
        observation: The store.
        choice: The part of it to show.
        width: Columns of the terminal.
        height: Its lines; None for as many as there is something to show, without the keys.
        glyphs: Characters that it can show.
    """
    from rich.text import Text

    screen = Screen(width, glyphs)
    lines = [_title(screen, observation)]
    if observation.problem is not None:
        lines += [
            screen.line((glyphs.text(line), "bold yellow")) for line in observation.problem.splitlines()
        ]
    chosen = choice.chosen(observation)
    if choice.help:
        lines += [screen.line((f" {key:<10}", "bold"), (meaning, "")) for key, meaning in (("", ""), *_HELP)]
    elif chosen is not None:
        room = None if height is None else height - len(lines) - 1
        lines += _runs(screen, observation, choice, chosen, room)
    elif observation.problem is None:
        lines.append(screen.line(("no runs yet", "")))
    if height is not None:
        lines = lines[: max(0, height - 1)]
        lines += [Text()] * (height - 1 - len(lines))
        lines.append(_keys(screen, choice))
    return Text("\n", no_wrap=True, overflow="crop", end="").join(lines)


def _title(screen: Screen, observation: Observation) -> Text:
    """Return the line of the store: its path, how many runs it has, and the time."""
    active = sum(observed.run.is_active for observed in observation.runs)
    several = "" if len(observation.runs) == 1 else "s"
    right = f"{len(observation.runs)} run{several}, {active} training  {observation.at.astimezone():%H:%M:%S}"
    return screen.ends((screen.glyphs.text(str(observation.store)), "bold"), (right, ""))


def _runs(
    screen: Screen, observation: Observation, choice: Choice, chosen: ObservedRun, room: int | None
) -> list[Text]:
    """Return the table of the runs, and what is known of the chosen one, in `room` lines."""
    runs = sorted_runs(observation, choice.sort)
    details = run_details(screen, chosen, observation)
    room = len(runs) + len(details) if room is None else room - 2  # for the heading and the rule
    rows = max(1, min(len(runs), room - min(len(details), max(_LEAST_DETAILS, room - len(runs)))))
    return [
        *run_table(screen, runs, chosen, rows, observation.at),
        _rule(screen, chosen),
        *details[: max(0, room - rows)],
    ]


def _rule(screen: Screen, chosen: ObservedRun) -> Text:
    """Return the line above the details: the chosen run, its state, and what is to be added."""
    run, glyphs = chosen.run, screen.glyphs
    lasts_s = 0.0 if chosen.phase_s is None else chosen.phase_s
    # Each epoch is followed by a moment without a batch.
    note = "" if chosen.phase == "paused" and lasts_s < _SHORT_S else glyphs.text(run.note)
    if note and chosen.phase != "training" and run.is_active and lasts_s >= _SHORT_S:
        note = f"{note} ({age_text(lasts_s)})"
    state = f"{run.state}: {note}" if note else run.state
    state = glyphs.shorten(state, max(len(run.state), screen.width - 20))
    name = glyphs.shorten(glyphs.text(run.name), max(8, screen.width - len(state) - 10))
    return screen.rule((name, "bold"), (f" {glyphs.rule} ", "dim"), (state, STYLES[run.state]))


def _keys(screen: Screen, choice: Choice) -> Text:
    """Return the last line of the screen."""
    keys = (
        ("n", " next"),
        ("p", " previous"),
        ("s", f" sort: {choice.sort}"),
        ("?", " help"),
        ("q", " quit"),
    )
    return screen.line(*(part for key, rest in keys for part in ((f" {key}", "bold"), (f"{rest} ", "dim"))))
