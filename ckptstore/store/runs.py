"""Runs as they stand now: what the manifest knows of them, and the signs of life of their trainings.

It reads the manifest in one transaction, and two more for each run that was killed, and a small file for each run. It
takes no lock of a training, and writes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Beat, Checkpoint, Run, RunOverview
from ckptstore.storage.heartbeat_file import is_held, is_saving, read_heartbeat
from ckptstore.storage.integrity import size_matches
from ckptstore.storage.layout import Layout
from ckptstore.store import refs
from ckptstore.store.attempts.evidence import with_probable_ends
from ckptstore.store.run_states import Signs, state_of
from ckptstore.system.processes import boot_id, clock_s, process_state


def runs_of(manifest: Manifest, layout: Layout) -> list[Run]:
    """Return all runs of a store, sorted by name."""
    # Signs first: a run that ends meanwhile is then at most said to live still.
    names = manifest.runs.names()
    signs = {name: signs_of(layout, name) for name in names}
    overviews = [_with_probable_end(manifest, overview) for overview in manifest.overviews.all()]
    return [
        _run(manifest, overview, signs.get(overview.name) or signs_of(layout, overview.name))
        for overview in overviews
    ]


def _with_probable_end(manifest: Manifest, overview: RunOverview) -> RunOverview:
    """Return an overview with the probable end of its last attempt, if that is dead and has recorded none."""
    attempt = overview.last_attempt
    if attempt is None or attempt.reason is not None:
        return overview
    return replace(overview, last_attempt=with_probable_ends(manifest, [attempt])[0])


def signs_of(layout: Layout, run: str) -> Signs:
    """Return the signs of life of a run."""
    path = layout.heartbeats / run
    beat, held = read_heartbeat(path), is_held(path)
    if not held:
        return Signs(is_held=False, is_saving=is_saving(path), beat=beat)
    if beat is None or beat.boot_id is None or beat.boot_id != boot_id():
        return Signs(is_held=True, beat=beat)
    process = process_state(beat.pid, beat.started_ticks)
    return Signs(is_held=True, beat=beat, silence_s=clock_s() - beat.at_s, process=process)


def _run(manifest: Manifest, overview: RunOverview, signs: Signs) -> Run:
    state, note = state_of(signs, overview)
    beat, latest = signs.beat, overview.latest
    epoch, batch, step = _position(beat, latest, is_alive=signs.is_held)
    return Run(
        name=overview.name,
        state=state,
        note=note,
        attempts=overview.attempts,
        checkpoints=overview.checkpoints,
        epoch=epoch,
        batch=batch,
        step=step,
        steps_per_s=beat.steps_per_s if beat is not None and signs.is_held else None,
        latest=latest,
        best=overview.best,
        resume_point=_resume_point(manifest, overview),
        epochs=None if beat is None else beat.epochs,
        batches=None if beat is None else beat.batches,
        last_attempt=overview.last_attempt,
    )


def _position(
    beat: Beat | None, latest: Checkpoint | None, *, is_alive: bool
) -> tuple[int | None, int | None, int | None]:
    """Return epoch, batch and step: of the heartbeat, unless a checkpoint has come further since."""
    if beat is not None and beat.epoch is not None:
        is_behind = latest is not None and (latest.step or 0) > (beat.step or 0)
        if is_alive or not is_behind:
            return beat.epoch, beat.batch, beat.step
    return (None, None, None) if latest is None else (latest.epoch, latest.batch, latest.step)


def _resume_point(manifest: Manifest, overview: RunOverview) -> Checkpoint | None:
    point = overview.resume_point
    if point is None or size_matches(point):
        return point
    return refs.resume_point(manifest, overview.name)
