"""The model card of an exported checkpoint: what it is, how good it is, its origin, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ckptstore.formats.registry import by_name
from ckptstore.records import Checkpoint, Format, json_number, json_time
from ckptstore.storage.durable_writer import Written


def card_of(
    checkpoint: Checkpoint, file: str, format: Format, written: Written, versions: Mapping[str, str]
) -> str:
    """Return a checkpoint's model card, Markdown.

    Args:
        checkpoint: The checkpoint.
        file: The name of the file beside the card: its payload, or one that was made from it.
        format: The file's format.
        written: The file's size and digest.
        versions: Versions of the packages that wrote it, by name.
    """
    facts = {
        "run": checkpoint.run,
        "version": str(checkpoint.version),
        "epoch (from 0)": str(checkpoint.epoch),
        "batch (from 0)": "the epoch's end" if checkpoint.batch is None else str(checkpoint.batch),
        "step": "" if checkpoint.step is None else str(checkpoint.step),
        "saved": json_time(checkpoint.created_at),
        "tags": ", ".join(checkpoint.tags),
        "size": f"{written.nbytes:,} bytes",
        "digest": written.digest,
        **{f"written with {name}": version for name, version in versions.items()},
        "extra": "" if checkpoint.extra is None else json.dumps(checkpoint.extra, ensure_ascii=False),
    }
    metrics = {name: str(json_number(value)) for name, value in checkpoint.metrics.items()}
    parts = [
        f"# {_plain(checkpoint.run)}, version {checkpoint.version}",
        "A checkpoint of a Keras model, exported by ckptstore; `checkpoint.json` says the same for programs.",
        "## Metrics",
        _table(("metric", "value"), metrics) if metrics else "None was recorded.",
        "## Checkpoint",
        _table(("", ""), {name: value for name, value in facts.items() if value}),
        "## Load it",
        "```python\nimport keras\n\n" + by_name(format).loading_code.format(file=file) + "\n```",
        "The digest is the whole file's: `xxhsum -H128` prints the same 32 digits.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    lines += [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items()]
    return "\n".join(lines)


def _plain(text: str) -> str:
    r"""Return text escaped so that Markdown shows it as it is, in one line.

    Example:
        >>> print(_plain("a|b *c* <script>\n`d` val_loss _e_"))
        a\|b \*c\* \<script\>(U+000A)\`d\` val_loss \_e\_
    """
    shown = "".join(char if char.isprintable() else f"(U+{ord(char):04X})" for char in text)
    # An underscore inside a word means nothing to Markdown.
    return re.sub(r"[\\|*`<>\[\]#!&~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", shown)
