"""Reasons for which a resumed run may not be exact, as far as they are known at the resume: one line for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import xxhash

from ckptstore.keras.private import FitLoop
from ckptstore.keras.state import random_state
from ckptstore.training.data import source

_SEED = "keras.utils.set_random_seed(...) at the start of the script"


def generators_at_start(loop: FitLoop) -> dict[str, str] | None:
    """Return digests that show if a Python generator's first batches are the same in another process.

    Keras takes them before training begins, and so before anything can be set back: what it finds must be what it
    found the first time. Other data needs no such thing: None.
    """
    if loop.data.adapter_name != "GeneratorDataAdapter":
        return None
    states = random_state.capture()
    return {name: _digest(states, name) for name in random_state.names(states)}


def _digest(states: random_state.GlobalGenerators, name: str) -> str:
    digest = xxhash.xxh3_128(repr(states.document.get(name)).encode())
    for key, array in sorted(states.arrays.items()):
        if key.partition("/")[0] == name:
            digest.update(array.tobytes())
    return digest.hexdigest()


def inexact_reasons(
    loop: FitLoop, place: Mapping[str, Any], now: Mapping[str, str] | None, *, epoch: int
) -> Iterator[str]:
    """Yield the reasons for which going to a place in the data may not be exact.

    Args:
        loop: The fit that is resumed.
        place: What `DataReplay.position` returned at the save.
        now: What `generators_at_start` returns in this process.
        epoch: The epoch that it resumes with.
    """
    if loop.data.is_unseeded:
        yield f"TensorFlow shuffles the data from no seed that another process has: call {_SEED}"
    before = place.get("beginning")
    if before is not None and now is not None and before != now:
        names = ", ".join(name for name in before if before[name] != now.get(name))
        yield (
            f"the data is a Python generator, of which Keras takes batches before training begins, and the random "
            f"generators of {names} are in another state than at the first start: call {_SEED}"
        )
    changed = [*_changed_batches(loop, place)]
    if changed:
        yield "; ".join(changed)
    if loop.data.reads_ahead and _has_changed_under_way(place):
        yield (
            "TensorFlow asks the data for more than training has had, also beyond the end of an epoch "
            "(steps_per_epoch), and the data itself changes or draws: how far it was asked before that is not known"
        )
    if epoch and source.keeps_workers(loop.source):
        yield (
            "the workers of the DataLoader live on from epoch to epoch (persistent_workers), and what random numbers "
            "they have drawn cannot be saved"
        )
    if loop.data.prefetched is not None and place.get("prefetched") is None:
        yield "the batches that the data's workers had ready for the next epoch were too large to be saved"


def _has_changed_under_way(place: Mapping[str, Any]) -> bool:
    """Return True if the source's own state has changed under an iterator that spans epochs."""
    kept = place.get("kept")
    if kept is None or not kept["taken"]:
        return False
    return not source.same_state(kept.get("source"), place.get("source"))


def _changed_batches(loop: FitLoop, place: Mapping[str, Any]) -> Iterator[str]:
    size, size_now = place.get("batch_size"), loop.data.batch_size
    if size is not None and size_now is not None and size != size_now:
        yield f"batch_size was {size} when the checkpoint was saved, and is {size_now} now"
    known, per_epoch = place.get("batches_per_epoch"), loop.data.batches_per_epoch
    if known is not None and per_epoch is not None and known != per_epoch:
        yield f"an epoch had {known} batches when the checkpoint was saved, and has {per_epoch} now"
