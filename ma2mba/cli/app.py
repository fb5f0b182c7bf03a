"""The command line: joins the commands, and turns bad input into one message and exit code 2.

A command imports slow packages only when it runs, so that `ma2mba --help` answers at once.
"""

import errno
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from ma2mba import __version__
from ma2mba.cli import data, import_, recipes
from ma2mba.cli.ask import ask
from ma2mba.cli.chat import chat
from ma2mba.cli.doctor import doctor
from ma2mba.cli.eval import evaluate_command
from ma2mba.cli.export import export
from ma2mba.cli.generate import generate_command
from ma2mba.cli.ingest import ingest
from ma2mba.cli.inspect import inspect
from ma2mba.cli.output import out, refuse
from ma2mba.cli.plan import plan
from ma2mba.cli.replay import replay
from ma2mba.cli.serve import serve_command
from ma2mba.cli.train import train
from ma2mba.errors import UserError
from ma2mba.terminal import guard_reports

WrongUsage: Any = typer.BadParameter.__bases__[0]
"""What typer raises for a wrong command line; the class has no public name."""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prepare data, train Video-Ma2mba, ask a trained model about videos, serve it, evaluate it and export it.",
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        out.print(f"ma2mba {__version__}")
        raise typer.Exit


app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(import_.app, name="import")
for command, name in (
    (train, "train"),
    (ask, "ask"),
    (ingest, "ingest"),
    (chat, "chat"),
    (serve_command, "serve"),
    (evaluate_command, "eval"),
    (generate_command, "generate"),
    (export, "export"),
    (inspect, "inspect"),
    (plan, "plan"),
    (replay, "replay"),
    (doctor, "doctor"),
):
    app.command(name)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (default: of this process).

    Exit with code 2 and one message for bad input, an unusable path or a full disk.
    """
    guard_reports()
    try:
        # Called by itself, `app` would report unexpected errors in its own way.
        code = typer.main.get_command(app)(arguments, prog_name="ma2mba", standalone_mode=False)
    except UserError as error:
        refuse(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            refuse("a disk is full: free some space and run the command again")
        if error.filename is None:
            raise
        refuse(f"{error.filename}: cannot be used ({error.strerror}): give another path, or fix this one")
    except typer.Abort:
        raise SystemExit(130) from None
    except WrongUsage as error:
        _refuse_usage(error)
    raise SystemExit(code if isinstance(code, int) else 0)


def _refuse_usage(error: Any) -> NoReturn:
    """Print what is wrong with a command line, and how to get help. Without arguments, typer has printed the help."""
    message, context = error.format_message().rstrip("."), error.ctx
    if not message:
        raise SystemExit(error.exit_code) from None
    refuse(f"{message}. `{context.command_path if context else 'ma2mba'} --help` helps")
