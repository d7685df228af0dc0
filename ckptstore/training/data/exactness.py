"""Reasons why a resumed run may not be exact.

`inexact_reasons` compares the position of the save with the fit that resumes, and yields one line for each reason that
is known at the resume. If the data is a Python generator, Keras reads its first batches before anything can be
restored: `generators_at_start` records the state of the random generators at that time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import xxhash

from ckptstore.keras.private import FitLoop
from ckptstore.keras.state import random_state
from ckptstore.training.data import source

_SEED = "keras.utils.set_random_seed(...) at the start of the script"
OTHER_GENERATOR = (
    "the first batches of the Python generator are not those of the first start: it draws from a random generator "
    "without a seed, such as np.random.default_rng(), or what it reads has changed. Give the random generator a seed"
)
OTHER_FIRST_BATCH = (
    "the data is not what it was: its first batch, read again, is not the one that was trained on. It draws from a "
    "random generator that is not saved, such as np.random.default_rng() outside of the data, or what it reads has "
    "changed. Keep the random generator in an attribute of the data, which is saved"
)


def generators_at_start(loop: FitLoop) -> dict[str, str] | None:
    """Return digests of the global generators if the data is a Python generator, else None.

    Keras reads a Python generator's first batches before training begins, and so before any state can be restored.
    In another process these batches are the same only if the global generators start in the same state.
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
    loop: FitLoop, position: Mapping[str, Any], now: Mapping[str, str] | None, *, epoch: int
) -> Iterator[str]:
    """Yield the reasons why resuming at a position in the data may not be exact.

    Args:
        loop: The fit that resumes.
        position: The result of `DataReplay.position` at the save.
        now: The result of `generators_at_start` in this process.
        epoch: The epoch to resume in.
    """
    if loop.data.is_unseeded:
        yield f"TensorFlow shuffles the data from no seed that another process has: call {_SEED}"
    if loop.data.changes_variables:
        yield (
            "a function of the tf.data pipeline changes variables, such as the seeds of layers that augment, and these "
            "are not saved: use the layers in the model, or tf.image.stateless_random_... and a seed for each element"
        )
    before = position.get("beginning")
    if before is not None and now is not None and before != now:
        names = ", ".join(name for name in before if before[name] != now.get(name))
        yield (
            f"the data is a Python generator, of which Keras takes batches before training begins, and the random "
            f"generators of {names} are in another state than at the first start: call {_SEED}"
        )
    differences = [*_batch_differences(loop, position)]
    if differences:
        yield "; ".join(differences)
    if loop.data.reads_ahead and _source_has_changed(position):
        yield (
            "TensorFlow asks the data for more than training has had, also beyond the end of an epoch "
            "(steps_per_epoch), and the data itself changes or draws: how far it was asked before that is not known"
        )
    if epoch and source.keeps_workers(loop.source):
        yield (
            "the workers of the DataLoader live on from epoch to epoch (persistent_workers), and what random numbers "
            "they have drawn cannot be saved"
        )
    if loop.data.prefetched is not None and position.get("prefetched") is None:
        yield "the batches that the data's workers had ready for the next epoch were too large to be saved"


def _source_has_changed(position: Mapping[str, Any]) -> bool:
    """Return True if the source's own state changed after an iterator that spans epochs was created."""
    spanning = position.get("kept")
    if spanning is None or not spanning["taken"]:
        return False
    return not source.same_state(spanning.get("source"), position.get("source"))


def _batch_differences(loop: FitLoop, position: Mapping[str, Any]) -> Iterator[str]:
    size, size_now = position.get("batch_size"), loop.data.batch_size
    if size is not None and size_now is not None and size != size_now:
        yield f"batch_size was {size} when the checkpoint was saved, and is {size_now} now"
    known, per_epoch = position.get("batches_per_epoch"), loop.data.batches_per_epoch
    if known is not None and per_epoch is not None and known != per_epoch:
        yield f"an epoch had {known} batches when the checkpoint was saved, and has {per_epoch} now"
