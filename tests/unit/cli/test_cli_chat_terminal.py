"""`ma2mba chat` at a terminal: a prompt, errors that do not end it, and Ctrl-C, which ends an answer only."""

import os
import pty
import select
import sys
import time
import traceback
from pathlib import Path

import pytest

from ma2mba.cli.app import main
from ma2mba.inference.chat import VideoChat
from ma2mba.inference.generate import Batch
from ma2mba.model.pretrained import load_model
from tests.unit.inference.test_chat import save_picture

SECONDS = 60


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *arguments: str | Path):
        self.child, self.descriptor = pty.fork()
        if self.child == 0:
            self._run([str(argument) for argument in arguments])
        self.text = ""

    def _run(self, arguments: list[str]) -> None:
        code = 1
        try:
            sys.stdin, sys.stdout, sys.stderr = (
                os.fdopen(n, mode, closefd=False) for n, mode in enumerate(("r", "w", "w"))
            )
            main(arguments)
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def until(self, text: str) -> str:
        """Return what appears up to `text`."""
        end = time.monotonic() + SECONDS
        while text not in self.text:
            assert time.monotonic() < end, f"{text!r} did not appear: {self.text}"
            if select.select([self.descriptor], [], [], 0.5)[0]:
                self.text += os.read(self.descriptor, 4096).decode()
        before, _, self.text = self.text.partition(text)
        return before

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


@pytest.fixture
def opened(model_folder, tmp_path, monkeypatch):
    """The command at its first prompt. Answers to a question with "slow" take a minute after their first piece."""
    real = Batch.pieces

    def pieces(batch, *, keep=False):
        for number, piece in real(batch, keep=keep):
            yield number, piece
            if (tmp_path / "slow").exists():
                yield number, "STARTED"
                time.sleep(SECONDS)

    monkeypatch.setattr(Batch, "pieces", pieces)
    picture = save_picture(tmp_path / "picture.png")
    terminal = Terminal("chat", picture, "--model", model_folder, "--max-tokens", "5", "--device", "cpu")
    terminal.until("> ")
    return terminal


def test_ctrl_c_ends_an_answer_and_it_is_not_remembered(opened, model_folder, tmp_path):
    (tmp_path / "slow").touch()
    opened.type("What?\n")
    opened.until("STARTED")
    (tmp_path / "slow").unlink()
    opened.type("\x03")
    opened.until("> ")
    opened.type("How many?\n")
    assert opened.until("> ").strip()
    opened.type(f"/save {tmp_path / 'a.state'}\n")
    opened.until("saved: ")
    opened.type("\x04")
    assert opened.end() == 0
    loaded = VideoChat(*load_model(model_folder, "cpu", "fp32")).load(tmp_path / "a.state")
    assert [turn.text for turn in loaded.turns if turn.role == "user"] == ["How many?"]


def test_an_error_does_not_end_the_conversation(opened, tmp_path):
    opened.type("/save\n")
    assert "not a command" in opened.until("> ")
    opened.type(f"/save {tmp_path}\n")
    assert "is a folder" in opened.until("> ")
    opened.type("What?\n")
    assert opened.until("> ").strip()
    opened.type("/quit\n")
    assert opened.end() == 0
