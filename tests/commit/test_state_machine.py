"""Any order of saves, deletions, tags, deaths, damage and repairs leaves a store that a plain model predicts."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ckptstore.retention import keep_last
from ckptstore.storage.files import digest_file, io_hook
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import committer_of, is_seed, save
from manifests import DIED, in_fork

RUNS = ("a", "b")
TAGS = ("paper", "best-so-far")
LOSSES = (0.0, 1.0, 2.0, math.nan)


@dataclass(frozen=True)
class Known:
    """The model's record of a checkpoint."""

    seed: int
    run: str
    loss: float
    pinned: bool = False
    tags: frozenset[str] = frozenset()


@dataclass
class Model:
    """The expected store: intact checkpoints by version, lost ones, and the one that the path shows."""

    whole: dict[int, Known] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    shown: int | None = None
    highest: int = 0

    def of(self, run: str) -> list[int]:
        return sorted(version for version, known in self.whole.items() if known.run == run)

    def save(self, version: int, known: Known, *, publish: bool) -> None:
        for tag in known.tags:
            self.tag(tag, None)
        self.whole[version] = known
        self.highest = max(self.highest, version)
        if publish:
            self.shown = version

    def retain(self, run: str, n: int) -> None:
        versions = self.of(run)
        kept = set(versions[-max(n, 2) :]) | {self.shown}
        for version in versions:
            if version not in kept and not self.whole[version].pinned:
                del self.whole[version]

    def tag(self, name: str, version: int | None) -> None:
        for other, known in self.whole.items():
            tags = known.tags - {name} | ({name} if other == version else set())
            self.whole[other] = replace(known, tags=frozenset(tags))


class StoreMachine(RuleBasedStateMachine):
    """Each rule does one thing to the store and to the model; the invariant compares them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ckptstore-machine-"))
        self.root, self.target = self.folder / "store", self.folder / "shown.keras"
        self.model = Model()
        self.seeds = itertools.count(1)

    @initialize()
    def create(self) -> None:
        self.store = CheckpointStore(self.root)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.folder)

    # --- what users do -------------------------------------------------------------------------

    @rule(
        run=st.sampled_from(RUNS),
        loss=st.sampled_from(LOSSES),
        tag=st.sampled_from((None, *TAGS)),
        publish=st.booleans(),
        keep=st.sampled_from((None, 1, 2, 3)),
    )
    def save(self, run: str, loss: float, tag: str | None, publish: bool, keep: int | None) -> None:
        known = Known(next(self.seeds), run, loss, tags=frozenset((tag,) if tag else ()))
        version = self._save(self.store, known, publish, keep)
        assert version > self.model.highest
        self.model.save(version, known, publish=publish)
        if keep is not None:
            self.model.retain(run, keep)

    def _save(self, store: CheckpointStore, known: Known, publish: bool, keep: int | None) -> int:
        return save(
            store,
            known.seed,
            run=known.run,
            metrics={"loss": known.loss},
            tags=tuple(known.tags),
            publish=self.target if publish else None,
            keep=None if keep is None else keep_last(keep),
        ).version

    @rule(run=st.sampled_from(RUNS), n=st.integers(1, 4))
    def prune(self, run: str, n: int) -> None:
        committer_of(self.store).retain(run, keep_last(n))
        self.model.retain(run, n)

    @precondition(lambda self: self.model.whole)
    @rule(data=st.data(), name=st.sampled_from(TAGS))
    def tag(self, data: st.DataObject, name: str) -> None:
        version = data.draw(st.sampled_from(sorted(self.model.whole)))
        self.store.tag(version, name)
        self.model.tag(name, version)

    @precondition(lambda self: self.model.whole)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        version = data.draw(st.sampled_from(sorted(self.model.whole)))
        self.store.pin(version, pinned)
        self.model.whole[version] = replace(self.model.whole[version], pinned=pinned)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = CheckpointStore(self.root)

    # --- what happens to them ------------------------------------------------------------------

    @rule(
        at=st.integers(1, 70),
        run=st.sampled_from(RUNS),
        publish=st.booleans(),
        keep=st.sampled_from((None, 1, 2)),
    )
    def die_while_saving(self, at: int, run: str, publish: bool, keep: int | None) -> None:
        known = Known(next(self.seeds), run, 1.0)
        report = self.folder / "report"
        report.unlink(missing_ok=True)

        def work(store: CheckpointStore) -> None:
            version = self._save(store, known, publish, keep)
            report.write_text(json.dumps(version))

        before = set(self.model.whole)
        self._die(at, work)
        listed = {checkpoint.version: checkpoint.epoch for checkpoint in self.store.checkpoints()}
        new = [version for version, seed in listed.items() if seed == known.seed]
        if report.exists():
            assert new == [json.loads(report.read_text())]
        if new:
            # A path that was never shown before is not taken from what a payload says of itself.
            shows = publish and self.target.exists() and is_seed(self.target, known.seed)
            assert shows or not publish or not report.exists()
            self.model.save(new[0], known, publish=shows)
        if keep is not None:
            # Retention came as far as it came, and took nothing that it may not take.
            allowed = replace_model(self.model)
            allowed.retain(run, keep)
            assert set(allowed.whole) <= set(listed) <= before | set(new)
            self.model.whole = {
                version: known for version, known in self.model.whole.items() if version in listed
            }

    @rule(at=st.integers(1, 40), run=st.sampled_from(RUNS), n=st.integers(1, 2))
    def die_while_pruning(self, at: int, run: str, n: int) -> None:
        self._die(at, lambda store: committer_of(store).retain(run, keep_last(n)))
        listed = {checkpoint.version for checkpoint in self.store.checkpoints()}
        after = replace_model(self.model)
        after.retain(run, n)
        # Rows are marked in one transaction: all that go, or none.
        assert listed in (set(after.whole), set(self.model.whole))
        self.model.whole = {version: self.model.whole[version] for version in listed}

    def _die(self, at: int, work: Callable[[CheckpointStore], object]) -> None:
        self.store.close()
        steps = itertools.count(1)

        def die(operation: str, path: Path, phase: str) -> None:
            if next(steps) == at:
                os._exit(DIED)

        def child() -> None:
            with io_hook(die), CheckpointStore(self.root) as store:
                work(store)

        assert in_fork(child) in (0, DIED)
        self.store = CheckpointStore(self.root)

    @precondition(lambda self: self.model.whole)
    @rule(data=st.data(), how=st.sampled_from(("flip", "cut", "remove")))
    def damage(self, data: st.DataObject, how: str) -> None:
        version = data.draw(st.sampled_from(sorted(self.model.whole)))
        path = self.store.get(version).path
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        # A new file, as a disk's damage hits one name only in this model: the published link stays whole.
        path.unlink()
        if how != "remove":
            path.write_bytes(content if how == "flip" else content[:-7])
        found = {problem.version for problem in self.store.verify()}
        assert found == {version}
        (problem,) = self.store.repair()
        assert problem.version == version and problem.action
        del self.model.whole[version]
        self.model.lost.add(version)

    @precondition(lambda self: self.model.whole)
    @rule()
    def lose_the_manifest(self) -> None:
        self.store.close()
        pinned = {version for version, known in self.model.whole.items() if known.pinned}
        (self.root / "manifest.sqlite").unlink()
        CheckpointStore.rebuild(self.root)
        self.store = CheckpointStore(self.root)
        for version in pinned:
            self.store.pin(version)
        # Tags come back as they stood at each save.
        found = {checkpoint.version: frozenset(checkpoint.tags) for checkpoint in self.store.checkpoints()}
        assert set(found) == set(self.model.whole)
        for version, known in self.model.whole.items():
            self.model.whole[version] = replace(known, tags=found[version])
        self.model.lost.clear()
        # If the payload of a version was removed too, nothing is left that knows of it.
        names = [*os.listdir(self.root / "checkpoints"), *os.listdir(self.root / "quarantine")]
        self.model.highest = max(int(name[:8]) for name in names if name[:8].isdecimal())
        shown = self.store.published(RUNS[0]) | self.store.published(RUNS[1])
        self.model.shown = shown.get(self.target)

    # --- what must hold ------------------------------------------------------------------------

    @invariant()
    def the_store_is_as_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        listed = {checkpoint.version: checkpoint for checkpoint in self.store.checkpoints()}
        assert set(listed) == set(self.model.whole)
        for version, known in self.model.whole.items():
            checkpoint = listed[version]
            assert (checkpoint.run, checkpoint.epoch, checkpoint.pinned, set(checkpoint.tags)) == (
                known.run, known.seed, known.pinned, known.tags,
            )  # fmt: skip
            assert is_seed(checkpoint.path, known.seed)
        assert self.store.verify() == []
        for run in (None, *RUNS):
            self._compare_queries(run)

    def _compare_queries(self, run: str | None) -> None:
        versions = sorted(self.model.whole) if run is None else self.model.of(run)
        newest = versions[-1] if versions else None
        latest, point = self.store.latest(run), self.store.resume_point(run)
        assert (latest and latest.version) == (point and point.version) == newest
        losses = [(self.model.whole[version].loss, version) for version in versions]
        ranked = sorted(pair for pair in losses if not math.isnan(pair[0]))
        best = self.store.best("loss", mode="min", run=run) if losses else None
        assert (best and best.version) == (ranked[0][1] if ranked else None)

    @invariant()
    def nothing_is_left_over(self) -> None:
        if hasattr(self, "store"):
            assert [path.name for path in self.folder.iterdir() if path.name.startswith(".")] == []
            temporary = [path for path in (self.root / "tmp").iterdir() if path.suffix != ".lease"]
            assert temporary == []
            if self.target.exists() and self.model.shown in self.model.whole:
                assert digest_file(self.target) == self.store.get(self.model.shown).digest


def replace_model(model: Model) -> Model:
    """A copy to try something on."""
    return Model(whole=dict(model.whole), lost=set(model.lost), shown=model.shown, highest=model.highest)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=int(os.environ.get("CKPTSTORE_MACHINE_EXAMPLES", "15")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
warnings.filterwarnings("ignore", message=".*use of fork")
