"""The `ckptstore` command: `main` runs one command and turns errors into messages and exit codes.

Each command's module is imported when the command is first used, so that `ckptstore ls` starts quickly.
"""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword

import click

from ckptstore.cli.exit_codes import EPILOG, INTERRUPTED, exit_code
from ckptstore.cli.output import OutputClosedError, discard_stdout, log, prepare_streams
from ckptstore.errors import CheckpointStoreError
from ckptstore.printable import printable
from ckptstore.version import __version__

# The module of each command, in the order of the help.
_MODULES = {
    **dict.fromkeys(("ls", "show", "best", "latest", "resume-point"), "checkpoints"),
    **dict.fromkeys(("runs", "history", "compare", "diff"), "runs"),
    "attempts": "attempts",
    "verify": "maintain",
    **dict.fromkeys(("prune", "tag", "untag", "pin", "unpin"), "keep"),
    **dict.fromkeys(("export", "copy", "import"), "transfer"),
    "plot": "plot",
    "report": "report",
    **dict.fromkeys(("repair", "upgrade"), "maintain"),
    "run": "run",
    "logs": "logs",
    "watch": "watch",
    "guide": "guide",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The command line without the program's name; None for that of the process.
    """
    prepare_streams()
    if arguments is None:
        # Most objects that a command creates live until it ends; collecting garbage took an eighth of the start.
        gc.set_threshold(50_000)
    try:
        code: object = commands.main(
            args=None if arguments is None else list(arguments), prog_name="ckptstore", standalone_mode=False
        )
        sys.stdout.flush()
    except click.UsageError as error:
        _show_usage(error)
        return exit_code(error)
    except CheckpointStoreError as error:
        log(f"ckptstore: {printable(str(error))}")
        return exit_code(error)
    except (BrokenPipeError, OutputClosedError):
        discard_stdout()
        return 0
    except OSError as error:
        log(f"ckptstore: {error}")
        discard_stdout()
        return exit_code(error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _show_usage(error: click.UsageError) -> None:
    """Print a usage error as click does; what could act on a terminal is escaped."""
    shown = io.StringIO()
    error.show(shown)
    log(shown.getvalue().rstrip("\n"))


class _LazyGroup(click.Group):
    """A group that imports the module of a command when the command is first used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None where there is no such command."""
        if cmd_name in _MODULES and cmd_name not in self.commands:
            function = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name.replace("-", "_")
            self.add_command(getattr(import_module(f"ckptstore.cli.{_MODULES[cmd_name]}"), function))
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ckptstore", message="%(prog)s %(version)s")
def commands() -> None:
    """Query and manage a store of checkpoints, also while training writes to it.

    STORE is a store's directory, or the folder that ckptstore.ModelCheckpoint writes to. Positions count
    from 0: epoch 0 is the first, and batch "end" is the end of an epoch, after validation.
    """
