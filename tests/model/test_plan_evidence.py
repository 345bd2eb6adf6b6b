"""Reports of GPUs: profiles, ops and links, in any order, and what is none."""

import json
from types import SimpleNamespace

import pytest
from plan_samples import report_of

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import GPUS
from livetalk_kernels.runtime.mesh import Grid, Mesh
from livetalk_model.config import get_preset
from livetalk_model.plan.evidence import gpu_evidence
from livetalk_model.plan.fit import public_shares
from livetalk_model.plan.forecast import Job, forecast
from livetalk_model.plan.layout import Layout
from livetalk_model.plan.machine import GpuMachine, Shares
from livetalk_model.plan.recorded import Observed, read_recorded
from livetalk_model.plan.work import Work

SHARES = Shares(matmul=0.7, attention=0.6, convolution=0.4, memory=0.5, link=0.6)


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def test_a_profile_of_a_gpu_gives_its_shares(tmp_path):
    layout = Layout(mesh=Mesh(ulysses=8, ring=1), grid=Grid(rows=4, columns=2))
    job = Job.of(get_preset("14b"), (768, 448))
    truth = GpuMachine(gpu=GPUS["h200"], shares=SHARES)
    file = write(
        tmp_path / "h200.json",
        report_of(job, layout, truth, gpu="NVIDIA H200"),
    )
    evidence = gpu_evidence(read_recorded([file]), GPUS["h800"], public_shares())
    assert set(evidence.measured) == {"matmul", "attention", "convolution", "memory", "link"}
    assert "H200" in evidence.measured["matmul"]
    for name, value in SHARES.as_dict().items():
        assert evidence.shares.as_dict()[name] == pytest.approx(value, rel=0.1), name
    (report,) = (Observed.of(entry) for entry in read_recorded([file]))
    found = GpuMachine(gpu=GPUS["h200"], shares=evidence.shares)
    assert forecast(job, layout, found).chunk == pytest.approx(report.chunk, rel=0.03)


def bench_file(path, gpu="NVIDIA H200", device="cuda"):
    def case(op, dims, flops, size, p50, **given):
        row = {"backend": "x", "approximate": False, "time": {"p50": p50}}
        wrong = {"backend": "y", "approximate": True, "time": {"p50": p50 / 9}}
        return {
            "op": op, "case": "c", "dims": dims, "dtype": "bfloat16", "flops": flops,
            "bytes": size, "bandwidth": 4e12, "rate": 700e12, "bound": "memory",
            "backends": [row, wrong],
        } | given  # fmt: skip

    sizes = {"B": 1, "L": 12096, "S": 12096, "H": 40, "d": 128}
    flops = 4 * 40 * 12096**2 * 128
    return write(
        path,
        {
            "machine": {"gpu": gpu and {"name": gpu}},
            "settings": {"device": device},
            "means": [],
            "cases": [
                case("chunk_attention", sizes, flops, 1e8, flops / 500e12, bound="compute"),
                case("add_norm", {}, 0, 1e9, 1e9 / 2.4e12),
                case("fp8_gemm", {}, 1e12, 1e7, 1e-3, bound="compute", rate=1200e12),
            ],
        },
    )


def test_ops_and_links(tmp_path):
    bench = bench_file(tmp_path / "ops.json")
    link = {"both_ways": {"gb_per_s": 300.0}}
    comm = write(
        tmp_path / "comm.json",
        {
            "machine": {"gpu": {"name": "NVIDIA H200"}},
            "settings": {"device": "cuda"},
            "link": link,
            "patterns": [{"kind": "all_to_all", "gb_per_s": 270.0}, {"kind": "ring"}],
        },
    )
    start = public_shares()
    evidence = gpu_evidence(read_recorded([bench, comm]), GPUS["h800"], start)
    shares = evidence.shares
    assert shares.memory == pytest.approx(2.4 / 4.8)
    assert shares.link == pytest.approx(270 / 450)
    assert shares.attention == pytest.approx(500 / 650, rel=0.02)
    assert (shares.matmul, shares.convolution) == (start.matmul, start.convolution)
    assert evidence.figures["matmul"].value == pytest.approx(700e12)
    assert evidence.figures["matmul_fp8"].value == pytest.approx(1200e12)
    assert "ops.json" in evidence.figures["matmul"].source


def test_ops_of_the_script_that_needs_no_package(tmp_path):
    """``benchmarks/ops_all.py`` writes the same rows, without means."""
    bench = bench_file(tmp_path / "bench.json")
    report = json.loads(bench.read_text())
    del report["means"]
    bare = write(tmp_path / "bare.json", report)
    with pytest.raises(UserError, match=r"bare\.json.*ops_all"):
        read_recorded([bare])
    ops = write(
        tmp_path / "ops.json",
        report
        | {
            "schema": "livetalk/ops/1",
            "command": "python benchmarks/ops_all.py --json ops.json",
            "settings": {"device": "cuda:0", "dtype": "bfloat16", "compile": True},
            "skipped": [{"op": "add_norm", "case": "14b", "reason": "no time left"}],
            "failed": [],
            "complete": True,
        },
    )
    ours, theirs = (
        gpu_evidence(read_recorded([file]), GPUS["h800"], SHARES) for file in (ops, bench)
    )
    assert ours.shares == theirs.shares != SHARES
    today = write(tmp_path / "today.json", report | {"schema": "livetalk/bench/2", "means": []})
    assert gpu_evidence(read_recorded([today]), GPUS["h800"], SHARES).shares == theirs.shares
    newer = write(tmp_path / "newer.json", report | {"schema": "livetalk/bench/9"})
    with pytest.raises(UserError, match=r"newer\.json.*another version.*bench/9.*record it again"):
        read_recorded([newer])
    assert set(ours.measured) == set(theirs.measured) == {"attention", "memory"}
    assert ours.figures["matmul"].value == theirs.figures["matmul"].value


def test_a_convolution_s_share_is_of_the_figure_it_is_multiplied_by(tmp_path):
    file = bench_file(tmp_path / "ops.json")  # large products reach 700 TFLOP/s
    report = json.loads(file.read_text())
    conv = report["cases"][0] | {"op": "causal_conv3d", "dims": {}, "flops": 1e12}
    conv["backends"] = [{"backend": "x", "time": {"p50": 1e12 / 280e12}}]
    report["cases"] = [conv, *report["cases"]]
    write(file, report)
    found = gpu_evidence(read_recorded([file]), GPUS["h200"], SHARES)
    machine = GpuMachine(gpu=GPUS["h200"], shares=found.shares, measured=found.figures)
    assert machine.seconds(Work(conv_flops=280e12)) == pytest.approx(1)


SMALLER = Shares(matmul=0.5, attention=0.8, convolution=0.3, memory=0.7, link=0.5)


def profiles(tmp_path):
    """Of two GPUs, whose shares differ."""
    job = Job.of(get_preset("14b"), (768, 448))
    layout = Layout(mesh=Mesh(ulysses=8, ring=1), grid=Grid(rows=8, columns=1))
    for name, shares in (("h200", SHARES), ("h100", SMALLER)):
        truth = GpuMachine(gpu=GPUS[name], shares=shares)
        (tmp_path / name).mkdir()
        file = tmp_path / name / "report.json"
        yield write(file, report_of(job, layout, truth, gpu=f"NVIDIA {name.upper()}"))


def test_several_profiles_are_fitted_together(tmp_path):
    files = list(profiles(tmp_path))
    one, other = (
        gpu_evidence(read_recorded(order), GPUS["h800"], public_shares())
        for order in (files, files[::-1])
    )
    assert one.shares.as_dict() == pytest.approx(other.shares.as_dict(), rel=1e-6)
    assert one.measured == other.measured
    assert one.measured["link"] == "h100/report.json (H100 SXM 80 GB), " + (
        "h200/report.json (H200 SXM 141 GB)"
    )
    for name in ("matmul", "attention", "convolution", "memory"):  # a link's waits hide elsewhere
        value = getattr(one.shares, name)
        low, high = sorted((getattr(SHARES, name), getattr(SMALLER, name)))
        assert 1.02 * low < value < high / 1.02, name


def test_a_profile_together_with_measured_ops(tmp_path):
    """What ops reach replaces the table, also where the profile's shares are fitted."""
    file, _ = profiles(tmp_path)
    bench = bench_file(tmp_path / "ops.json")
    one, other = (
        gpu_evidence(read_recorded(order), GPUS["h200"], public_shares())
        for order in ([file, bench], [bench, file])
    )
    assert one.shares.as_dict() == pytest.approx(other.shares.as_dict(), rel=1e-6)
    assert "report.json" in one.measured["memory"] and "ops.json" in one.figures["matmul"].source
    (report,) = (Observed.of(entry) for entry in read_recorded([file]))
    machine = GpuMachine(gpu=GPUS["h200"], shares=one.shares, measured=one.figures)
    assert forecast(report.job, report.layout, machine).chunk == pytest.approx(
        report.chunk, rel=0.03
    )


@pytest.mark.parametrize(
    ("gpu", "device", "message"),
    [
        (None, "cpu", "a CPU"),
        ("NVIDIA GeForce RTX 3090", "cuda", "RTX 3090"),
        ("NVIDIA H100 PCIe", "cuda", "H100 PCIe.*H100 SXM 80 GB"),
    ],
)
def test_files_of_another_kind_of_machine(tmp_path, gpu, device, message):
    file = bench_file(tmp_path / "ops.json", gpu=gpu, device=device)
    with pytest.raises(UserError, match=rf"ops\.json.*{message}"):
        gpu_evidence(read_recorded([file]), GPUS["h800"], public_shares())


def test_no_files_change_nothing():
    evidence = gpu_evidence([], GPUS["h800"], SHARES)
    assert vars(evidence) == vars(SimpleNamespace(shares=SHARES, measured={}, figures={}))
