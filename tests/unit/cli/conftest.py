"""Run a command line as a user does."""

import sys

import pytest

from ma2mba.cli import app as cli


@pytest.fixture
def ma2mba(monkeypatch, capsys):
    """Runs a command line in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ma2mba", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run
