"""Everything about one run on a screen: its progress, metrics, checkpoints, attempts, and the disk."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ckptstore.records import Checkpoint, DiskSpace, Observation, ObservedRun, Run
from ckptstore.report.progress import (
    finished_batches,
    finished_epochs,
    finished_share,
    restarts,
    share_of_epoch,
    time_left_s,
)
from ckptstore.report.run_table import STYLES, metric_curve, newest_value, percent
from ckptstore.report.screen import Part, Screen
from ckptstore.report.text import age_text, metric_text, position_text, size_text

if TYPE_CHECKING:
    from rich.text import Text

# Cells of what stands beside bars and curves, and how wide these are at least and at most.
_BESIDE_BAR, _NARROWEST_BAR, _WIDEST_BAR = 57, 4, 40
_BESIDE_CURVE, _NARROWEST_CURVE, _WIDEST_CURVE = 53, 8, 40
_DONE, _VALUE = 9, 10
_MOST_METRICS = 8
_FAR_S = 365 * 86_400.0


def run_details(screen: Screen, observed: ObservedRun, observation: Observation) -> list[Text]:
    """Return the lines about a run, the most important first."""
    run, now = observed.run, observation.at
    lines = [*_progress(screen, observed, now), *_metrics(screen, observed)]
    best = "" if observed.monitor is None or run.best is None else observed.monitor[0]
    lines += [
        screen.fact("best", *_checkpoint(screen, run.best, now, best)),
        screen.fact("resume point", *_checkpoint(screen, run.resume_point, now)),
        screen.fact("last save", *_last_save(run, now)),
        screen.fact("saving", *_saving(observed)),
        screen.fact("attempts", *_attempts(screen, run, now)),
    ]
    if observation.disk is not None:
        lines.append(screen.fact("disk", *_disk(observation.disk)))
    return lines


def _progress(screen: Screen, observed: ObservedRun, now: datetime) -> Iterator[Text]:
    """Yield a line of the epochs, and while it trains one of the batches, each with a bar."""
    run = observed.run
    share, left = finished_share(run), time_left_s(observed)
    done = f"{finished_epochs(run)}/{run.epochs}" if run.epochs else f"{finished_epochs(run)} finished"
    parts = [(f"{done:<{_DONE}}", "")]
    if share is not None:
        parts += [_bar(screen, share, "green"), (f" {percent(share):>5}", "")]
    if left is not None:
        parts.append((f"  {age_text(left)} left{_until(left, now)}", ""))
    yield screen.fact("epochs", *parts)
    if not run.is_active:
        yield from _end(screen, run, now)
        return
    batches = f"{finished_batches(run)}/{run.batches}" if run.batches else str(finished_batches(run))
    parts = [(f"{batches:<{_DONE}}", "")]
    if run.batches:
        parts += [_bar(screen, share_of_epoch(run), "cyan"), (f" {percent(share_of_epoch(run)):>5}", "")]
    known = [] if run.steps_per_s is None else [_speed(run.steps_per_s)]
    known += [] if run.step is None else [f"step {run.step}"]
    yield screen.fact("batches", *parts, (f"  {', '.join(known)}", ""))


def _until(left_s: float, now: datetime) -> str:
    """Return when that will be; nothing where it is years away, since the speed is not that exact."""
    if left_s > _FAR_S:
        return ""
    until, today = (now + timedelta(seconds=left_s)).astimezone(), now.astimezone()
    return f", until {'' if until.date() == today.date() else f'{until:%a %d %b} '}{until:%H:%M}"


def _end(screen: Screen, run: Run, now: datetime) -> Iterator[Text]:
    """Yield a line of when and why the newest attempt ended."""
    last = run.last_attempt
    if last is None or last.ended_at is None:
        return
    why = (last.reason or "unknown").replace("_", " ")
    how = last.signal or (f"exit code {last.exit_code}" if last.exit_code else "")
    error = ": ".join(str(last.detail[key]) for key in ("type", "message") if last.detail.get(key))
    said = screen.glyphs.text(error or how)
    ago = age_text((now - last.ended_at).total_seconds())
    yield screen.fact(
        "ended", (f"{ago} ago: ", ""), (f"{why}{f', {said}' if said else ''}", STYLES[run.state])
    )


def _bar(screen: Screen, share: float, style: str) -> Part:
    width = max(_NARROWEST_BAR, min(_WIDEST_BAR, screen.width - _BESIDE_BAR))
    return screen.glyphs.bar(share, width), style


def _speed(steps_per_s: float) -> str:
    """Return a speed; slow steps are shown by their length.

    Example:
        >>> _speed(212.34), _speed(0.05)
        ('212 steps/s', '20 s/step')
    """
    if 0 < steps_per_s < 0.2:
        return f"{1 / steps_per_s:.3g} s/step"
    return f"{steps_per_s:.3g} steps/s" if steps_per_s < 1000 else f"{steps_per_s:.0f} steps/s"


def _metrics(screen: Screen, observed: ObservedRun) -> Iterator[Text]:
    """Yield a line for each metric, with its curve: the watched one first, then those of validation."""
    names = dict.fromkeys(
        (*observed.metrics, *(name for epoch in observed.epochs[-1:] for name in epoch.metrics))
    )
    monitor = None if observed.monitor is None else observed.monitor[0]
    names_in_order = sorted(names, key=lambda name: (name != monitor, not name.startswith("val_")))
    for name in names_in_order[:_MOST_METRICS]:
        width = max(_NARROWEST_CURVE, min(_WIDEST_CURVE, screen.width - _BESIDE_CURVE))
        curve = screen.glyphs.curve(metric_curve(observed, name), width)
        parts = [(f"{metric_text(newest_value(observed, name)):<{_VALUE}} ", ""), (curve, "cyan")]
        best = observed.run.best
        if name == monitor and best is not None and name in best.metrics:
            parts.append((f"  best {metric_text(best.metrics[name])} in epoch {best.epoch}", ""))
        yield screen.fact(name, *parts)


def _checkpoint(
    screen: Screen, checkpoint: Checkpoint | None, now: datetime, metric: str = ""
) -> Iterator[Part]:
    if checkpoint is None:
        yield "none yet", "dim"
        return
    yield f"version {checkpoint.version}, {_age(checkpoint, now)} old", ""
    if metric in checkpoint.metrics:
        yield f", {screen.glyphs.text(metric)} {metric_text(checkpoint.metrics[metric])}", ""
    yield f": {position_text(checkpoint)}", ""


def _age(checkpoint: Checkpoint, now: datetime) -> str:
    return age_text((now - checkpoint.created_at).total_seconds())


def _last_save(run: Run, now: datetime) -> Iterator[Part]:
    if run.latest is None:
        yield "none yet", "dim"
        return
    yield f"{_age(run.latest, now)} ago", ""
    several = "" if run.checkpoints == 1 else "s"
    yield f", version {run.latest.version} of {size_text(run.latest.nbytes)}", ""
    yield f"; {run.checkpoints} checkpoint{several}", ""


def _saving(observed: ObservedRun) -> Iterator[Part]:
    cost = observed.cost
    if cost is None:
        yield "not known yet", "dim"
        return
    each = f"{cost.blocked_s * 1000:.3g} ms" if cost.blocked_s < 1 else f"{cost.blocked_s:.3g} s"
    if cost.share is None:
        yield f"{each} of waiting for the last save", ""
    else:
        share = cost.share * 100
        shown = f"{share:.2g} %" if share < 10 else f"{share:.0f} %"
        yield f"{shown} of the time", "bold red" if share >= 10 else ""
        yield f", {each} of waiting for each of {cost.saves} saves", ""


def _attempts(screen: Screen, run: Run, now: datetime) -> Iterator[Part]:
    if not run.attempts:
        yield "none recorded", "dim"
        return
    several = "" if restarts(run) == 1 else "s"
    yield f"{run.attempts} ({restarts(run)} restart{several})", "yellow" if restarts(run) else ""
    last = run.last_attempt
    if last is not None:
        yield f"; the last began {age_text((now - last.started_at).total_seconds())} ago", ""
        yield f" on {screen.glyphs.text(last.host)}, process {last.pid}" if last.host else "", ""


def _disk(disk: DiskSpace) -> Iterator[Part]:
    low = disk.total > 0 and disk.free / disk.total < 0.05
    yield f"{size_text(disk.free)} free", "bold red" if low else ""
    if disk.full_in_s is not None:
        soon = disk.full_in_s < 86_400
        yield f", full in {age_text(disk.full_in_s)} at this rate", "bold red" if soon else ""
    yield f", of {size_text(disk.total)}", ""
