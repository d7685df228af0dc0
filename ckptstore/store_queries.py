"""What a store can be asked: its checkpoints, the newest, the best, and those that a ref names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ckptstore import refs
from ckptstore.errors import CheckpointNotFoundError
from ckptstore.layout import shown_at
from ckptstore.manifest import Manifest
from ckptstore.manifest_asking import COMPLETE_ONLY
from ckptstore.records import Checkpoint, Mode, State

Ref = str | int | Checkpoint


class StoreQueries:
    """The questions of `ckptstore.CheckpointStore`; each is one look into the manifest, and changes nothing."""

    path: Path
    _manifest: Manifest

    def checkpoints(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> list[Checkpoint]:
        """Return a run's checkpoints, or all, oldest first.

        Args:
            run: The run; None for all runs.
            states: Which states to list; None for all, those with a missing or damaged payload too.
        """
        return self._manifest.checkpoints(run, states=states)

    def latest(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest checkpoint, or None where there is none."""
        return self._manifest.latest(run)

    def best(self, metric: str, *, mode: Mode | None = None, run: str | None = None) -> Checkpoint | None:
        """Return the checkpoint with the best value of a metric, or None where there is none.

        NaN is never best; of equals the earlier is returned.

        Args:
            metric: The metric's name, as in Keras' logs.
            mode: ``"min"`` or ``"max"``; None for the direction that the run's callback watched it in, or else the
                one that its name tells.
            run: The run; None for all runs.

        Raises:
            MetricNotFoundError: There are checkpoints, but none has this metric.
            InvalidArgumentError: `mode` is needed: neither a callback nor the name tells the direction.
        """
        return refs.best(self._manifest, self.path, metric, mode=mode, run=run)

    def resume_point(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that a run can go on from, or None where there is none.

        It carries training state, and its payload is there with its size; `restore` verifies its digest.
        """
        return refs.resume_point(self._manifest, run)

    def get(self, ref: Ref) -> Checkpoint:
        """Return the checkpoint that a ref names.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.

        Raises:
            CheckpointNotFoundError: There is none.
        """
        found = ref if isinstance(ref, Checkpoint) else refs.look_up(self._manifest, self.path, ref)
        if found is None:
            raise CheckpointNotFoundError(ref=ref, store=self.path)
        return found

    def runs(self) -> tuple[str, ...]:
        """Return the names of all runs."""
        return self._manifest.runs()

    def metric_names(self, run: str | None = None) -> tuple[str, ...]:
        """Return the names of all metrics that a run, or any run, has recorded."""
        return self._manifest.metric_names(run)

    def published(self, run: str) -> dict[Path, int]:
        """Return what a run has been made to show: versions by path, absolute; a path may be gone by now."""
        shown = (one for one in self._manifest.published() if one.run == run)
        return {shown_at(self.path, one.path): one.version for one in shown}

    @property
    def schema_version(self) -> str:
        """The manifest's schema revision."""
        return self._manifest.schema_version
