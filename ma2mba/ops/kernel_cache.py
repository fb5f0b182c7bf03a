"""A machine's folder of compiled kernels, their measured settings, and the self-tests that they have passed.

    ~/.cache/ma2mba/kernels/MACHINE/       XDG_CACHE_HOME moves it; MACHINE is a hash of GPU, driver and versions
        triton/, inductor/                 what Triton and TorchInductor compile and measure
        passed-TEST.json                   a self-test that passed: what was tested, and hashes of the kernels it ran

A folder that other users may write to is not used: it holds code. A result is ignored, and the kernels are compiled
again, when a kernel has changed since; it is ignored too when its file is damaged or describes another test.
"""

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import xxhash

from ma2mba.errors import UserError
from ma2mba.files import atomic_write, xxh3_file
from ma2mba.text import read_json

PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d")
VARIABLES = ("MA2MBA_OPS", "TRITON_", "CUBLAS_", "NVIDIA_TF32")
"""The beginnings of variables that may change what kernels compute."""
TRITON = "TRITON_CACHE_DIR"
PLACES = {TRITON: "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""The variables in which libraries look for their cache, and the folders that they get here."""
DRIVER = Path("/proc/driver/nvidia/version")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelCache:
    """The folder of one machine, which this process may trust."""

    folder: Path

    @staticmethod
    def of(device: torch.device) -> "KernelCache | None":
        """Return the cache of a GPU, created if it is missing. None on a CPU, and if the folder cannot be trusted."""
        return _open(_base() / digest(machine(device))[:16]) if device.type == "cuda" else None

    def use(self) -> None:
        """Let Triton and TorchInductor compile into this folder, unless the user has chosen their folders."""
        for variable, place in PLACES.items():
            os.environ.setdefault(variable, str(self.folder / place))

    def has_passed(self, test: Mapping[str, str]) -> bool:
        """Return True if this test passed before, with the kernels that are there now.

        Kernels that have changed since are removed, with all results: they will be compiled and tested again. Always
        False if the user has chosen another folder for kernels, of which nothing is known.
        """
        if not self._in_use:
            return False
        try:
            with self._locked():
                found = self._passed(test)
                if found is None:
                    return False
                if changed := [name for name, known in found.items() if self._hash(name) != known]:
                    log.warning(
                        "%s: %s has changed since it was compiled. The kernels are compiled again",
                        self.folder,
                        changed[0],
                    )
                    self._clear()
                return not changed
        except OSError as error:
            log.debug("%s: is not used (%s)", self.folder, error)
            return False

    def note_passed(self, test: Mapping[str, str]) -> None:
        """Note that this test has passed, with the kernels that are there now. Does nothing if that is impossible."""
        if not self._in_use:
            return
        try:
            with self._locked():
                names = (p.relative_to(self.folder).as_posix() for p in sorted(self._kernels()))
                hashes = {name: found for name in names if (found := self._hash(name))}
                content = {"test": dict(test), "kernels": hashes}
                with atomic_write(self._place(test)) as file:
                    json.dump(content | {"xxh3": _hash_of(content)}, file)
        except (OSError, UserError) as error:
            log.debug("%s: cannot be written (%s)", self.folder, error)

    @property
    def _in_use(self) -> bool:
        return os.environ.get(TRITON) == str(self.folder / PLACES[TRITON])

    def _passed(self, test: Mapping[str, str]) -> dict[str, str] | None:
        """Return the hashes of the kernels with which a test passed; None unless a sound file says that it did."""
        place = self._place(test)
        if not place.is_file():
            return None
        try:
            content = read_json(place)
            told = content.pop("xxh3")
            sound = told == _hash_of(content) and content["test"] == dict(test)
            return dict(content["kernels"]) if sound else None
        except (UserError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def _place(self, test: Mapping[str, str]) -> Path:
        return self.folder / f"passed-{digest(test)[:32]}.json"

    def _kernels(self) -> Iterator[Path]:
        """Yield the compiled kernels in this folder, without those that a process is writing now."""
        for path in (self.folder / PLACES[TRITON]).rglob("*"):
            unfinished = any(part.startswith(("tmp.", ".")) for part in path.relative_to(self.folder).parts)
            if not unfinished and path.suffix != ".lock" and path.is_file():
                yield path

    def _hash(self, name: str) -> str:
        """Return the hash of a kernel's file; "" if it cannot be read."""
        try:
            return xxh3_file(self.folder / name)
        except OSError:
            return ""

    def _clear(self) -> None:
        for path in self.folder.glob("passed-*.json"):
            path.unlink()
        for place in PLACES.values():
            shutil.rmtree(self.folder / place, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def machine(device: torch.device) -> dict[str, str]:
    """Return what decides whether compiled kernels and their settings fit: the GPU, its driver, and versions."""
    about = torch.cuda.get_device_properties(device)
    return {
        "gpu": about.name,
        "capability": f"{about.major}.{about.minor}",
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def describe_test(device: torch.device, sizes: str, code: Iterable[Path]) -> dict[str, str]:
    """Return what decides the result of a self-test on a GPU: this one GPU, its machine, the code, and the sizes.

    `code` are the files, and the folders of files, that the test runs.
    """
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    return machine(device) | {
        "uuid": str(torch.cuda.get_device_properties(device).uuid),
        "code": _hash_of_code(code),
        "tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "variables": json.dumps(variables),
        "sizes": sizes,
    }


def digest(facts: Mapping[str, str]) -> str:
    """Return a hash of facts as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _base() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ma2mba" / "kernels"


def _open(folder: Path) -> KernelCache | None:
    """Return the cache in a folder that belongs to this user alone; None, and a log line, otherwise."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except (OSError, RuntimeError) as error:
        log.debug("%s: compiled kernels are not kept (%s)", folder, error)
        return None
    others = stat.S_IWGRP | stat.S_IWOTH
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & others:
        log.info("%s: is not used for compiled kernels, because other users may change it", folder)
        return None
    return KernelCache(folder)


def _hash_of_code(places: Iterable[Path]) -> str:
    hashed = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            hashed.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def _driver() -> str:
    try:
        return DRIVER.read_text(encoding="utf-8", errors="replace")[:1000]
    except OSError:
        return "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _hash_of(content: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
