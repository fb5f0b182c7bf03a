"""Run commands on a mutated file in a folder of their own, and say what they did that no command may do.

Layout of the root, on a file system in memory:

    base/       healthy examples, which no command may change
    canaries/   files that nothing may read or change
    worker-N/   the current folder, HOME and TMPDIR of one process; case/ is the mutated copy, out/ what commands write
"""

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ma2mba.cli.app import main
from ma2mba.files import atomic_write
from tests.fuzz.formats import Command, Format
from tests.fuzz.mutations import mutate

SECRET = "nobody may read this: 3f9c1e"
MEMORY_BYTES = 2_000_000_000
"""Memory that a command may take. The process holds less than 1 GB at its start."""
VOLATILE = ("seconds", "timings", "source", "repaired", "already_built")
WRITES = re.compile(r"os\.(mkdir|rename|remove|rmdir|link|symlink|truncate|chmod|chown|mkfifo|utime)$")
STARTS = ("socket.connect", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "pickle.find_class")


@dataclass
class Watch:
    """What the interpreter reports while a command runs: writes outside, connections, programs."""

    inside: tuple[str, ...] = ()
    seen: list[str] = field(default_factory=list)
    on: bool = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            )
            if writes and isinstance(path, str | bytes):
                self.check(event, path, follow=not (isinstance(flags, int) and flags & os.O_NOFOLLOW))
        elif WRITES.match(event):
            for path in arguments[:2]:
                if isinstance(path, str | bytes):
                    self.check(event, path)
        elif event in STARTS and not self._allowed(event, arguments):
            self.seen.append(f"{event} {arguments!r:.100}")

    def check(self, event: str, path: str | bytes, follow: bool = False) -> None:
        self.on = False
        parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        real = os.path.realpath(os.fsdecode(path)) if follow else os.path.join(os.path.realpath(parent), name)
        if not real.startswith(self.inside):
            self.seen.append(f"{event} {real}")
        self.on = True

    @staticmethod
    def _allowed(event: str, arguments: tuple[Any, ...]) -> bool:
        """Allow Python (the trial of a tokenizer), git (the commit of the code), and sockets of DeepSpeed and gloo."""
        if event == "subprocess.Popen":
            return os.path.basename(str(arguments[0])) == "git" or arguments[0] == sys.executable
        if event == "socket.connect":
            return not str(arguments[1]).startswith("('") or "('127.0.0.1', 9)" not in str(arguments[1])
        return event == "pickle.find_class"


WATCH = Watch()


@dataclass
class Done:
    """What a command did. `code` is None if it raised; `fault` then holds the traceback."""

    code: int | None
    out: str
    err: str
    fault: str = ""


class Sandbox:
    """The folder of one process, in which it runs rounds of any format."""

    def __init__(self, root: Path, number: int, beat: Callable[[str], None]):
        self.root, self.folder, self.beat = root, root / f"worker-{number}", beat
        self.case, self.out = self.folder / "case", self.folder / "out"
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("home", "tmp"):
            (self.folder / name).mkdir(parents=True)
        os.environ |= {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp")}
        tempfile.tempdir = None
        self._meanings: dict[str, dict[str, Any]] = {}
        WATCH.inside = (str(self.folder) + "/", "/dev/null", "/proc/", "pipe:", "/dev/shm/sem.")
        sys.addaudithook(WATCH.hook)
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY_BYTES, resource.RLIM_INFINITY))

    def round(self, name: str, form: Format, seed: int) -> tuple[str, list[str]]:
        """Run one round. Return how the file was changed, and what went wrong."""
        rng = Random(f"{name} {seed}")
        healthy = {command.line: self._healthy(form, command) for command in form.commands if form.sealed}
        self._fill(form)
        files = sorted({path for pattern in form.files for path in self.case.glob(pattern) if path.is_file()})
        path = rng.choice(files)
        file = path.relative_to(self.case).as_posix()
        before = outside(self.root, self.folder)
        said = f"{file}: {mutate(rng, path, self.root)}"
        sealed_again = form.remake is not None and rng.random() < 0.6
        if sealed_again and form.remake:
            form.remake(self.case)
            said += ", checksums made again"
        must_be_alike = form.is_sealed(file) and not sealed_again
        problems = []
        for command in form.commands:
            if rng.random() < command.share:
                done = self.run(command, path)
                found = [*self._wrong(command, done), *self._memory()]
                if must_be_alike and done.code == 0:
                    now = self._meaning(command, done)
                    if any(now.get(part) != meaning for part, meaning in healthy[command.line].items()):
                        found.append("succeeds with another meaning, though the checksums differ")
                problems += [f"{command.line}: {problem}" for problem in found]
        if outside(self.root, self.folder) != before:
            problems.append("a file outside changed")
            restore(self.root)
        if form.remake and not self._keeps_the_secret():
            problems.append("prints or copies the secret")
        return said, problems

    def _fill(self, form: Format) -> None:
        """Make case/ a healthy copy."""
        for folder in (self.case, self.out):
            remove(folder)
        for name in form.copied:
            source, target = self.root / "base" / name, self.case / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)

    def run(self, command: Command, file: Path | None = None) -> Done:
        """Run a command here, or in a child if it cannot run twice in a process."""
        self.beat(command.line)
        remove(self.out)
        base = self.root / "base"
        line = command.line.format(file=file, case=self.case, out=self.out, base=base, shards=base / "shards")
        os.chdir(self.folder)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts again
        with captured(self.folder) as read:
            code, fault = _in_child(line.split(" ")) if command.alone else call(line.split(" "))
            out, err = read()
        return Done(code, out, err, fault)

    def _wrong(self, command: Command, done: Done) -> Iterator[str]:
        seen, WATCH.seen = WATCH.seen, []
        for event in seen:
            yield f"reaches outside: {event}"
        if done.fault:
            yield _cause(done.fault)
        elif "Traceback" in done.out + done.err:
            yield _cause(done.out + done.err)
        elif done.code == 2 and (lines := len(re.findall(r"^error:", done.err, re.MULTILINE))) != 1:
            yield f"code 2 with {lines} error lines: {done.err[-300:]!r}"
        elif done.code not in (0, 2, *command.codes):
            yield f"exit code {done.code}: {done.err[-600:]!r}"
        if re.search(r"\x1b\[2J|\x1b\]0|\x07", done.out + done.err):
            yield "writes an escape sequence to the terminal"

    def _memory(self) -> Iterator[str]:
        peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        if max(peak, children) > MEMORY_BYTES:
            yield f"takes {max(peak, children) / 1e9:.1f} GB"

    def _healthy(self, form: Format, command: Command) -> dict[str, Any]:
        """Return the meaning of a command on the healthy files. It is found once, and kept in the root."""
        name = hashlib.sha256(repr((form.copied, command.line)).encode()).hexdigest()
        if name not in self._meanings:
            kept = self.root / "meanings" / name
            if not kept.exists():
                self._fill(form)
                done = self.run(command)
                assert done.code in (0, *command.codes), f"{command.line} fails on healthy files: {done}"
                with atomic_write(kept) as file:
                    json.dump(self._meaning(command, done), file)
            self._meanings[name] = json.loads(kept.read_text())
        return self._meanings[name]

    def _meaning(self, command: Command, done: Done) -> dict[str, Any]:
        """Return what a command says, or a digest of each file that it writes."""
        if command.tree:
            return _contents(self.folder if command.tree == "out" else self.case, command.tree)
        if "--json" not in command.line:
            return {}
        return _without(json.loads(done.out.strip().splitlines()[-1]), str(self.case))

    def _keeps_the_secret(self) -> bool:
        files = [p for top in (self.out, self.case) for p in top.rglob("*") if p.is_file() and not p.is_symlink()]
        files += [self.folder / "stdout", self.folder / "stderr"]
        return not any(SECRET.encode() in path.read_bytes() for path in files if path.stat().st_size < 10**8)


def call(arguments: list[str]) -> tuple[int | None, str]:
    """Run a command in this process. Return its exit code, and the traceback if it raised."""
    WATCH.on = True
    try:
        main(arguments)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None), ""
    except BaseException:
        return None, traceback.format_exc()
    finally:
        WATCH.on = False
    return 0, ""


def _in_child(arguments: list[str]) -> tuple[int | None, str]:
    child = os.fork()
    if child == 0:
        code, fault = call(arguments)
        print(fault, *(f"reaches outside: {event}" for event in WATCH.seen), sep="\n", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if code is None else code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, f"ended by signal {-code}" if code < 0 else ""


@contextlib.contextmanager
def captured(folder: Path) -> Iterator[Callable[[], tuple[str, str]]]:
    """Send everything that this process and its children print to files; yield a function that reads these."""
    kept = [os.dup(number) for number in (1, 2)]
    files = [folder / "stdout", folder / "stderr"]
    for number, path in enumerate(files, 1):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), number)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", errors, write_through=True)
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )

    def read() -> tuple[str, str]:
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = (path.read_text(encoding="utf-8", errors="backslashreplace") for path in files)
        return out, err

    try:
        yield read
    finally:
        sys.stdout, sys.stderr = streams
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def make_canaries(root: Path) -> None:
    folder = root / "canaries"
    (folder / "folder").mkdir(parents=True)
    for path in (folder / "secret.txt", folder / "victim.json", folder / "folder/secret.txt"):
        path.write_text(SECRET)
    shutil.copytree(folder, root / "canaries.kept", copy_function=shutil.copy2)


def restore(root: Path) -> None:
    """Put the canaries back after a round that changed them."""
    shutil.rmtree(root / "canaries")
    shutil.copytree(root / "canaries.kept", root / "canaries", copy_function=shutil.copy2)


def outside(root: Path, folder: Path) -> list[tuple[object, ...]]:
    """Return name, size and time of everything in the root that no worker may change."""
    found: list[tuple[object, ...]] = []
    stack = [str(root / "base"), str(root / "canaries")]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                found.append((entry.path, status.st_size, status.st_mtime_ns, status.st_mode, status.st_ino))
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return sorted(found)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _contents(top: Path, name: str) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder; of a manifest, of its values: spaces have no meaning there."""
    files = [path for path in (top / name).rglob("*") if path.is_file()]
    return {path.relative_to(top).as_posix(): hashlib.sha256(_content(path)).hexdigest() for path in files}


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return json.dumps(json.loads(content)).encode() if path.name == "manifest.json" else content


def _without(value: Any, case: str) -> Any:
    """Return a command's JSON without times and without the case's path."""
    if isinstance(value, dict):
        return {key: _without(inner, case) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [_without(inner, case) for inner in value]
    return value.replace(case, "CASE") if isinstance(value, str) else value


def _cause(text: str) -> str:
    """Return the exception and the two last places of our code of a traceback: what groups equal faults."""
    places = re.findall(r'File "[^"]*?/((?:ma2mba|data_prep)/[^"]+)", line (\d+), in (\S+)', text)
    last = text.strip().splitlines()[-1] if text.strip() else ""
    for line in reversed(text.strip().splitlines()):
        if re.match(r"[\w.]+(Error|Exception|Interrupt|Warning|Exit)\b", line):
            last = line
            break
    return f"{last[:160]} ({' <- '.join(f'{file}:{line} {name}' for file, line, name in places[:-4:-1])})"


signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
