"""The command `ma2mba` with the layer and the encoder of gated_model.py: python examples/extending/cli.py ask ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import examples.extending.gated_model  # noqa: F401 (registers the layer and the encoder)
from ma2mba.cli import main

if __name__ == "__main__":
    main()
