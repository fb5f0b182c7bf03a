"""The command line `ma2mba`: one file for each command, joined in `app.py`."""


def main() -> None:
    """Run the command line (the entry point of the installed script)."""
    from ma2mba.cli.app import main as run

    run()
