"""Everything pip needs to know; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
SHIPPED = {"ma2mba.recipes": "launch/recipes", "ma2mba.policies": "ds_configs"}
"""Folders of the checkout that an installation holds as packages (ma2mba/shipped.py)."""


def version() -> str:
    found = re.search(r'^__version__ = "([^"]+)"', (HERE / "ma2mba" / "__init__.py").read_text(), re.MULTILINE)
    assert found, "ma2mba/__init__.py has no __version__"
    return found.group(1)


def readme() -> str:
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


setup(
    name="ma2mba",
    version=version(),
    description="Train and run Video-Ma2mba: hours of video at 1 FPS on one GPU, by multi-axis gradient checkpointing",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="The ma2mba contributors",
    url="https://arxiv.org/abs/2411.19460",
    project_urls={"Paper": "https://arxiv.org/abs/2411.19460"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["ma2mba", "ma2mba.*", "data_prep", "data_prep.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "data_prep": ["recipes/*.yaml"],
        "ma2mba.model.hf": ["*.md"],
        "ma2mba.serving.page.assets": ["*.css", "*.html", "*.js"],
        "ma2mba.recipes": ["*.yaml"],
        "ma2mba.policies": ["*.json"],
    },
    install_requires=[
        "av>=15.1",
        "datasets>=5.1",
        "deepspeed>=0.19",
        "huggingface_hub>=1.33",
        "matplotlib>=3.9",
        "numpy>=2",
        "Pillow>=11",
        "psutil>=6",
        "pyarrow>=24",
        "pydantic>=2.10",
        "pyyaml>=6.0.1",
        "rich>=13.9",
        "safetensors>=0.5",
        "simplejpeg>=1.8",
        "tensorboard>=2.18",
        "tokenizers>=0.22.2",
        "torch>=2.10",
        "transformers>=5.6",
        "typer>=0.18",
        "xxhash>=3.5",
    ],
    extras_require={
        "gpu": ["causal-conv1d>=1.5", "mamba-ssm>=2.2.4", "triton>=3"],
        "ray": ["ray[serve]>=2.60"],
        "decord": ["decord>=0.6"],
        "lmms-eval": ["filelock<4", "lmms-eval>=0.7.2,<0.8"],  # lmms-eval 0.7 imports parts of filelock 3
        "serve": [
            "fastapi>=0.165",
            "gradio>=6.31",
            "httpcore>=1.0.9",
            "prometheus-client>=0.26",
            "python-multipart>=0.0.34",
            "uvicorn>=0.54",
        ],
        "dev": [
            "accelerate>=1.1",
            "duckdb>=1.2",
            "httpx>=0.28.1",
            "imageio-ffmpeg>=0.8",
            "mypy>=1.15",
            "openai>=3.57",
            "playwright>=1.65",
            "polars>=1.20",
            "pytest>=8.3",
            "pytest-timeout>=2.3.1",
            "pytest-xdist>=3.6.1",
            "ruff>=0.11",
            "types-PyYAML",
        ],
    },
    entry_points={
        "console_scripts": ["ma2mba = ma2mba.cli.app:main"],
        "lmms_eval.models": ["ma2mba = ma2mba.evaluation.lmms_eval.manifest:manifest"],
    },
)
