"""`ma2mba serve` refuses what it cannot serve, before it loads a model."""

import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--host", "0.0.0.0"), "--token-file"),
        (("--host", "0.0.0.0", "--no-auth", "--token-file", "t"), "Leave one of them out"),
        (("--token-file", "nothing"), "nothing"),
        (("--allow-domain", "https://a.example"), "not a host name"),
        (("--host", "name.invalid", "--no-auth"), "Name another address or port"),
        (("--device", "tpu"), "--device tpu"),
        (("--dtype", "int8"), "--dtype int8"),
        (("--places", "0"), "--places"),
        ((), "nothing"),
    ],
)
def test_wrong_options_are_refused(ma2mba, tmp_path, options, says):
    code, _, err = ma2mba(
        "serve", "--model", tmp_path / "nothing", "--cache", tmp_path / "cache", "--port", 0, *options
    )
    assert (code, says in err, "Traceback" in err) == (2, True, False), err


def test_a_port_that_is_taken_is_refused(ma2mba, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = ma2mba("serve", "--model", tmp_path, "--port", taken.getsockname()[1])
    assert (code, "Name another address or port" in err) == (2, True)


def test_the_missing_extra_is_named(tmp_path):
    code = "import sys; sys.modules['uvicorn'] = None; from ma2mba.cli.app import main; main()"
    command = [sys.executable, "-c", code, "serve", "--model", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert (result.returncode, "pip install 'ma2mba[serve]'" in result.stderr) == (2, True), result.stderr
