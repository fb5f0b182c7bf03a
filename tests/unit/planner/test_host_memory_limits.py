"""The memory of a host under control groups, from files that the tests write."""

import pytest

from ma2mba.planner.memory import GIB, Host

V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


@pytest.fixture
def host(tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {2**33} kB\nMemAvailable:   {2**32} kB\nHugetlb: 0 kB\n")
    return Host(tmp_path / "proc", tmp_path / "groups")


def belongs_to(host, *lines):
    (host.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))


def group(folder, names, limit, used=0, stat=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(stat)


def test_the_smallest_limit_of_all_parent_groups_counts(host):
    """A SLURM job: the job has a limit, its step has none."""
    belongs_to(host, "0::/system.slice/job_7/step_0")
    group(host.groups / "system.slice" / "job_7" / "step_0", V2, "max", GIB)
    group(host.groups / "system.slice" / "job_7", V2, 2 * GIB, GIB, f"anon 5\ninactive_file {GIB // 4}\n")
    group(host.groups / "system.slice", V2, 3 * GIB, 2 * GIB + GIB // 2)
    assert host.memory() == 2 * GIB
    assert host.free() == GIB // 2
    group(host.groups / "system.slice", V2, 3 * GIB)
    assert host.free() == GIB + GIB // 4


@pytest.mark.parametrize("seen", ["docker/abc", ""], ids=["by its name", "as the root"])
def test_control_groups_version_1(host, seen):
    """A container may see its own group as the root."""
    belongs_to(host, "5:cpu:/docker/abc", "4:memory:/docker/abc", "0::/")
    group(host.groups / "memory" / seen, V1, GIB, GIB // 2, f"total_inactive_file {GIB // 8}\n")
    group(host.groups / "cpu", V1, GIB // 16)
    assert host.memory() == GIB
    assert host.free() == GIB // 2 + GIB // 8


def test_without_groups_the_host_is_the_limit(host):
    assert host.free() == 2**42
    assert host.memory() >= Host().memory()
    belongs_to(host, "0::/")
    group(host.groups, V2, 5, 7)
    assert host.free() == 0


def test_this_machine():
    assert 0 < Host().free() <= Host().memory()
