"""The engine trains where only PyTorch is installed: `pip install --no-deps .`."""

import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest

from tests.checkout import copy_checkout

TRAIN = """
import torch
import ma2mba
from ma2mba.magc import Plan, checkpoint


class GRULayer(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cell = torch.nn.GRU(width, width, batch_first=True)

    def forward(self, x, state):
        y, last = self.cell(x, state[0])
        return x + y, (last,)

    def initial_state(self, x):
        return (x.new_zeros(1, x.shape[0], x.shape[2]),)


torch.manual_seed(0)
layers = torch.nn.ModuleList(GRULayer(8) for _ in range(2))
optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
x, losses = torch.randn(2, 40, 8), []
for _ in range(10):
    y, _ = checkpoint(layers, x, None, Plan(chunk_tokens=10, group_layers=1))
    loss = (y - x.roll(1, 1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(ma2mba.__file__, losses[-1] < 0.9 * losses[0])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder that holds the package, installed without its requirements, and PyTorch with its own."""
    work = tmp_path_factory.mktemp("engine")
    source, target = copy_checkout(work / "source"), work / "target"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    for package in with_requirements("torch", {}).values():
        for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (target / top).exists():  # several packages share the folder nvidia
                (target / top).symlink_to(package.locate_file(top))
    return target


def with_requirements(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Return a package and everything that it requires, by name."""
    try:
        found[name] = distribution(name)
    except PackageNotFoundError:  # a requirement on another platform
        return found
    for requirement in found[name].requires or []:
        needed = re.match(r"[\w.-]+", requirement)[0]
        if "extra ==" not in requirement and needed not in found:
            with_requirements(needed, found)
    return found


def test_a_recurrent_layer_trains_with_pytorch_alone(installed):
    script = f"import sys\nsys.path.append({str(installed)!r})\n{TRAIN}"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(installed / "ma2mba" / "__init__.py"), "True"]
    others = ["numpy", "pydantic", "transformers", "deepspeed"]
    assert not [name for name in others if (installed / name).exists()]
