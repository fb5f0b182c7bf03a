"""Names from others stay inside their folder; only regular files of bounded size are read; the umask holds."""

import os

import pytest

from ma2mba.errors import UserError
from ma2mba.files import (
    OutsideFolder,
    atomic_folder,
    atomic_path,
    atomic_write,
    inside,
    read_bounded,
    sha256_file,
    xxh3_file,
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "given"
    (folder / "sub").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "beside").symlink_to("sub")
    (tmp_path / "given-too").mkdir()
    (folder / "twin").symlink_to(tmp_path / "given-too")
    return folder


@pytest.mark.parametrize("name", ["a", "sub/a", "sub/../a", "beside/a", "...", "a b", "é", "-a", "12:30.mp4", "a\\b"])
def test_a_name_inside_is_accepted(folder, name):
    assert inside(folder, name, "list.json") == folder / name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("..", "leads out"),
        ("../a", "leads out"),
        ("sub/../../a", "leads out"),
        ("a\0b", "control"),
        ("a\x1b[2Jb", "control"),
        ("a\nb", "control"),
        ("a" * 5000, "longer than 4,096 letters"),
        ("\ud83d", "Unicode"),
        ("out/a", "symbolic link"),
        ("out", "symbolic link"),
        ("twin/a", "symbolic link"),
        ("beside/../../a", "leads out"),
    ],
)
def test_a_name_that_leads_out_is_refused(folder, name, reason):
    with pytest.raises(OutsideFolder, match=reason) as error:
        inside(folder, name, "list.json")
    assert "list.json" in str(error.value)
    assert str(error.value).isprintable()


def test_a_folder_that_is_itself_a_link_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert inside(tmp_path / "link", "sub/a", "list.json").parent.is_dir()


def test_what_is_not_a_small_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(bytes(11))
    for name in ("fifo", "loop", "large", "missing", "/dev/zero", "/dev/null", "."):
        with pytest.raises(UserError, match=r"^\S+: .*\. \w"):
            read_bounded(tmp_path / name, 10)
    (tmp_path / "large").write_bytes(bytes(10))
    assert read_bounded(tmp_path / "large", 10) == bytes(10)


def test_what_is_written_has_the_permissions_of_the_umask(tmp_path):
    from safetensors.numpy import save_file

    old = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "weights") as temporary:
            save_file({}, temporary)
    finally:
        os.umask(old)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


def test_a_symbolic_link_is_neither_replaced_nor_followed(tmp_path):
    (tmp_path / "victim").write_text("as it was")
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder-link").symlink_to("folder")
    with pytest.raises(UserError, match="symbolic link"), atomic_write(tmp_path / "link") as file:
        file.write("other")
    with pytest.raises(UserError, match="symbolic link"), atomic_folder(tmp_path / "folder-link"):
        pass
    assert (tmp_path / "victim").read_text() == "as it was"
    assert (tmp_path / "link").is_symlink()


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("y" * 255, "\u00fc" * 127):
        with atomic_write(tmp_path / name) as file:
            file.write("x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize("digest", [sha256_file, xxh3_file])
def test_what_never_ends_has_no_checksum(digest, tmp_path):
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a regular file"):
        digest(tmp_path / "zeros")
