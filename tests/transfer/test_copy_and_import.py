"""Copy and import: the same bytes and facts in another store, complete or absent after a kill; damage is refused."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckptstore.cli.main import main
from ckptstore.errors import CorruptPayloadError, InvalidArgumentError, ReadOnlyError, RunLockedError
from ckptstore.formats import payload
from ckptstore.records import Checkpoint
from ckptstore.store.store import CheckpointStore
from ckptstore.transfer.name_pattern import NamePattern
from crash.sample_stores import is_seed, save
from crash.steps import every_death


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 1, run="day", batch=4, step=10, metrics={"loss": math.nan, "odd": math.inf}, tags=["a", "b"],
             extra={"note": "x"})  # fmt: skip
        save(store, 2, run="day", format="weights", state=False, monitor=("loss", "max"))
        save(store, 3, run="night")
        yield store


@pytest.fixture
def other(tmp_path: Path) -> CheckpointStore:
    with CheckpointStore(tmp_path / "other") as other:
        yield other


def facts(checkpoint: Checkpoint) -> dict[str, object]:
    """The facts that a copy shares with its source."""
    document = checkpoint.to_json()
    return {name: document[name] for name in document if name not in ("version", "path", "digest", "nbytes")}


def damage(path: Path, at: float = 0.5) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


# --- copy ----------------------------------------------------------------------------------------


def test_a_copy_is_the_same_in_another_store(store: CheckpointStore, other: CheckpointStore) -> None:
    store.pin(1)
    save(other, 9, run="elsewhere")
    for version in (1, 2, 3):
        checkpoint = store.get(version)
        copied = store.copy(version, other)
        assert (copied.existing, copied.tags_left) == (False, ())
        assert copied.checkpoint == other.get(version + 1)
        assert facts(copied.checkpoint) == facts(checkpoint)
        assert is_seed(copied.checkpoint.path, version)
        assert payload.read_documents(copied.checkpoint.path) == payload.read_documents(checkpoint.path)
        ours, theirs = (payload.read_description(saved.path) for saved in (checkpoint, copied.checkpoint))
        assert ours["variables"] == theirs["variables"] and ours["state"] == theirs["state"]
        assert (theirs["store"], theirs["version"]) == (other.uuid, version + 1)
        states = [payload.read_state(saved.path) for saved in (checkpoint, copied.checkpoint)]
        assert (states[0] is None) == (states[1] is None)
        if states[0] is not None and states[1] is not None:
            assert states[0].document == states[1].document
            assert states[0].arrays["seed"].tobytes() == states[1].arrays["seed"].tobytes()
        with h5py_of(checkpoint.path) as source, h5py_of(copied.checkpoint.path) as copy:
            assert (
                copy["layers/dense/vars"].attrs["name"]
                == source["layers/dense/vars"].attrs["name"]
                == "dense"
            )
    assert other.verify() == []
    assert other.best("loss", run="day") == other.get(3), "the watched direction came along"


def test_all_that_a_run_watches_is_copied(store: CheckpointStore, other: CheckpointStore) -> None:
    save(store, 4, run="day", metrics={"score": 1.0, "gap": 2.0}, monitor=("score", "min"))
    save(store, 5, run="day", metrics={"score": 3.0, "gap": 4.0}, monitor=("gap", "max"))
    save(other, 6, run="day", metrics={"score": 5.0}, monitor=("score", "max"))
    store.copy(4, other)
    assert other.monitors("day") == {"score": "max", "loss": "max", "gap": "max"}
    store.copy(5, other, run="evening")
    assert other.monitors("evening") == store.monitors("day")
    assert other.monitors("day") == {"score": "max", "loss": "max", "gap": "max"}


def h5py_of(path: Path) -> h5py.File:
    import io
    import zipfile

    if path.suffix != ".keras":
        return h5py.File(path)
    with zipfile.ZipFile(path) as archive:
        return h5py.File(io.BytesIO(archive.read("model.weights.h5")))


def test_a_store_of_copies_is_rebuilt_from_its_payloads(store: CheckpointStore, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "other") as other:
        made = [store.copy(version, other).checkpoint for version in (1, 2, 3)]
    (tmp_path / "other" / "manifest.sqlite").unlink()
    CheckpointStore.rebuild(tmp_path / "other")
    with CheckpointStore(tmp_path / "other") as other:
        found = other.checkpoints()
        assert [
            (checkpoint.version, checkpoint.digest, checkpoint.run, checkpoint.created_at, checkpoint.tags)
            for checkpoint in found
        ] == [
            (checkpoint.version, checkpoint.digest, checkpoint.run, checkpoint.created_at, checkpoint.tags)
            for checkpoint in made
        ]


def test_a_second_copy_finds_the_first(store: CheckpointStore, other: CheckpointStore) -> None:
    first = store.copy("a", other)
    again = store.copy("a", other)
    assert again.existing and again.checkpoint == first.checkpoint
    elsewhere = store.copy("a", other, run="evening")
    assert not elsewhere.existing
    assert (elsewhere.checkpoint.run, elsewhere.checkpoint.version) == ("evening", 2)
    assert len(other.checkpoints()) == 2


def test_a_tag_that_another_checkpoint_has_is_not_copied(
    store: CheckpointStore, other: CheckpointStore
) -> None:
    save(other, 7, tags=["a"])
    copied = store.copy(1, other)
    assert copied.tags_left == ("a",)
    assert copied.checkpoint.tags == ("b",)
    assert other.get("a").epoch == 7


def test_a_damaged_payload_is_not_copied(store: CheckpointStore, other: CheckpointStore) -> None:
    damage(store.get(1).path)
    with pytest.raises(CorruptPayloadError, match=r"its digest is"):
        store.copy(1, other)
    assert other.checkpoints(states=None) == []
    assert list((other.path / "checkpoints").iterdir()) == []
    assert store.copy(2, other).checkpoint.version, "the store can be used on"


def test_invalid_targets_of_a_copy_are_refused(store: CheckpointStore, other: CheckpointStore) -> None:
    with pytest.raises(InvalidArgumentError, match="is the same store"):
        store.copy(1, store)
    with CheckpointStore(other.path, read_only=True) as reading, pytest.raises(ReadOnlyError):
        store.copy(1, reading)
    with CheckpointStore(other.path) as writer:
        writer.claim("day")
        with pytest.raises(RunLockedError):
            store.copy(1, other)
    assert other.checkpoints() == []


def _copy(root: Path, target: Path, report: Path) -> None:
    with CheckpointStore(root, read_only=True) as store, CheckpointStore(target) as other:
        store.copy(1, other)
        report.write_text("done")


def test_a_copy_killed_at_any_step_is_complete_or_absent(store: CheckpointStore, tmp_path: Path) -> None:
    targets = (tmp_path / "targets" / str(n) for n in itertools.count())

    def prepared() -> tuple[Path, Path, Path]:
        target = next(targets)
        with CheckpointStore(target) as other:
            save(other, 9, run="day")
        return store.path, target, tmp_path / f"report-{target.name}"

    seen = set()
    for _, target, report in every_death(_copy, prepared):
        with CheckpointStore(target) as other:
            assert other.verify() == []
            found = [checkpoint for checkpoint in other.checkpoints() if checkpoint.epoch == 1]
            seen.add(len(found))
            if report.exists():
                assert found
            again = store.copy(1, other)
            assert is_seed(again.checkpoint.path, 1)
            assert other.get("a") == other.get(again.checkpoint.version)
            if report.exists():
                assert again.existing
        assert list((target / "tmp").iterdir()) == []
    assert seen == {0, 1}


def test_the_copy_command(store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new"
    assert main(["copy", str(store.path), "a", "3", str(target)]) == 0
    assert capsys.readouterr().out == (
        f"version 1 is version 1 of {target}\nversion 3 is version 2 of {target}\n"
    )
    assert main(["copy", str(store.path), "a", str(target), "--json"]) == 0
    [document] = json.loads(capsys.readouterr().out)
    assert (document["existing"], document["from"]["version"], document["to"]["version"]) == (True, 1, 1)
    assert main(["copy", str(store.path), "none", str(tmp_path / "newer")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "newer").exists(), "an unknown ref makes no store"


# --- import of exported files ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.keras", "x.weights.h5"])
def test_an_exported_file_can_be_imported(
    store: CheckpointStore, other: CheckpointStore, tmp_path: Path, name: str
) -> None:
    checkpoint = store.get(1)
    made = store.export(1, tmp_path / name)
    [imported] = other.import_files(made.path)
    assert is_seed(imported.checkpoint.path, 1)
    kept = ("run", "epoch", "batch", "step", "metrics", "created_at", "tags", "extra", "resumable")
    ours, theirs = checkpoint.to_json(), imported.checkpoint.to_json()
    assert {key: theirs[key] for key in kept} == {key: ours[key] for key in kept}
    [again] = other.import_files(made.path)
    assert again.existing and again.checkpoint == imported.checkpoint
    assert other.verify() == []
    assert made.path.exists()


@pytest.mark.parametrize("name", ["x.keras", "x.weights.h5"])
def test_every_flipped_byte_of_an_exported_file_is_refused(
    store: CheckpointStore, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = store.export(1, tmp_path / name)
    whole = store.export(3, tmp_path / f"whole{name[1:]}")
    damage(made.path)
    before = made.path.read_bytes()
    assert main(["import", str(tmp_path / "new"), str(whole.path), str(made.path)]) == 5
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and f"{made.path}: damaged" in printed.err
    assert not (tmp_path / "new").exists(), "no store was made"
    assert made.path.read_bytes() == before


def _import(source: Path, target: Path, report: Path) -> None:
    with CheckpointStore(target) as other:
        other.import_files(source / "x.keras", source / "y.weights.h5")
        report.write_text("done")


def test_an_import_killed_at_any_step_is_complete_or_absent(store: CheckpointStore, tmp_path: Path) -> None:
    source = tmp_path / "files"
    store.export(1, source / "x.keras")
    store.export(2, source / "y.weights.h5")
    targets = (tmp_path / "targets" / str(n) for n in itertools.count())

    def prepared() -> tuple[Path, Path, Path]:
        target = next(targets)
        with CheckpointStore(target):
            return source, target, tmp_path / f"report-{target.name}"

    seen = set()
    for _, target, _ in every_death(_import, prepared):
        with CheckpointStore(target) as other:
            seen.add(len(other.checkpoints()))
            assert other.verify() == []
            other.import_files(source / "x.keras", source / "y.weights.h5")
            assert [checkpoint.epoch for checkpoint in other.checkpoints()] == [1, 2]
            assert all(is_seed(checkpoint.path, checkpoint.epoch) for checkpoint in other.checkpoints())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("none.keras", None, 2, "is not there"),
        ("x.pt", b"x", 2, "ends in none of .keras, .weights.h5, .h5"),
        ("x.keras", b"", 5, "not a whole .keras archive"),
        ("x.keras", b"PK\3\4 and no more", 5, "not a whole .keras archive"),
        ("x.weights.h5", b"", 5, "not an HDF5 file"),
        ("x.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(200), 5, "damaged"),
        ("folder", "dir", 2, "holds no latest.weights.h5"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, name: str, content: object, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content == "dir":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert main(["import", str(tmp_path / "new"), str(path)]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err
    assert not (tmp_path / "new").exists()


def test_positions_and_metrics_are_read_from_names() -> None:
    pattern = NamePattern("models/m-{epoch:03d}.{batch}-{val_loss:.2f}-{損失:.3e}.keras")
    assert pattern.read("m-012.7--0.25-1.500e-03.keras") == {
        "epoch": 12.0, "batch": 7.0, "val_loss": -0.25, "損失": 0.0015,
    }  # fmt: skip
    assert math.isnan(NamePattern("{epoch}-{loss:.2f}.keras").read("1-nan.keras")["loss"])
    assert NamePattern("{epoch}{loss:.1f}.h5").read("120.5.h5") in (
        {"epoch": 12.0, "loss": 0.5}, {"epoch": 1.0, "loss": 20.5},
    )  # fmt: skip
    assert NamePattern("{epoch}-{epoch}.h5").read("3-3.h5") == {"epoch": 3.0}
    for name in ("m-012.keras", "m-012.7-0.255-1.5.keras", "x"):
        with pytest.raises(InvalidArgumentError, match="does not fit the name"):
            pattern.read(name)
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        NamePattern("{epoch}-{epoch}.h5").read("3-4.h5")
    for bad in ("{}", "{0}", "{logs[x]}", "{epoch"):
        with pytest.raises(InvalidArgumentError, match="pattern"):
            NamePattern(bad)


def test_arrays_of_text_and_of_other_types_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "t.weights.h5"
    with h5py.File(path, "w") as file:
        file["vars/0"] = np.arange(3, dtype="float32")
        file["vars/1"] = np.array(["a", "损失"], dtype=h5py.string_dtype())
        file["vars/2"] = np.array(7, "int64")
        file["vars"].attrs["name"] = "layer"
    with CheckpointStore(tmp_path / "store") as store:
        [made] = store.import_files(path, epoch=4, metrics={"loss": 0.5})
        assert (made.checkpoint.epoch, made.checkpoint.metrics) == (4, {"loss": 0.5})
        assert store.verify() == []
        with h5py.File(made.checkpoint.path) as file:
            assert [text.decode() for text in file["vars/1"][()]] == ["a", "损失"]
            assert file["vars/2"][()] == 7
            assert file["vars"].attrs["name"] == "layer"
