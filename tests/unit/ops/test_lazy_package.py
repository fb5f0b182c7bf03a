"""A module of a package is imported without the package's `__init__`, until somebody needs that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

DEFERRED = """
import sys
from ma2mba.ops.lazy_package import defer_init
defer_init("heavy")
from heavy.inner import kernel
assert kernel() == 1 and not hasattr(sys, "ran")
assert not hasattr(sys.modules["heavy"], "__wrapped__") and not hasattr(sys, "ran")
"""
USED = """
from heavy import Model
assert sys.ran == 1 and Model is kernel
import heavy
assert heavy.inner.kernel is Model and heavy.Model is Model and sys.ran == 1
"""
UNKNOWN = """
try:
    from heavy import Missing
except ImportError:
    assert sys.ran == 1
else:
    raise SystemExit(1)
"""
LOADED = """
import heavy
from ma2mba.ops.lazy_package import defer_init
defer_init("heavy")
assert heavy.Model() == 1
"""
MISSING = """
import sys
from ma2mba.ops.lazy_package import defer_init
defer_init("absent")
assert "absent" not in sys.modules
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(DEFERRED, id="a module does not run the package's init"),
        pytest.param(DEFERRED + USED, id="init runs once when the package is used"),
        pytest.param(DEFERRED + UNKNOWN, id="an unknown name is an ImportError"),
        pytest.param(LOADED, id="a loaded package is left alone"),
        pytest.param(MISSING, id="a missing package is left alone"),
    ],
)
def test_a_deferred_package(tmp_path, script):
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy/__init__.py").write_text(
        "import sys\nsys.ran = getattr(sys, 'ran', 0) + 1\nfrom heavy.inner import kernel as Model\n"
    )
    (tmp_path / "heavy/inner.py").write_text("def kernel():\n    return 1\n")
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", script], env=paths, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
