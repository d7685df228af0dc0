"""Writes ``ckptstore/guide/commands.md``, the reference of the command line, from the commands' own help.

python tools/write_commands_page.py     after each change of a command, an option or a help text
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import click

from ckptstore.cli.main import commands

TARGET = Path(__file__).resolve().parent.parent / "ckptstore" / "guide" / "commands.md"
WIDTH = 120

HEAD = """\
# Commands

What each command does, which options it takes, and how it ends.

<!-- Written by tools/write_commands_page.py; do not edit. -->
"""

# What holds for all commands.
COMMON = """\
Every command takes `-h` or `--help`. `--json` prints one JSON document on stdout; messages go to stderr. What lasts
longer than a second shows a progress bar on a terminal.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed |
| 2 | usage: an argument cannot be used |
| 3 | not found: no such store, checkpoint, run or metric |
| 4 | locked by another process |
| 5 | problems found: damage |
| 6 | the store's schema is older or newer than this version works with |

Where scripts are not on the path, `python -m ckptstore` is the same command.

A shell completes commands, options and refs: put `eval "$(_CKPTSTORE_COMPLETE=bash_source ckptstore)"` into
`~/.bashrc`. For zsh write `zsh_source`; for fish, `_CKPTSTORE_COMPLETE=fish_source ckptstore | source`.
"""


def text() -> str:
    """Return the page's text."""
    context = click.Context(commands, info_name="ckptstore")
    found = [(name, commands.get_command(context, name)) for name in commands.list_commands(context)]
    known = [(name, command) for name, command in found if command is not None]
    overview = ["| command | what it does |", "| --- | --- |"]
    overview += [f"| [{name}](#{name}) | {cell(first_line(command))} |" for name, command in known]
    parts = [HEAD, paragraphs(commands.help), COMMON, "\n".join(overview) + "\n"]
    parts += [described(name, command) for name, command in known]
    return "\n".join(parts)


def described(name: str, command: click.Command) -> str:
    """Return the section of one command."""
    arguments = [shown(parameter) for parameter in command.params if isinstance(parameter, click.Argument)]
    usage = " ".join(["ckptstore", name, "[OPTIONS]", *arguments])
    parts = [f"## {name}\n", f"    {usage}\n", paragraphs(command.help)]
    # The options of all commands are described above.
    options = [
        parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.opts != ["--json"]
    ]
    if options:
        rows = [f"| {option_names(option)} | {cell(meaning(option))} |" for option in options]
        parts.append("\n".join(["| option | meaning |", "| --- | --- |", *rows]) + "\n")
    return "\n".join(parts)


def shown(argument: click.Argument) -> str:
    """Return an argument as in the usage line."""
    name = argument.metavar or choices(argument) or (argument.name or "").upper()
    if argument.nargs == -1 and not name.endswith("..."):
        name += "..."
    return name if argument.required else f"[{name}]"


def choices(parameter: click.Parameter) -> str:
    """Return the values of an option that is a choice; an empty text for others."""
    few = isinstance(parameter.type, click.Choice) and isinstance(parameter, click.Option)
    return "|".join(map(str, parameter.type.choices)) if few else ""  # type: ignore[attr-defined]


def option_names(option: click.Option) -> str:
    """Return an option's names, and its value."""
    value = "" if option.is_flag else option.metavar or choices(option) or (option.name or "").upper()
    return cell(f"`{', '.join(option.opts)}{' ' * bool(value)}{value}`")


def meaning(option: click.Option) -> str:
    """Return the help of an option, with its default where that is shown."""
    meaning = " ".join((option.help or "").split())
    return f"{meaning} Default: {option.default}." if option.show_default else meaning


def cell(content: str) -> str:
    """Return text escaped for a table."""
    return content.replace("|", "\\|")


def first_line(command: click.Command) -> str:
    """Return the summary of a command, one line."""
    return inspect.cleandoc(command.help or "").partition("\n")[0]


def paragraphs(help: str | None) -> str:
    """Return a help text as paragraphs of the page's width."""
    found = inspect.cleandoc(help or "").split("\n\n")
    return (
        "\n\n".join(
            textwrap.fill(" ".join(paragraph.split()), WIDTH, break_on_hyphens=False) for paragraph in found
        )
        + "\n"
    )


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
