"""The HTML report: one file that loads nothing, in which hostile names stay text."""

from __future__ import annotations

import base64
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ckptstore.cli.main import main
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save

HOSTILE = "</td><script>alert(1)</script>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; its tags must match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    with CheckpointStore(tmp_path / "st<o>re") as store:
        save(
            store,
            0,
            metrics={"loss": 0.5, HOSTILE: 1.0},
            tags=['"><img src=x>'],
            extra={"a": HOSTILE},
            step=9,
        )
        save(store, 1, metrics={"loss": 0.25}, run="other")
        yield store


def written(store: CheckpointStore, file: Path, *options: str) -> Page:
    assert main(["report", str(store.path), str(file), *options]) == 0
    return Page(file.read_text(encoding="utf-8"))


def test_the_report_is_one_file_that_loads_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    page = written(store, tmp_path / "a.html")
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert len(sources) == 1
    kind, _, data = str(sources[0]).partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size[0] >= 1200
    assert (
        "meta",
        "content",
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    ) in page.attributes
    assert not any("http:" in text or "https:" in text or "@import" in text for text in page.texts)
    assert not any("url(" in text for text in page.texts)


def test_all_parts_are_there(store: CheckpointStore, tmp_path: Path) -> None:
    page = written(store, tmp_path / "a.html")
    text = "\n".join(page.texts)
    for part in ("Run default", "Run other", "Best and resume point", "Checkpoints", "Cost of saving",
                 "Configuration", "Events", "layers/dense", "config.json", '"seed": 1', "best loss", "resume point",
                 "training waited", "saved", store.get(1).digest[9:21]):  # fmt: skip
        assert part in text, part
    page = written(store, tmp_path / "b.html", "--run", "other")
    assert "Run default" not in "\n".join(page.texts)


def test_hostile_names_stay_text(store: CheckpointStore, tmp_path: Path) -> None:
    page = written(store, tmp_path / "a.html")
    assert "script" not in page.tags and page.tags.count("img") == 1
    assert HOSTILE in page.texts
    assert '"><img src=x>' in page.texts
    assert any("st<o>re" in text for text in page.texts)


def test_events_are_folded(store: CheckpointStore, tmp_path: Path) -> None:
    text = written(store, tmp_path / "a.html") and (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<h3>Events</h3>\n<details><summary>the newest 1</summary>" in text


def test_without_matplotlib_the_report_lacks_the_picture_and_says_so(
    store: CheckpointStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = written(store, tmp_path / "a.html")
    said = capsys.readouterr().err
    assert said.startswith("The picture is left out: ") and "pip install 'ckptstore[plot]'" in said
    assert said.strip() in page.texts
    assert "img" not in page.tags and "Checkpoints" in page.texts


def test_a_damaged_payload_only_removes_the_configuration(
    store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.get(2).path.unlink()
    page = written(store, tmp_path / "a.html", "--run", "other")
    assert "no configuration of run other" in capsys.readouterr().err
    assert "Configuration" not in page.texts and "Events" in page.texts


def test_the_command(store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.html"
    assert main(["report", str(store.path), str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"path": str(file), "nbytes": file.stat().st_size, "runs": ["default", "other"]}
    before = file.read_bytes()
    assert main(["report", str(store.path), str(file)]) == 2
    assert "is there already" in capsys.readouterr().err and file.read_bytes() == before
    assert main(["report", str(store.path), str(file), "--overwrite"]) == 0
    assert main(["report", str(store.path), str(tmp_path / "a.txt")]) == 2
    assert main(["report", str(store.path), str(store.path / "a.html")]) == 2
    assert main(["report", str(store.path), str(tmp_path / "b.html"), "--run", "none"]) == 3
    assert not (tmp_path / "b.html").exists()
