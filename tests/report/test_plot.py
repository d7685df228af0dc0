"""Plots of runs: what is drawn where, odd names and values, and existing files."""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from ckptstore.cli.main import main
from ckptstore.cli.plot import plotted_runs
from ckptstore.errors import MissingPackageError
from ckptstore.report.plot import PlottedRun, draw, panels_of
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save

ODD = "$x_1$ <b> 损失"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CheckpointStore:
    root = tmp_path_factory.mktemp("pictures") / "store"
    with CheckpointStore(root) as store:
        for epoch in range(6):
            metrics = {"loss": 1.0 / (epoch + 1), "accuracy": 0.1 * epoch}
            save(store, epoch, run="day", batch=4, step=10 * epoch + 5, metrics=metrics)
            metrics |= {"val_loss": abs(epoch - 3) + 0.5, ODD: math.nan if epoch == 2 else float(epoch)}
            save(store, epoch, run="day", step=10 * epoch + 10, metrics=metrics, monitor=("val_loss", "min"))
        save(store, 0, run="_night", metrics={"loss": 500.0})
        save(store, 1, run="_night", metrics={"loss": math.inf}, state=False)
        save(store, 2, run="_night", metrics={"loss": 1.0}, state=False)
        store.claim("empty")
        yield store


def runs_of(store: CheckpointStore, *runs: str) -> list[PlottedRun]:
    return plotted_runs(store, runs)


def test_a_metric_and_its_validation_metric_share_a_panel(store: CheckpointStore) -> None:
    assert panels_of(runs_of(store, "day")) == {
        "loss": ["loss", "val_loss"],
        "accuracy": ["accuracy"],
        ODD: [ODD],
    }
    assert panels_of(runs_of(store), ["val_loss"]) == {"loss": ["val_loss"]}


def test_positions_on_the_axis(store: CheckpointStore) -> None:
    [run] = runs_of(store, "day")
    assert [run.x(0, None), run.x(3, None), run.x(3, 4), run.x(3, 9)] == [0, 3, 2.5, 3]
    assert run.best["val_loss"].epoch == 3
    assert run.resume_point == store.latest("day")


def lines_of(axis: object) -> list[tuple[str, list[float]]]:
    return [(line.get_marker(), [float(x) for x in line.get_xdata()]) for line in axis.lines]  # type: ignore[attr-defined]


def test_what_is_drawn(store: CheckpointStore) -> None:
    from ckptstore.report import plot

    with plot._matplotlib():
        figure = plot._figure(runs_of(store, "day"), "title", {"loss": ["loss", "val_loss"]})
    [axis] = figure.axes
    drawn = lines_of(axis)
    assert ("*", [3.0]) in drawn, "the best"
    assert ("^", [5.0]) in drawn, "the resume point"
    marks = [places for marker, places in drawn if marker == "o"]
    assert marks[0][6:8] == [2.5, 3.0], "checkpoints inside epochs and at their ends"
    assert marks[1] == [0, 1, 2, 3, 4, 5], "those that know of the validation"
    assert axis.get_title("right") == "best val_loss: 0.5 (version 8)"
    assert axis.get_ylabel() == "loss" and "epoch" in axis.get_xlabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["validation", "training"]
    assert any(label.startswith("resume point: version 12 (epoch 5, end") for label in labels)


def test_characters_that_the_font_lacks_are_escaped(store: CheckpointStore) -> None:
    from ckptstore.report import plot

    with plot._matplotlib():
        figure = plot._figure(runs_of(store, "day"), "größer 损", {ODD: [ODD]})
    assert figure.axes[0].get_ylabel() == "$x_1$ <b> \\u635f\\u5931"
    assert figure.get_suptitle() == "größer \\u635f"


def test_interruptions_are_dotted_lines(tmp_path: Path) -> None:
    from ckptstore.report import plot
    from ckptstore.store.store import CheckpointStore

    with CheckpointStore(tmp_path / "s") as store:
        save(store, 0, step=10)
        save(store, 1, batch=4, step=15)
    with CheckpointStore(tmp_path / "s") as store:
        store.load_newest_resume_point(lambda checkpoint: None, "default")
        save(store, 1, step=20, notes={"finished": {"epoch": 1}})
    with CheckpointStore(tmp_path / "s") as store:
        store.load_newest_resume_point(lambda checkpoint: None, "default")  # it was not interrupted there
        save(store, 2, step=30)
        [run] = runs_of(store)
    resumes = [(resumed.epoch, resumed.batch, resumed.interrupted) for resumed in run.history.resumes]
    assert resumes == [(1, 4, True), (1, None, False)]
    assert [resumed.batch for resumed in run.history.interruptions] == [4]
    with plot._matplotlib():
        figure = plot._figure([run], "title", {"loss": ["loss"]})
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in dotted] == [[0.5, 0.5]]
    assert "interrupted" in figure.legends[0].get_texts()[-1].get_text()


def test_runs_have_colours_of_their_own_and_large_ranges_a_logarithmic_axis(store: CheckpointStore) -> None:
    from ckptstore.report import plot

    with plot._matplotlib():
        figure = plot._figure(runs_of(store, "day", "_night"), "title", {"loss": ["loss"]})
    [axis] = figure.axes
    assert axis.get_yscale() == "log"
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert {"1", "10", "100"} <= set(labels) and not any("$" in label for label in labels), (
        "numbers, no formulas"
    )
    assert [text.get_text() for text in axis.texts] == ["1 values are not finite"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0].startswith("run day: best loss 0.16667") and labels[1].startswith(
        "run _night: best loss 1 "
    )
    curves = {line.get_color() for line in axis.lines}
    assert set(plot.COLOURS[:2]) <= curves


@pytest.mark.parametrize("runs", [(), ("day",), ("_night",)])
def test_both_formats(store: CheckpointStore, runs: tuple[str, ...], tmp_path: Path) -> None:
    image, left_out = draw(runs_of(store, *runs), "a $\\frac{$ <&", "png")
    assert left_out == ()
    (tmp_path / "a.png").write_bytes(image)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size[0] >= 1200 and len(opened.convert("RGB").getcolors(1 << 24)) > 5
    vector, _ = draw(runs_of(store, *runs), "a $\\frac{$ <&", "svg")
    root = ET.fromstring(vector)
    assert root.tag.endswith("svg")
    links = [value for node in root.iter() for name, value in node.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert draw(runs_of(store, *runs), "a $\\frac{$ <&", "svg")[0] == vector, (
        "the same again is the same file"
    )


def test_the_command(store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "a.png"
    assert main(["plot", str(store.path), str(file), "--run", "day", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"path": str(file), "nbytes": file.stat().st_size, "runs": ["day"], "left_out": []}
    before = file.read_bytes()
    assert main(["plot", str(store.path), str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "is there already" in printed.err and file.read_bytes() == before
    assert main(["plot", str(store.path), str(file), "--overwrite"]) == 0
    assert file.read_bytes() != before
    assert [path.name for path in file.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.jpg"], 2, "ends neither in .png nor in .svg"),
        (["a.png", "--run", "none"], 3, "no run 'none'"),
        (["a.png", "--run", "empty"], 2, "has no metrics"),
        (["a.png", "--metric", "none"], 3, "no checkpoint has a metric 'none'"),
        (["store/a.png"], 2, "lies in the store"),
    ],
)
def test_what_cannot_be_drawn(
    store: CheckpointStore, tmp_path: Path, arguments: list[str], code: int, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = store.path / "a.png" if arguments[0] == "store/a.png" else tmp_path / arguments[0]
    assert main(["plot", str(store.path), str(file), *arguments[1:]]) == code
    assert message in capsys.readouterr().err
    assert not file.exists()


def test_without_matplotlib_the_error_says_what_to_install(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'ckptstore\[plot\]'"):
        draw(runs_of(store, "day"), "title", "png")
