"""The command line: joins the commands, and turns bad input into one message and exit code 2.

A command imports slow packages only when it runs, so that `ma2mba --help` answers at once.
"""

import errno
from typing import Annotated

import typer

from ma2mba import __version__
from ma2mba.cli.ask import ask
from ma2mba.cli.doctor import doctor
from ma2mba.cli.eval import evaluate_command
from ma2mba.cli.export import export
from ma2mba.cli.inspect import inspect
from ma2mba.cli.output import out, refuse
from ma2mba.cli.plan import plan
from ma2mba.cli.replay import replay
from ma2mba.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Ask Video-Ma2mba about a video, evaluate and export models, inspect folders, plan and check training.",
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        out.print(f"ma2mba {__version__}")
        raise typer.Exit


for command, name in (
    (ask, "ask"),
    (evaluate_command, "eval"),
    (export, "export"),
    (inspect, "inspect"),
    (plan, "plan"),
    (replay, "replay"),
    (doctor, "doctor"),
):
    app.command(name)(command)


def main() -> None:
    """Run the command line. Exit with code 2 and one message for bad input, an unusable path or a full disk."""
    try:
        app()
    except UserError as error:
        refuse(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            refuse("a disk is full: free some space and run the command again")
        if error.filename is None:
            raise
        refuse(f"{error.filename}: cannot be used ({error.strerror}): give another path, or fix this one")
