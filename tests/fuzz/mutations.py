"""Random changes to the files of a folder: to bytes, values, texts, tables, weights, and to the entries themselves.

Every function takes a random generator, and says in a few words what it did: the seed and these words describe a round.
"""

import contextlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

DEEP, HUGE, EXPONENT, MANY = "@deep@", "@huge@", "@exponent@", "@many@"
LITERALS = {
    f'"{DEEP}"': "[" * 100_000 + "]" * 100_000,
    f'"{HUGE}"': "1" + "0" * 5000,
    f'"{EXPONENT}"': "1e999999999",
    f'"{MANY}"': "[" + ",".join("0" * 100_000) + "]",
}
"""Values that no writer of JSON writes, put in place of a marker."""
NUMBERS = [-1, 0, 1, 2, 2**31 - 1, 2**31, 2**63, -(2**63), 10**9, 10**30, 0.5, -0.5, 1e308, 1e-308]
NUMBERS += [float("nan"), float("inf"), -float("inf")]
TEXTS = ["", " ", "x", "é\n", "\x00", "\ud800", "\x1b]0;owned\x07\x1b[2J", "[/]", "[bold]", "[link=x]", "a" * 100_000]
TEXTS += ["@root@/canaries/victim.json", "../../../canaries/victim.json", "../../../../../canaries/victim.json", ".."]
TEXTS += ["/etc/passwd", ".", "/", "~", "$(touch x)", "-x", "a:b", "http://127.0.0.1:9/x"]
OTHERS = [None, True, False, [], [[]], {}, {"x": {"y": 1}}, DEEP, HUGE, EXPONENT, MANY]
YAML_LINES = ["a: &a [x,x]", "b: !!python/object:os.system x", "c: 2024-13-45", "d: !!bool x", "<<: 3", "? [a]\n: b"]
YAML_LINES += ["e: 0x" + "f" * 5000, "\tf: 1", "--- {}", "%YAML 9.9", "g: *nothing", "h: !!binary '*'", "i: {[]: 1}"]
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def junk(rng: Random) -> Any:
    return rng.choice(rng.choice([NUMBERS, TEXTS, OTHERS]))


def places(value: Any, found: list | None = None) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value within a JSON value."""
    found = [] if found is None else found
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found.append((value, key))
        places(inner, found)
    return found


def changed_value(rng: Random, value: Any) -> Any:
    """Return a value near `value`, or junk."""
    if rng.random() < 0.4:
        return junk(rng)
    if isinstance(value, bool) or value is None:
        return rng.choice([not value, 1, "true", None])
    if isinstance(value, int | float):
        return rng.choice([value + 1, value - 1, -value, value * 2, value * 10**6, str(value), float(value), [value]])
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return rng.choice([value[:at] + rng.choice(TEXTS) + value[at:], value[:at], value + value, [value], at])
    if isinstance(value, list):
        return rng.choice([value + value, value[:-1], value[::-1], value + [junk(rng)], dict(enumerate(value))])
    return rng.choice([[value], list(value), str(value)])


def change_tree(rng: Random, value: Any) -> tuple[Any, str]:
    """Return a JSON value with one to three changes: of values, keys, and members that are missing or too many."""
    said = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = places(value)
        if not found or rng.random() < 0.02:
            value = junk(rng)
            said.append(f"all = {value!r:.40}")
            continue
        container, key = rng.choice(found)
        how = rng.choice(["change", "change", "change", "remove", "rename", "add", "swap"])
        if how == "remove":
            del container[key]
        elif how == "rename" and isinstance(container, dict):
            container[rng.choice(TEXTS)] = container.pop(key)
        elif how == "add":
            extra = junk(rng)
            container.insert(0, extra) if isinstance(container, list) else container.setdefault("extra", extra)
        elif how == "swap":
            other, where = rng.choice(found)
            with contextlib.suppress(KeyError, IndexError):
                if not inside_of(container[key], other) and not inside_of(other[where], container):
                    container[key], other[where] = other[where], container[key]
        else:
            container[key] = changed_value(rng, container[key])
            how = f"= {container[key]!r:.40}"
        said.append(f"{key} {how}")
    return value, ", ".join(said)


def inside_of(value: Any, container: Any) -> bool:
    return value is container or any(inner is container for c, k in places(value) for inner in [c[k]])


def json_text(rng: Random, value: Any) -> bytes:
    """Return a JSON text: at times with a repeated key, another layout or another encoding."""
    text = json.dumps(value, indent=rng.choice([None, 1]), ensure_ascii=True)
    for marker, literal in LITERALS.items():
        text = text.replace(marker, literal)
    keys = list(re.finditer(r'"[^"\\]{1,40}": ', text[:100_000]))
    if keys and rng.random() < 0.08:
        at = rng.choice(keys)
        text = text[: at.start()] + at.group() + json.dumps(rng.choice(NUMBERS[:9])) + ", " + text[at.start() :]
    encoding = rng.choice(["utf-8"] * 30 + ["utf-8-sig", "utf-16", "utf-32"])
    return text.encode(encoding, "surrogatepass")


def change_json(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Change the JSON value of a file. What is not JSON has its bytes changed."""
    try:
        value, said = change_tree(rng, json.loads(content))
        return json_text(rng, value), said
    except (ValueError, RecursionError):
        return change_bytes(rng, content)


def change_json_lines(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Change one line of a JSONL file, or the lines themselves."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    how = rng.choice(["change", "change", "change", "repeat", "remove", "blank", "join"])
    if how == "change":
        lines[at], how = change_json(rng, lines[at])
    elif how == "repeat":
        lines[at:at] = [lines[at]] * rng.choice([1, 3, 200])
    elif how == "join":
        return b" ".join(lines), "lines joined"
    else:
        lines[at : at + 1] = [b"  "] if how == "blank" else []
    return b"\n".join(lines), f"line {at + 1}: {how}"


def change_yaml(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Change the values of a YAML file, or add a line that only YAML can have."""
    if rng.random() < 0.25:
        line = rng.choice([*YAML_LINES, BOMB])
        lines = content.decode(errors="replace").split("\n")
        lines.insert(rng.randrange(len(lines)), line)
        return "\n".join(lines).encode(), f"added {line[:30]!r}"
    value, said = change_tree(rng, yaml.safe_load(content))
    if rng.random() < 0.5:
        return json_text(rng, value), said  # JSON is YAML
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass"), said
    except yaml.YAMLError:
        return json_text(rng, value), said


def change_bytes(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Change one to five spots of a file: flip bits, overwrite, zero, remove, repeat, insert, cut or extend."""
    data, said = bytearray(content), []
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        span = slice(at, at + rng.choice([1, 2, 4, 8, 40, 2000]))
        how = rng.choice(["flip", "flip", "overwrite", "zero", "remove", "repeat", "insert", "cut", "extend", "empty"])
        if how == "flip" and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif how == "overwrite":
            data[span] = rng.randbytes(len(data[span]))
        elif how == "zero":
            data[span] = bytes(len(data[span]))
        elif how == "remove":
            del data[span]
        elif how == "repeat":
            data[at:at] = data[span] * rng.choice([1, 1, 1000])
        elif how == "insert":
            data[at:at] = rng.choice(
                [b"\xff", b"\x00", b"\xed\xa0\x80", b"\r\n", b"{", b'"', b",", b"\xef\xbb\xbf", b"9" * 50]
            )
        elif how == "cut":
            del data[at:]
        elif how == "extend":
            data += rng.choice([b"\n", b"\x00" * 1000, b"junk", rng.randbytes(100)])
        elif rng.random() < 0.2:
            data.clear()
        said.append(f"{how} at {at}")
    return bytes(data), ", ".join(said)


def change_weights(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Change the header of a safetensors file, its length, or the numbers after it."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], bytearray(content[8 + length :])
    how = rng.choice(["header", "header", "header", "length", "numbers", "numbers", "bytes"])
    if how == "bytes":
        return change_bytes(rng, content)
    if how == "length":
        length = rng.choice([0, 1, length - 1, length + 1, len(content), 10**8, 2**63, 2**64 - 1])
        return struct.pack("<Q", length) + header + bytes(body), f"header length {length}"
    if how == "numbers":
        number = rng.choice([float("nan"), float("inf"), -float("inf"), 3e38, 0.0, 1e-45])
        for _ in range(rng.choice([1, 1000])):
            at = rng.randrange(len(body) // 4) * 4
            body[at : at + 4] = struct.pack("<f", number)
        return struct.pack("<Q", length) + header + bytes(body), f"numbers {number}"
    header, how = change_json(rng, header)
    return struct.pack("<Q", len(header)) + header + bytes(body), how


def change_table(rng: Random, path: Path) -> str:
    """Change the rows, columns or values of a Parquet file, and how it is written."""
    table = pq.read_table(path)
    sizes = [pq.ParquetFile(path).metadata.row_group(i).num_rows for i in range(pq.ParquetFile(path).num_row_groups)]
    how = rng.choice([_cell, _cell, _cell, _cell, _cell, _rows, _columns, _type, _bomb])
    with contextlib.suppress(pa.ArrowException):
        table, said = how(rng, table)
        options: dict[str, Any] = {"compression": rng.choice(["none", "zstd", "snappy", "gzip"])}
        options |= {"use_dictionary": rng.choice([False, True]) or how is _bomb}
        options |= {"row_group_size": 10**6 if how is _bomb else rng.choice([max([1, *sizes])] * 4 + [1, 2, 10**6])}
        pq.write_table(table, path, write_page_checksum=rng.random() < 0.9, **options)
        return said
    return "nothing"


def _cell(rng: Random, table: pa.Table) -> tuple[pa.Table, str]:
    """Change a value, within its column's type where that is possible."""
    field = rng.choice([*table.schema])
    column = table.column(field.name).to_pylist()
    if not column:
        return table, "no rows"
    at = rng.randrange(len(column))
    value = column[at]
    if isinstance(value, list) and value and rng.random() < 0.6:
        value = list(value)
        value[rng.randrange(len(value))] = _near(rng, value[0])
    elif isinstance(value, list):
        value = rng.choice([value + value[:1], value[:-1], value[::-1], [], value * 1000])
    elif isinstance(value, bytes):
        value = change_bytes(rng, value)[0]
    else:
        value = _near(rng, value)
    column[at] = value
    field = field.with_nullable(value is None or field.nullable)
    array = pa.array(column, field.type, from_pandas=False)
    place = table.schema.get_field_index(field.name)
    return table.set_column(place, field, array), f"{field.name}[{at}] = {value!r:.40}"


def _near(rng: Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -1, 0, 32, 2**31 - 1, -(2**31), value * 2])
    if isinstance(value, float):
        return rng.choice([value + 1, -1.0, 0.0, float("nan"), float("inf"), 1e308, value / 3])
    return rng.choice([*(text for text in TEXTS if "\ud800" not in text), None]) if isinstance(value, str) else value


def _rows(rng: Random, table: pa.Table) -> tuple[pa.Table, str]:
    order = list(range(table.num_rows))
    how = rng.choice(["none", "repeat", "shuffle", "first"])
    if how == "shuffle":
        rng.shuffle(order)
    chosen = {"none": [], "repeat": order * rng.choice([2, 500]), "first": order[:1]}.get(how, order)
    return table.take(pa.array(chosen, pa.int64())), f"rows: {how}"


def _columns(rng: Random, table: pa.Table) -> tuple[pa.Table, str]:
    name = rng.choice(table.column_names)
    how = rng.choice(["drop", "rename", "repeat", "reverse"])
    if how == "drop":
        return table.drop_columns([name]), f"column {name}: dropped"
    if how == "rename":
        return table.rename_columns([other + "x" * (other == name) for other in table.column_names]), f"{name}: renamed"
    if how == "repeat":
        return table.append_column(name, table.column(name)), f"{name}: twice"
    return table.select(table.column_names[::-1]), "columns reversed"


def _type(rng: Random, table: pa.Table) -> tuple[pa.Table, str]:
    field = rng.choice([*table.schema])
    kind = rng.choice([pa.int64(), pa.float32(), pa.string(), pa.large_string(), pa.binary(), pa.null(), pa.int8()])
    if pa.types.is_list(field.type):
        kind = rng.choice([pa.list_(kind), pa.large_list(field.type.value_type)])
    try:
        array = table.column(field.name).cast(kind)
    except pa.ArrowException:
        array = pa.nulls(table.num_rows, kind)
    place = table.schema.get_field_index(field.name)
    return table.set_column(place, pa.field(field.name, kind), array), f"{field.name}: {kind}"


def _bomb(rng: Random, table: pa.Table) -> tuple[pa.Table, str]:
    """Make a small file whose columns are large: one long text, repeated by a dictionary."""
    rows = rng.choice([100, 20_000, 100_000])
    texts = [name for name in table.column_names if table.schema.field(name).type in (pa.string(), pa.binary())]
    name = rng.choice(texts)
    table = table.take(pa.array(np.zeros(rows if table.num_rows else 0, np.int64)))
    long = pa.array(["x" * 100_000], pa.string()).cast(table.schema.field(name).type)
    array = pa.DictionaryArray.from_arrays(pa.array(np.zeros(table.num_rows, np.int32)), long)
    place = table.schema.get_field_index(name)
    return table.set_column(place, pa.field(name, array.type), array), f"{rows} rows of 100,000 letters in {name}"


def change_entry(rng: Random, path: Path, root: Path) -> str:
    """Change what an entry of a folder is: missing, a link, a folder, a FIFO, very large; or add entries beside it.

    `root` holds `canaries/`: files that nothing may read or change.
    """
    if rng.random() < 0.12:
        extra = path.parent / rng.choice(["extra.json", "part-00009.json", "a\nb", "\x1b[2J", "[bold]", "step-000009"])
        if extra.exists():
            return "nothing"
        extra.mkdir() if rng.random() < 0.5 else extra.write_bytes(b"{}")
        return f"added {extra.name!r}"
    how = rng.choice(
        ["missing", "folder", "fifo", "secret", "victim", "loop", "dangling", "zero", "large", "other", "up"]
    )
    if how == "large" and rng.random() < 0.8:
        how = "missing"
    if how == "large":
        os.truncate(path, 2_200_000_000)
        return "extended with zeros to 2.2 GB"
    if how == "up" and path.parent.name == "run":
        how = "missing"  # a user may keep a run on another disk: commands write where such a link leads
    if how == "up":
        whole, target = path.parent, root / "canaries" / "folder"
        shutil.rmtree(whole)
        whole.symlink_to(target)
        return f"the folder {whole.name} is a symbolic link"
    if how == "other":
        others = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
        if others:
            shutil.copyfile(rng.choice(others), path)
        return "content of another file"
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how != "missing":
        targets = {"secret": root / "canaries/secret.txt", "victim": root / "canaries/victim.json", "loop": path}
        targets |= {"dangling": root / "canaries/new.txt", "zero": Path("/dev/zero")}
        path.symlink_to(targets[how])
    return how


Change = Callable[[Random, bytes], tuple[bytes, str]]
BY_SUFFIX: dict[str, Change] = {
    ".json": change_json,
    ".jsonl": change_json_lines,
    ".yaml": change_yaml,
    ".safetensors": change_weights,
}


def mutate(rng: Random, path: Path, root: Path) -> str:
    """Change a file in one random way, and say how."""
    kind = rng.choices(["values", "bytes", "entry"], [5, 3, 1])[0]
    if kind == "entry":
        return change_entry(rng, path, root)
    if kind == "values" and path.suffix == ".parquet":
        return change_table(rng, path)
    change = BY_SUFFIX.get(path.suffix, change_bytes) if kind == "values" else change_bytes
    content, said = change(rng, path.read_bytes())
    path.write_bytes(content.replace(b"@root@", os.fsencode(root)))
    return said
