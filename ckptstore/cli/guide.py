"""The command guide: prints pages of the guide, which is shipped with the package."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from importlib.resources import files

import click

from ckptstore.cli.exit_codes import EPILOG
from ckptstore.cli.options import with_json
from ckptstore.cli.output import echo, print_json, print_rendered

# In the order in which they are read; each is a file of `ckptstore/guide/`.
TOPICS = (
    "start",
    "resume",
    "several-fits",
    "exact",
    "devices",
    "several-processes",
    "retention",
    "queries",
    "commands",
    "background",
    "loops",
    "torch-loops",
    "jax-loops",
    "tuners",
    "unattended",
    "jobs",
    "watching",
    "job-queues",
    "services",
    "attempts",
    "moving",
    "failures",
    "bad-losses",
    "alerts",
    "file-systems",
    "on-disk",
    "design",
    "performance",
    "words",
)

# Lines that are longer are hard to read.
_WIDEST = 110
# Notes for those who edit or test a page.
_NOTE = re.compile(r"^<!--.*?-->\n+", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of the guide.

    Attributes:
        topic: Its name.
        text: Markdown.
    """

    topic: str
    text: str

    @property
    def title(self) -> str:
        """The first line, without its mark."""
        return self.text.partition("\n")[0].removeprefix("# ")

    @property
    def description(self) -> str:
        """The sentence after the title: the question that the page answers."""
        return self.text.split("\n\n")[1]


def page(topic: str) -> Page:
    """Read a page.

    Example:
        >>> page("words").title
        'Words'
    """
    text = (files("ckptstore") / "guide" / f"{topic}.md").read_text(encoding="utf-8")
    return Page(topic=topic, text=_NOTE.sub("", text).rstrip("\n"))


@click.command(name="guide", epilog=EPILOG)
@click.argument("topic", metavar="[TOPIC]", required=False, type=click.Choice(TOPICS))
@with_json
def guide(topic: str | None, as_json: bool) -> None:
    """Print a page of the guide, or the list of its topics.

    A terminal shows it formatted; a pipe gets the page's Markdown.
    """
    if topic is None:
        _print_topics([page(name) for name in TOPICS], as_json)
        return
    found = page(topic)
    if as_json:
        print_json({"topic": found.topic, "text": found.text})
    elif sys.stdout.isatty():
        from rich.markdown import Markdown

        print_rendered(Markdown(found.text), max_width=_WIDEST)
    else:
        echo(found.text)


def _print_topics(pages: list[Page], as_json: bool) -> None:
    if as_json:
        print_json(
            [{"topic": page.topic, "title": page.title, "description": page.description} for page in pages]
        )
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    lines = click.HelpFormatter(width=width)
    lines.write_dl([(page.topic, page.description) for page in pages])
    echo(lines.getvalue().rstrip("\n"))
    echo("\nckptstore guide TOPIC prints one.")
