"""What of this machine may be used: quotas and limits of faked control groups, and who obeys."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from livetalk_kernels import machine as machine_module
from livetalk_kernels.bench import cases as cases_module
from livetalk_kernels.bench import roofline as roofline_module
from livetalk_kernels.bench.cases import select_cases, too_large
from livetalk_kernels.cgroup import CgroupLimits, cgroup_limits
from livetalk_kernels.machine import Cpus, Memory, cpus, machine, memory
from livetalk_model import environment as environment_module
from livetalk_model.cli.common import torch_threads, usable_threads
from livetalk_model.cli.main import main

CPU = torch.device("cpu")
GIB = 1 << 30
UNLIMITED_V1 = 9223372036854771712
V2 = "31 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"
V1 = (
    "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 30 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "35 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "36 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
CPU_GROUP, MEMORY = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"
FILES = Mapping[str, object]


@pytest.fixture
def fake(tmp_path: Path):
    """A machine of 24 GiB with 16 GiB available, whose groups are as given."""

    def make(mounts: str = "", groups: str = "", files: FILES | None = None) -> Path:
        meminfo = f"MemTotal: {24 << 20} kB\nMemAvailable: {16 << 20} kB\nHugePages_Total: 0\n"
        everything = {
            "proc/self/mountinfo": mounts,
            "proc/self/cgroup": groups,
            "proc/meminfo": meminfo,
            **(files or {}),
        }
        for name, content in everything.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return make


def v1_quota(folder: str, quota: int, period: int = 100_000) -> dict[str, object]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("quota", "affinity", "threads"),
    [
        (0.5, 8, 1),
        (1.0, 8, 1),
        (1.5, 8, 2),
        (2.01, 8, 3),
        (64.0, 8, 8),
        (None, 8, 8),
        (0.001, 8, 1),
    ],
)
def test_threads_are_the_quota_rounded_up_within_the_affinity(quota, affinity, threads):
    assert Cpus(logical=16, affinity=affinity, quota=quota).usable == threads


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("50000 100000", 0.5),
        ("100000 100000", 1.0),
        ("75000 50000", 1.5),
        ("max 100000", None),
        ("", None),
        ("max", None),
        ("0 100000", None),
        ("half of it", None),
    ],
)
def test_version_2_quota(fake, text, quota):
    root = fake(V2, "0::/app", {"sys/fs/cgroup/app/cpu.max": text})
    assert cpus(root).quota == quota
    affinity = len(os.sched_getaffinity(0))
    assert cpus(root).usable == min(affinity, {0.5: 1, 1.0: 1, 1.5: 2}.get(quota, affinity))


@pytest.mark.parametrize(("quota", "found"), [(50_000, 0.5), (150_000, 1.5), (-1, None)])
@pytest.mark.parametrize("mounts", [V1, HYBRID], ids=["v1", "hybrid"])
def test_version_1_quota(fake, mounts, quota, found):
    groups = "12:cpuset:/\n5:cpu,cpuacct:/job:7/a\n1:name=systemd:/init\n0::/init"
    assert cpus(fake(mounts, groups, v1_quota(f"{CPU_GROUP}/job:7/a", quota))).quota == found


NESTED = {
    "the middle": ("max 100000", "50000 100000", "150000 100000"),
    "the outermost": ("50000 100000", "max 100000", "200000 100000"),
    "the own": ("200000 100000", "max 100000", "50000 100000"),
}


@pytest.mark.parametrize("quotas", NESTED.values(), ids=NESTED)
def test_of_nested_groups_the_smallest_counts(fake, quotas):
    folders = ("pod", "pod/box", "pod/box/app")
    files = {f"sys/fs/cgroup/{a}/cpu.max": b for a, b in zip(folders, quotas, strict=True)}
    assert cpus(fake(V2, "0::/pod/box/app", files)).quota == 0.5


# Where the group's files are, by the mount and by what /proc/self/cgroup says.
PLACES = {
    "a namespace of its own": (V2, "0::/", "sys/fs/cgroup"),
    "a process that was moved out of its namespace": (V2, "0::/../other", "sys/fs/cgroup"),
    "the host's path, the container's mount": (
        "33 30 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup ro,cpu\n",
        "5:cpu:/docker/abc",
        "sys/fs/cgroup/cpu",
    ),
    "a group below the container's mount": (
        "33 30 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup ro,cpu\n",
        "5:cpu:/docker/abc/job",
        "sys/fs/cgroup/cpu/job",
    ),
    "a mount from above the namespace": (
        "33 30 0:29 /../.. /sys/fs/cgroup/cpu ro - cgroup cgroup ro,cpu\n",
        "5:cpu:/",
        "sys/fs/cgroup/cpu",
    ),
    "a folder with a blank": (
        "31 24 0:27 / /my\\040groups rw - cgroup2 cgroup rw\n",
        "0::/app",
        "my groups/app",
    ),
    "another group mounted as well": (
        "30 24 0:26 /other /elsewhere rw - cgroup2 cgroup rw\n" + V2,
        "0::/app",
        "sys/fs/cgroup/app",
    ),
    "version 2 alone limits on a hybrid system": (
        HYBRID,
        "5:cpu,cpuacct:/\n0::/app",
        "sys/fs/cgroup/unified/app",
    ),
}


@pytest.mark.parametrize(("mounts", "groups", "folder"), PLACES.values(), ids=PLACES)
def test_the_group_is_found(fake, mounts, groups, folder):
    files = v1_quota(folder, 50_000) | {f"{folder}/cpu.max": "50000 100000"}
    files |= {"elsewhere/cpu.max": "1000 100000"}
    assert cpus(fake(mounts, groups, files)).quota == 0.5


@pytest.mark.parametrize(
    ("mounts", "groups"),
    [("", ""), ("", "0::/app"), (V2, ""), ("nonsense\n", "nonsense"), (V2, "0::/gone/away")],
)
def test_no_groups_no_limits(fake, mounts, groups):
    root = fake(mounts, groups)
    assert cgroup_limits(root) == CgroupLimits()
    assert memory(root) == Memory(total=24 * GIB, limit=None, available=16 * GIB)


def test_no_proc_at_all(tmp_path):
    assert cgroup_limits(tmp_path) == CgroupLimits()
    assert 0 < memory(tmp_path).available <= memory(tmp_path).total


V2_MEMORY = {
    "a limit": ({"memory.max": 2 * GIB, "memory.current": GIB}, 2 * GIB, GIB),
    "file cache is free": (
        {
            "memory.max": 2 * GIB,
            "memory.current": GIB,
            "memory.stat": f"anon 1\nactive_file {GIB // 4}\ninactive_file {GIB // 2}\nfile {GIB}",
        },
        2 * GIB,
        2 * GIB - GIB // 4,
    ),
    "high comes first": (
        {"memory.max": 2 * GIB, "memory.high": GIB, "memory.current": 0},
        GIB,
        GIB,
    ),
    "none": ({"memory.max": "max", "memory.high": "max", "memory.current": GIB}, None, 16 * GIB),
    "beyond the machine": ({"memory.max": 64 * GIB, "memory.current": GIB}, None, 16 * GIB),
    "less is free on the machine": (
        {"memory.max": 20 * GIB, "memory.current": 0},
        20 * GIB,
        16 * GIB,
    ),
    "overdrawn": ({"memory.max": GIB, "memory.current": 2 * GIB}, GIB, 0),
}


@pytest.mark.parametrize(("files", "limit", "available"), V2_MEMORY.values(), ids=V2_MEMORY)
def test_version_2_memory(fake, files, limit, available):
    root = fake(V2, "0::/app", {f"sys/fs/cgroup/app/{name}": x for name, x in files.items()})
    assert memory(root) == Memory(total=24 * GIB, limit=limit, available=available)


def test_version_1_memory_of_nested_groups(fake):
    root = fake(
        V1,
        "4:memory:/pod/app",
        {
            f"{MEMORY}/memory.limit_in_bytes": UNLIMITED_V1,
            f"{MEMORY}/memory.usage_in_bytes": 9 * GIB,
            f"{MEMORY}/pod/memory.limit_in_bytes": 4 * GIB,  # a neighbour holds most of it
            f"{MEMORY}/pod/memory.usage_in_bytes": 3 * GIB + GIB // 2,
            f"{MEMORY}/pod/app/memory.limit_in_bytes": 2 * GIB,
            f"{MEMORY}/pod/app/memory.usage_in_bytes": GIB,
            f"{MEMORY}/pod/app/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 2}",
        },
    )
    assert memory(root) == Memory(total=24 * GIB, limit=2 * GIB, available=GIB // 2)


def limited(fake) -> Path:
    """Half a CPU, and 700 MiB, 100 of them in use."""
    files = {"cpu.max": "50000 100000", "memory.max": 700 << 20, "memory.current": 100 << 20}
    return fake(V2, "0::/", {f"sys/fs/cgroup/{name}": value for name, value in files.items()})


def test_doctor_shows_quota_and_limit(fake, monkeypatch, capsys):
    root = limited(fake)
    for name in ("cpus", "memory"):
        function = getattr(environment_module, name)
        monkeypatch.setattr(environment_module, name, partial(function, root))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["environment"]
    assert found["CPU quota"] == f"0.5 of {os.cpu_count()} CPUs: 1 thread"
    assert found["memory"] == "734.0 MB limit of a 25.8 GB machine, 629.1 MB available"


@pytest.mark.parametrize(("own", "threads"), [(None, 1), ("2", 2)], ids=["quota", "user"])
def test_commands_keep_to_the_quota_unless_told(fake, monkeypatch, capsys, own, threads):
    monkeypatch.setattr(machine_module, "cpus", partial(cpus, limited(fake)))
    if own is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    with torch_threads(2):
        assert main(["doctor", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)["environment"]["torch"]
        assert shown.endswith(f"threads: {threads}")
        assert torch.get_num_threads() == 2
        with usable_threads(), torch_threads(2):  # what --threads does
            assert torch.get_num_threads() == 2


def test_bench_skips_what_the_limit_does_not_hold(fake, monkeypatch):
    small, large = (
        select_cases("rms_norm", CPU, torch.float32, shapes=[shape])[0]
        for shape in ("L=8,D=8", "L=4096,D=4096")
    )
    for module in (cases_module, roofline_module):
        monkeypatch.setattr(module, "memory", partial(memory, limited(fake)))
        monkeypatch.setattr(module, "last_level_cache", lambda: 1 << 20)
    assert "629.1 MB are free" in str(too_large(large))
    assert too_large(small) is None
    monkeypatch.setattr(cases_module, "last_level_cache", lambda: 480 << 20)
    assert "--hot does without" in str(too_large(small))
    assert too_large(small, hot=True) is None


def test_reports_hold_the_limits(fake, monkeypatch):
    root = limited(fake)
    monkeypatch.setattr(machine_module, "cgroup_limits", lambda _=None: cgroup_limits(root))
    found = machine()
    assert (found["cpu_quota"], found["memory_limit_bytes"]) == (0.5, 700 << 20)
