"""File name templates: what they are filled with, where their store lies, what is refused."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptstore.errors import InvalidArgumentError
from ckptstore.training.saving.file_template import CheckpointPath
from ckptstore.validation import check_run


def path_of(template: Any) -> CheckpointPath:
    return CheckpointPath(template, weights_only=str(template).endswith(".weights.h5"))


@pytest.mark.parametrize(
    ("template", "batch", "logs", "filled"),
    [
        ("best.keras", None, {}, "best.keras"),
        ("{epoch:02d}-{val_loss:.2f}.keras", None, {"val_loss": 0.256}, "03-0.26.keras"),
        ("{epoch}.{batch:03d}.weights.h5", 4, {}, "3.005.weights.h5"),
        ("{epoch}.{batch}.keras", 4, {"batch": 9}, "3.9.keras"),
        ("{acc:.1%}.h5", None, {"acc": np.float32(0.5)}, "50.0%.h5"),
        ("{{x}}-{epoch}.keras", None, {}, "{x}-3.keras"),
        ("{loss!r}.keras", None, {"loss": 0.5}, "0.5.keras"),
        ("{steps:04d}.keras", None, {"steps": 7}, "0007.keras"),
        ("{epoch:>4}/{a b}.keras", None, {"a b": 1}, "   3/1.keras"),
    ],
)
def test_placeholders_are_filled_as_keras_fills_them(
    template: str, batch: int | None, logs: dict[str, Any], filled: str
) -> None:
    assert path_of(template).fill(epoch=2, batch=batch, logs=logs) == filled


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{val_loss:.2f}.keras", "nan.keras"),
        ("{val_loss:>8}.keras", "nan.keras"),
        ("{batch:02d}.keras", "nan.keras"),
        ("{val_loss!r:s}.keras", "nan.keras"),
        ("{loss.shape}.keras", "nan.keras"),
        ("{loss[0]}.keras", "nan.keras"),
        ("{val_loss[x].y}.keras", "nan.keras"),
        ("{loss:04d}.keras", "0.5.keras"),
    ],
)
def test_a_placeholder_without_a_value_warns_once(template: str, filled: str) -> None:
    path = CheckpointPath(template)
    with pytest.warns(UserWarning, match="will have another text") as caught:
        assert path.fill(epoch=0, batch=None, logs={"loss": 0.5}) == filled
    assert len(caught) == 1
    assert path.fill(epoch=1, batch=None, logs={"loss": 0.5}) == filled


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("model.txt", "must end in `.keras`"),
        ("model.keras.gz", "must end in `.keras`"),
        ("model", "Received: filepath=model"),
        ("{}.keras", "a placeholder needs a name"),
        ("{0}.keras", "a placeholder needs a name"),
        ("{epoch.keras", "expected '}'"),
        ("epoch}.keras", "Single '}'"),
        ("{epoch:q}.keras", "Unknown format code 'q'"),
        ("{batch:.keras", "write {{ and }} for braces"),
        ("{loss:zz}.keras", "{loss:zz}"),
        ("{loss:{width}}.keras", "cannot hold another one"),
        ("gs://bucket/model.keras", "must be a local path"),
        ("a\0b.keras", "NUL"),
        (b"model.keras", "must be a str or os.PathLike"),
        (None, "must be a str or os.PathLike"),
        (Path("model.txt"), "must end in `.keras`"),
    ],
)
def test_an_impossible_file_name_is_refused_at_once(template: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        CheckpointPath(template)
    assert words in str(raised.value)
    assert raised.value.argument == "filepath"


def test_weights_have_an_extension_of_their_own() -> None:
    for template in ("model.keras", "model.h5", "weights.h5.keras"):
        with pytest.raises(InvalidArgumentError, match=r"must end in `.weights.h5` \(Keras weights format\)"):
            CheckpointPath(template, weights_only=True)
    assert CheckpointPath("model.weights.h5", weights_only=True).format == "weights"
    # As in Keras: a whole model under that name.
    assert CheckpointPath("model.weights.h5").format == "h5"
    assert CheckpointPath("model.h5").format == "h5"
    assert CheckpointPath("model.keras").format == "keras"


@pytest.mark.parametrize(
    ("template", "directory", "run"),
    [
        ("/m/best.keras", "/m", "best"),
        ("/m/best.weights.h5", "/m", "best-weights"),
        ("/m/best.h5", "/m", "best-h5"),
        ("/m/{epoch:02d}-{val_loss:.2f}.keras", "/m", "epoch-val_loss"),
        ("/m/{epoch}/best.keras", "/m", "epoch-best"),
        ("/m/run-{epoch}/{batch}.weights.h5", "/m", "run-epoch-batch-weights"),
        ("/m/{{a}}/b.keras", "/m/{a}", "b"),
        ("/m/{{a}}/{epoch}.keras", "/m/{a}", "epoch"),
        ("/m/../n/best.keras", "/n", "best"),
    ],
)
def test_the_store_lies_beside_and_the_run_is_named_after_the_file(
    template: str, directory: str, run: str
) -> None:
    path = path_of(template)
    assert path.directory == Path(directory)
    assert path.store == Path(directory, ".ckptstore")
    assert path.run == run


def test_every_file_name_makes_a_run_of_its_own() -> None:
    names = [
        "a b",
        "a-b",
        "a_b",
        "ä",
        "ö",
        "..x",
        "x..y",
        "store",
        "STORE",
        "-x",
        "{{x}}",
        "x" * 200,
        "x" * 201,
        " ",
        "e",
    ]
    templates = [f"{name}.keras" for name in names] + [
        "e.h5",
        "e.weights.h5",
        "{e}.keras",
        "{e:02d}{f}.keras",
    ]
    runs = [path_of(template).run for template in templates]
    assert [check_run(run) for run in runs] == runs
    assert len(set(runs) - {"e"}) == len(runs) - 2  # "e" and "{e}" alone would meet


def test_a_relative_path_stays_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    path = CheckpointPath("models/{epoch}.keras")
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = pickle.loads(pickle.dumps(path))
    for template in (path, again):
        assert template.store == tmp_path / "models" / ".ckptstore"
        filled = template.fill(epoch=0, batch=None, logs={})
        assert filled == "models/1.keras"
        assert template.absolute(filled) == tmp_path / "models" / "1.keras"


def test_a_tilde_is_a_name_as_in_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CheckpointPath("~/best.keras").directory == tmp_path / "~"


def test_making_a_path_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CheckpointPath("{epoch:03d}-{batch:05d}-{val_loss:+.3e}-{count:x}.keras")
