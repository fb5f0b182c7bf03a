"""`chat --live` as a user meets it: a growing file, rtsp:// and a pipe, with and without a terminal."""

import os
import pty
import re
import select
import sys
import time
import traceback
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ma2mba.cli.app import main
from ma2mba.model import conversation
from tests.forked import Outcome, run
from tests.unit.video.live_files import growing, mpegts
from tests.unit.video.rtsp_server import serve

SHORT = ("--max-tokens", "5", "--device", "cpu")


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    """An MPEG-TS file of 8 s."""
    return mpegts(tmp_path_factory.mktemp("live") / "a.ts")


@pytest.fixture(autouse=True, scope="module")
def trusted_tokenizer():
    """Do not try the tokenizer in a process of its own: that takes most of a command's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conversation, "read_tokenizer", lambda path: Tokenizer.from_file(str(path)))
        yield


def live(source, model, *options, stdin: str = "What?\n", **how) -> Outcome:
    return run("chat", "--live", source, "--model", model, *SHORT, "--live-idle", "1.5", *options, stdin=stdin, **how)


def test_a_growing_file_is_asked_about_while_it_grows(stream, model_folder, tmp_path):
    with growing(stream, tmp_path / "growing.ts", pieces=20, pause=0.1) as path:
        outcome = live(path, model_folder, "--live-idle", "20", stdin=f"What?\n\n/save {tmp_path}/a.state\n/help\n")
    assert outcome.code == 0, outcome.err
    answer, saved, helped = outcome.out.splitlines()
    assert answer
    assert saved == f"saved: {tmp_path}/a.state"
    assert "what was seen so far" in helped
    counts = [int(count) for count in re.findall(r"\(seen: 0:00:0\d, (\d+) frames\)", outcome.err)]
    assert len(counts) == 3
    assert 1 <= counts[0] <= counts[1] <= counts[2] <= 8
    later = run("chat", "--state", tmp_path / "a.state", "--model", model_folder, *SHORT, stdin="What?\n")
    assert later.code == 0, later.err
    assert later.out.strip()


def test_rtsp_is_asked_about(stream, model_folder):
    with serve(stream.read_bytes()) as server:
        outcome = live(f"rtsp://me:secret@127.0.0.1:{server.port}/cam", model_folder)
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip()
    assert "secret" not in outcome.err + outcome.out


def test_an_unknown_dtype_is_refused(stream, model_folder):
    outcome = live(stream, model_folder, "--dtype", "fp8")
    assert outcome.refused
    assert "--dtype fp8: unknown dtype" in outcome.err


@pytest.mark.parametrize("content", [b"", b"no video" * 9999])
def test_a_source_without_video_is_refused(model_folder, tmp_path, content):
    (tmp_path / "a.ts").write_bytes(content)
    outcome = live(tmp_path / "a.ts", model_folder)
    assert outcome.refused, outcome
    assert "a.ts: not a readable stream of video" in outcome.err
    assert outcome.seconds < 60


def test_a_pipe_without_a_terminal_is_refused(stream, model_folder):
    outcome = live("-", model_folder)
    assert outcome.refused, outcome
    assert "there is no terminal for the questions" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--live", "none.ts"), "none.ts: no such file"),
        (("--live", "http://127.0.0.1/a.ts"), "no such file"),
        (("--live", "fifo"), "fifo: not a regular file. Use - for a pipe"),
        (("--live", "--state", "STATE"), "--live: name what to watch"),
        (("--live", "VIDEO", "--frames", "8"), "--frames: is for a whole video"),
        (("--live", "VIDEO", "--cache", "x"), "--cache: is for a whole video"),
        (("VIDEO", "--live-idle", "3"), "--live-idle: is for --live"),
        (("-",), "-: this video does not exist"),
        (("fifo",), "fifo: not a regular file"),
        (("rtsp://127.0.0.1:9/cam",), "this video does not exist"),
    ],
)
def test_wrong_commands_are_refused(stream, model_folder, tmp_path, arguments, said):
    os.mkfifo(tmp_path / "fifo")
    named = [{"VIDEO": stream, "STATE": "none.state"}.get(word, word) for word in arguments]
    outcome = run("chat", *named, "--model", model_folder, "--device", "cpu", cwd=tmp_path)
    assert outcome.refused, outcome
    assert said in outcome.err
    assert outcome.seconds < 30


def test_a_pipe_is_asked_about_at_the_terminal(model_folder, tmp_path):
    """The video comes in standard input, the questions from the terminal that the process belongs to.

    FFmpeg wants 5 s of a stream before it gives the first frame.
    """
    content = mpegts(tmp_path / "a.ts", seconds=20).read_bytes()
    ours, theirs = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        os.close(theirs)
        os.dup2(ours, 0)
        _chat_at_terminal(["chat", "--live", "-", "--model", str(model_folder), *SHORT])
    os.close(ours)
    os.write(theirs, content[: len(content) // 2])
    try:
        assert "so far" in _until(terminal, "> ")
        os.write(terminal, b"What?\n")
        assert "(seen: 0:00:0" in _until(terminal, "frames)")
        os.write(theirs, content[len(content) // 2 :])
        os.close(theirs)
        assert "ended after 20 s: it ended" in _until(terminal, "it ended")
        os.write(terminal, b"What?\n")
        assert "(seen: 0:00:20, 20 frames)" in _until(terminal, "frames)")
        os.write(terminal, b"/nothing\n")
        assert "not a command" in _until(terminal, "not a command")
        os.write(terminal, b"/quit\n")
        assert _code(child) == 0
    finally:
        os.close(terminal)


def _chat_at_terminal(arguments: list[str]) -> None:
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    code = 0
    try:
        main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _until(terminal: int, text: str, limit_s: float = 60) -> str:
    """Return what the terminal shows up to a text. Fail after `limit_s`."""
    shown, until = "", time.monotonic() + limit_s
    while text not in shown:
        assert time.monotonic() < until, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def _code(child: int, limit_s: float = 30) -> int:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
