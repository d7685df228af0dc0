"""A store of every past revision opens, is upgraded, and is resumed from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from alembic.script import ScriptDirectory

import ckptstore
from ckptstore.formats import payload
from ckptstore.manifest.schema import HEAD
from past_stores import RUN, STORES, fill, model_of_the_stores, value_of

# numpy 2 about Keras' own variables, on the way through Keras' own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.skipif(
        keras.backend.backend() != "jax", reason="the stores were made on JAX, whose seeds differ"
    ),
]
MIGRATIONS = Path(__file__).parent.parent.parent / "migrations"
PAST = sorted(folder.name for folder in STORES.iterdir() if folder.name != HEAD)


def test_every_past_revision_has_its_store() -> None:
    revisions = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    assert set(PAST) - {HEAD} == revisions - {HEAD}


@pytest.fixture(params=PAST)
def past(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORES / request.param, tmp_path / "store"))


def test_a_read_only_open_names_the_command_to_run(past: Path) -> None:
    with pytest.raises(ckptstore.SchemaTooOldError, match=f"run: ckptstore upgrade {past}"):
        ckptstore.CheckpointStore(past, read_only=True)


def test_a_past_store_is_upgraded_and_resumed_from(past: Path) -> None:
    model = model_of_the_stores()
    with ckptstore.CheckpointStore(past) as store:
        assert store.schema_version == HEAD
        assert store.verify() == []
        assert [
            (point.version, point.run, point.epoch, point.batch, point.step) for point in store.checkpoints()
        ] == [
            (1, RUN, 0, None, 10),
            (2, RUN, 1, 4, 15),
            (3, "other", 0, None, None),
            (4, RUN, 1, None, 20),
        ]
        assert store.get(1).pinned and store.get("paper").version == 2 and store.get(2).extra == {"lr": 0.1}
        assert store.best("loss", run=RUN).version == 2
        history = store.history(RUN)
        assert [(epoch.epoch, epoch.batch, epoch.version) for epoch in history.epochs] == [
            (0, None, 1),
            (1, None, 4),
        ]
        assert history.of("loss") == ([0, 1], [3.0, 2.5])
        for version, how in (
            (4, lambda: store.resume(model, RUN)),
            (2, lambda: store.restore("paper", model)),
        ):
            fill(model, 99)
            assert how().version == version
            variables = [*model.weights, *model.optimizer.variables]
            for number, variable in enumerate(variables):
                expected = value_of(variable, number, version)
                np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), expected)
        assert store.save(model, epoch=2, run=RUN).version == 5
        # A format that this revision's schema did not know, in the run's order.
        assert store.save(model, epoch=3, run=RUN, format="sharded").version == 6
        assert store.resume(model, RUN).version == 6
    assert len(list(past.glob("manifest-*.backup.sqlite"))) == 1
    path = past / "checkpoints" / "00000002-digits.keras"
    made_with = json.loads(payload.read_documents(path)["metadata.json"])["keras_version"]
    if _numbers(keras.__version__) >= _numbers(made_with):  # Keras does not read its own later files
        assert keras.saving.load_model(path).optimizer.name == "adam"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2]]


def test_a_lost_manifest_is_rebuilt_from_past_payloads(past: Path) -> None:
    (past / "manifest.sqlite").unlink()
    ckptstore.CheckpointStore.rebuild(past)
    with ckptstore.CheckpointStore(past) as store:
        assert len(store.checkpoints()) == 4 and store.get("paper").version == 2
        assert store.resume(model_of_the_stores(), RUN).version == 4


def test_slots_of_an_optimizer_that_was_built_for_the_save_are_loaded(past: Path) -> None:
    model = model_of_the_stores()
    for version in (1, 4):
        model.compile("adam", "mse", metrics=["mae"])
        assert not model.optimizer.built
        with ckptstore.CheckpointStore(past) as store:
            store.restore(version, model)
        assert model.optimizer.built
        variables = [*model.weights, *model.optimizer.variables]
        assert len(variables) == len(model.weights) + 2 + 2 * len(model.trainable_variables)
        for number, variable in enumerate(variables):
            expected = value_of(variable, number, version)
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), expected)
