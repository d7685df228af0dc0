"""Export: each kind of file, complete and checked; nothing is overwritten; a crash leaves no partial file."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptstore.cli.main import main
from ckptstore.errors import CorruptPayloadError, DiskFullError, InvalidArgumentError, MissingPackageError
from ckptstore.storage.files import digest_file, io_hook
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import is_seed, save, values_of
from crash.steps import every_death

ODD = "a|b <script> `x`"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    with CheckpointStore(tmp_path / "store") as store:
        save(
            store, 1, run="day", step=10, metrics={"loss": 0.5, ODD: 1.0}, tags=["good"], extra={"note": "x"}
        )
        save(store, 2, run="day", format="weights", state=False)
        yield store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("ref", "name"), [(1, "new.keras"), (2, "new.weights.h5")])
def test_the_same_format_is_the_same_bytes(
    store: CheckpointStore, tmp_path: Path, ref: int, name: str
) -> None:
    made = store.export(ref, tmp_path / "out" / name)
    checkpoint = store.get(ref)
    assert made.path.read_bytes() == checkpoint.path.read_bytes()
    assert (made.digest, made.nbytes) == (checkpoint.digest, checkpoint.nbytes)
    assert names(tmp_path / "out") == [name]
    assert made.path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert not made.path.samefile(checkpoint.path), "a link would let others write into the store"


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_weights_of_a_whole_model(store: CheckpointStore, tmp_path: Path) -> None:
    made = store.export("good", tmp_path / "w.weights.h5")
    assert made.format == "weights"
    assert is_seed(made.path, 1)
    assert made.digest == digest_file(made.path)
    assert made.nbytes == made.path.stat().st_size


@pytest.mark.parametrize("ref", [1, 2])
def test_safetensors_holds_the_weights_and_their_metadata(
    store: CheckpointStore, tmp_path: Path, ref: int
) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    made = store.export(ref, tmp_path / "w.safetensors")
    expected = {name: value for name, value in values_of(ref).items() if not name.startswith("optimizer/")}
    loaded = load_file(made.path)
    assert set(loaded) == set(expected)
    for name, value in expected.items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].tobytes() == value.tobytes()
    with safe_open(made.path, framework="numpy") as opened:
        metadata = opened.metadata()
    assert (metadata["version"], metadata["run"], metadata["digest"]) == (
        str(ref),
        "day",
        store.get(ref).digest,
    )
    assert json.loads(metadata["metrics"]) == store.get(ref).to_json()["metrics"]
    assert made.digest == digest_file(made.path)


def test_safetensors_of_every_dtype(tmp_path: Path) -> None:
    import ml_dtypes
    from safetensors.numpy import load_file

    from ckptstore.formats.safetensors import bytes_of, header_of

    arrays = {
        kind: np.arange(6).reshape(2, 3).astype(kind)
        for kind in (
            "bool",
            "int8",
            "uint8",
            "int16",
            "uint16",
            "float16",
            "int32",
            "float32",
            "int64",
            "float64",
        )
    }
    arrays |= {"scalar": np.array(3, "int16"), "empty": np.zeros((0, 4), "float32")}
    arrays["损失"] = np.arange(5).astype(ml_dtypes.bfloat16)
    head, order, nbytes = header_of(
        {name: (value.shape, value.dtype.name) for name, value in arrays.items()}, {}
    )
    path = tmp_path / "all.safetensors"
    path.write_bytes(head + b"".join(bytes(bytes_of(arrays[name])) for name in order))
    assert path.stat().st_size == nbytes
    loaded = load_file(path)
    assert set(loaded) == set(arrays)
    for name, value in arrays.items():
        assert (loaded[name].shape, loaded[name].tobytes()) == (value.shape, value.tobytes()), name
    with pytest.raises(InvalidArgumentError, match=r"complex64, which .safetensors has no name for"):
        header_of({"c": ((1,), "complex64")}, {})


def test_a_missing_package_is_named_in_the_error(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'ckptstore\[safetensors\]'"):
        store.export(1, tmp_path / "w.safetensors")
    assert names(tmp_path) == ["store"]


@pytest.mark.parametrize(("ref", "file"), [(1, "model.keras"), (2, "model.weights.h5")])
def test_a_folder_has_the_payload_and_a_card(
    store: CheckpointStore, tmp_path: Path, ref: int, file: str
) -> None:
    made = store.export(ref, tmp_path / "out")
    checkpoint = store.get(ref)
    assert made.format == "folder"
    assert names(made.path) == sorted(["README.md", "checkpoint.json", file])
    assert (made.path / file).read_bytes() == checkpoint.path.read_bytes()
    assert json.loads((made.path / "checkpoint.json").read_text()) == checkpoint.to_json()
    card = (made.path / "README.md").read_text()
    assert checkpoint.digest in card and file in card and "epoch (from 0)" in card
    if ref == 1:
        assert r"| a\|b \<script\> \`x\` | 1.0 |" in card
        assert "| loss | 0.5 |" in card and "| tags | good |" in card and '{"note": "x"}' in card


def test_a_name_with_a_slash_at_its_end_is_a_folder(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.export(1, f"{tmp_path}/v1.2/").path == tmp_path / "v1.2"
    assert (tmp_path / "v1.2" / "model.keras").exists()


@pytest.mark.parametrize(
    ("ref", "name", "message"),
    [
        (
            1,
            "new.pt",
            r"extension '.pt' is none that version 1 \(format keras\) can become \(it can become: .weights",
        ),
        (1, "new.h5", "Keras' older .h5 file is nothing that"),
        (2, "new.keras", "a .keras file, of a whole model, is nothing that version 2"),
        (1, "there.keras", "is there already, and is not overwritten"),
        (1, "folder", "is there already"),
        (1, "link.keras", "is there already"),
        (1, "store/new.keras", "lies in the store"),
        (1, "store/new", "lies in the store"),
        (1, "store", "lies in the store"),
        (1, "inside/x.keras", "lies in the store"),
    ],
)
def test_an_impossible_export_is_refused_and_changes_nothing(
    store: CheckpointStore, tmp_path: Path, ref: int, name: str, message: str
) -> None:
    (tmp_path / "there.keras").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.keras").symlink_to("nowhere")
    (tmp_path / "inside").symlink_to(tmp_path / "store" / "checkpoints")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(InvalidArgumentError, match=message):
        store.export(ref, tmp_path / name)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "there.keras").read_text() == "mine"


@pytest.mark.parametrize("name", ["new.keras", "new.weights.h5", "new.safetensors", "new"])
def test_a_damaged_payload_is_not_exported(store: CheckpointStore, tmp_path: Path, name: str) -> None:
    path = store.get(1).path
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptPayloadError, match=r"its digest is|damaged"):
        store.export(1, tmp_path / name)
    assert names(tmp_path) == ["store"]


def _export(root: Path, target: Path, report: Path) -> None:
    with CheckpointStore(root, read_only=True) as store:
        store.export(1, target)
    report.write_text("done")


@pytest.mark.parametrize("name", ["new.keras", "new"])
def test_an_export_killed_at_any_step_is_complete_or_absent(
    store: CheckpointStore, tmp_path: Path, name: str
) -> None:
    folders = (tmp_path / "out" / str(n) for n in itertools.count())

    def prepared() -> tuple[Path, Path, Path]:
        folder = next(folders)
        return store.path, folder / name, tmp_path / f"report-{folder.name}"

    seen = set()
    for _, target, report in every_death(_export, prepared):
        seen.add(target.exists())
        if report.exists():
            assert target.exists()
            assert names(target.parent) == [name]
        if target.exists():
            payload = target if target.suffix else target / "model.keras"
            assert digest_file(payload) == store.get(1).digest
            if target.is_dir():
                assert names(target) == ["README.md", "checkpoint.json", "model.keras"]
        elif target.parent.exists():
            assert all(path.endswith(".ckptstore") for path in names(target.parent))
        if target.parent.exists():
            expected = sorted([*([name] if target.exists() else []), "next.keras"])
            store.export(1, target.parent / "next.keras")
            assert names(target.parent) == expected, "the next export takes away what was left"
    assert seen == {True, False}
    assert store.verify() == []


_STOPS = """
import os, signal, sys
from ckptstore.storage.files import io_hook
from ckptstore.store.store import CheckpointStore

def stop(name, path, phase):
    if (name, phase) == ("fsync", "before") and path.is_file():
        os.kill(os.getpid(), signal.SIGSTOP)

with io_hook(stop), CheckpointStore(sys.argv[1], read_only=True) as store:
    store.export(1, sys.argv[2])
"""


@pytest.mark.parametrize("name", ["new.keras", "new"])
def test_leftovers_of_a_killed_export_are_removed_by_the_next_and_those_of_a_living_one_stay(
    store: CheckpointStore, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for others in (".x.0123456789ab.ckptstore", ".ckptstore", ".new.keras.012.ckptstore"):
        (out / others).write_text("mine")
    before = names(out)
    with subprocess.Popen([sys.executable, "-c", _STOPS, str(store.path), str(out / name)]) as export:
        try:
            os.waitid(os.P_PID, export.pid, os.WSTOPPED | os.WNOWAIT)
            [left] = set(names(out)) - set(before)
            assert list((out / left).rglob("*")), "it has begun to write"
            store.export(1, out / "a.keras")
            assert names(out) == sorted([*before, left, "a.keras"]), "the other is alive"
        finally:
            export.send_signal(signal.SIGKILL)
    assert export.returncode == -signal.SIGKILL
    assert left in names(out)
    store.export(1, out / name)
    assert names(out) == sorted([*before, "a.keras", name])


def test_the_command_reports_what_it_made(
    store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(store.path), "good", str(tmp_path / "a.keras")]) == 0
    size = f"{store.get(1).nbytes / 1000:.2f} kB"
    assert capsys.readouterr().out == f"version 1 is in {tmp_path / 'a.keras'} (keras, {size})\n"
    assert main(["export", str(store.path), "good", str(tmp_path / "b.keras"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "version": 1,
        "path": str(tmp_path / "b.keras"),
        "format": "keras",
        "nbytes": store.get(1).nbytes,
        "digest": store.get(1).digest,
    }
    assert main(["export", str(store.path), "good", str(tmp_path / "a.keras")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "is there already" in printed.err
    assert main(["export", str(store.path), "none", str(tmp_path / "c.keras")]) == 3


def failing(operation: str, code: int) -> Callable[[str, Path, str], None]:
    """Return a hook that lets one kind of step fail."""

    def fail(name: str, path: Path, phase: str) -> None:
        if (name, phase) == (operation, "before"):
            raise OSError(code, os.strerror(code))

    return fail


def test_a_file_that_appears_meanwhile_is_not_overwritten(store: CheckpointStore, tmp_path: Path) -> None:
    target = tmp_path / "out" / "new.keras"

    def appear(name: str, path: Path, phase: str) -> None:
        if (name, phase) == ("link", "before"):
            target.write_text("mine")

    with io_hook(appear), pytest.raises(InvalidArgumentError, match="is there already"):
        store.export(1, target)
    assert target.read_text() == "mine"
    assert names(target.parent) == ["new.keras"]


def test_without_hard_links_it_is_renamed(store: CheckpointStore, tmp_path: Path) -> None:
    with io_hook(failing("link", errno.EPERM)):
        made = store.export(1, tmp_path / "out" / "new.keras")
    assert digest_file(made.path) == store.get(1).digest
    assert names(tmp_path / "out") == ["new.keras"]


@pytest.mark.parametrize("name", ["new.keras", "new.safetensors", "new"])
@pytest.mark.parametrize("operation", ["reserve", "write", "fsync"])
def test_a_full_disk_leaves_nothing(
    store: CheckpointStore, tmp_path: Path, operation: str, name: str
) -> None:
    (tmp_path / "out").mkdir()
    with io_hook(failing(operation, errno.ENOSPC)), pytest.raises(DiskFullError):
        store.export(1, tmp_path / "out" / name)
    assert names(tmp_path / "out") == []
    assert store.export(1, tmp_path / "out" / name).path.exists()
