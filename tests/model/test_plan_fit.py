"""Constants: the solver, published figures each left out of its own fit, recorded reports."""

import json
from dataclasses import replace

import numpy as np
import pytest
from plan_samples import RATES, SIZES, write_cpu_reports

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import GPUS
from livetalk_model.plan.figures import CHUNK, STEP, figures
from livetalk_model.plan.fit import (
    GOAL,
    PRIORS,
    fit_shares,
    least_squares,
    leave_one_out,
    public_shares,
)
from livetalk_model.plan.machine import GpuMachine, Shares
from livetalk_model.plan.recorded import (
    check_one_setting,
    cpu_reports,
    fit_cpu,
    is_profile,
    leave_sizes_out,
    read_recorded,
)

# The solver -------------------------------------------------------------------------------


def test_least_squares_finds_a_curve():
    x = np.linspace(0, 2, 20)
    found = least_squares(lambda p: p[0] * np.exp(-p[1] * x) - 3 * np.exp(-0.7 * x), np.ones(2))
    assert found == pytest.approx([3, 0.7], abs=1e-5)


def test_a_prior_decides_where_nothing_else_speaks():
    found = fit_shares([]).as_dict()
    assert found == pytest.approx({name: prior.value for name, prior in PRIORS.items()})


def test_shares_are_found_again():
    truth = Shares(matmul=0.7, attention=0.8, convolution=0.2, memory=0.9, link=0.6)
    rows = [
        replace(row, seconds=row.predict(GpuMachine(gpu=GPUS[row.gpu], shares=truth)))
        for row in figures()
    ]
    loose = {name: replace(prior, spread=10.0) for name, prior in PRIORS.items()}
    assert fit_shares(rows, loose).as_dict() == pytest.approx(truth.as_dict(), rel=0.02)


# Published figures ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checks():
    return leave_one_out(figures())


def test_the_figures_are_those_of_the_issue():
    rows = {row.name: row.seconds for row in figures()}
    for seconds in (0.875, 0.336, 0.249, 0.022, 0.011, 0.702, 0.567, 0.366, 5.18, 0.75):
        assert seconds in rows.values()
    assert len(rows) == 11 > 2 * len(PRIORS)
    for row in figures():
        assert row.source and row.settings and row.doubt
        assert row.job.steps == 4


def test_every_held_out_figure_is_within_the_goal(checks):
    """At present all are; one that is not would have to be explained, and this changed."""
    assert {check.figure.name: check.error for check in checks if not check.within} == {}
    assert GOAL == 0.2
    mean = np.mean([abs(check.error) for check in checks])
    assert mean < 0.1


def test_a_row_is_left_out_of_its_own_fit(checks):
    """However it is changed, its own prediction stays; that of others moves."""
    rows = list(figures())
    index = next(i for i, row in enumerate(rows) if row.name == "8xA100 step, published")
    rows[index] = replace(rows[index], seconds=5 * rows[index].seconds)
    changed = leave_one_out(rows)
    for before, after in zip(checks, changed, strict=True):
        if before.figure.name == rows[index].name:
            assert after.predicted == pytest.approx(before.predicted, rel=1e-12)
            assert after.shares == before.shares
        else:
            assert after.shares != before.shares


def test_a_chunk_and_its_steps_are_left_out_together(checks):
    rows = list(figures())
    index = next(i for i, row in enumerate(rows) if row.gpu == "h20" and row.what == CHUNK)
    step = next(row for row in rows if row.gpu == "h20" and row.what == STEP)
    assert rows[index].overlaps(step) and step.overlaps(rows[index])
    assert not rows[index].overlaps(rows[0])
    rows[index] = replace(rows[index], seconds=9.0)
    (after,) = (c for c in leave_one_out([*rows]) if c.figure is step)
    (before,) = (c for c in checks if c.figure.name == step.name)
    assert after.predicted == pytest.approx(before.predicted, rel=1e-12)


def test_the_shares_are_shares():
    for value in public_shares().as_dict().values():
        assert 0.1 < value < 1.05


# Reports of a CPU -------------------------------------------------------------------------


@pytest.fixture
def cpu_files(tmp_path):
    return write_cpu_reports(tmp_path)


def test_rates_of_a_cpu_are_found_again(cpu_files):
    (cpu_files / "other.json").write_text('{"something": "else"}')
    reports = cpu_reports(read_recorded([cpu_files]))
    assert {report.job.size for report in reports} == set(SIZES)
    found = fit_cpu(reports).rates.as_dict()
    for name, value in RATES.as_dict().items():
        loose = 1.0 if name == "call" else 0.2  # calls take next to nothing at this size
        assert found[name] == pytest.approx(value, rel=loose), name


def test_what_no_forecast_knows_is_left_out(cpu_files):
    (report,) = cpu_reports(read_recorded([cpu_files / "mid_96x96" / "report.json"]))
    assert ("write", "") not in report.times
    assert report.chunk == pytest.approx(
        sum(seconds for (_, part), seconds in report.times.items() if not part)
    )


def test_a_held_out_size(cpu_files):
    checks = leave_sizes_out(cpu_reports(read_recorded([cpu_files])))
    assert sorted(check.size for check in checks) == sorted(SIZES)
    for check in checks:
        assert check.others == 3 and check.within
        assert abs(check.error) < 0.1
        assert set(check.stages) >= {"denoise", "decode", "encode", "audio encoder"}


def test_a_size_is_left_out_of_its_own_fit(cpu_files):
    before = leave_sizes_out(cpu_reports(read_recorded([cpu_files])))
    file = cpu_files / "mid_128x128" / "report.json"
    report = json.loads(file.read_text())
    for row in report["summary"]["stages"]:
        row["p50"] *= 4
    report["summary"]["chunk"]["p50"] *= 4
    file.write_text(json.dumps(report))
    after = leave_sizes_out(cpu_reports(read_recorded([cpu_files])))
    for one, other in zip(before, after, strict=True):
        if one.size == (128, 128):
            assert other.predicted == pytest.approx(one.predicted, rel=1e-9)
            assert not other.within
        else:
            assert other.predicted != pytest.approx(one.predicted, rel=1e-3)


def test_other_settings_are_no_evidence(cpu_files):
    file = cpu_files / "mid_96x96" / "report.json"
    report = json.loads(file.read_text())
    report["settings"]["threads"] = 1
    file.write_text(json.dumps(report))
    checks = leave_sizes_out(cpu_reports(read_recorded([cpu_files])))
    assert {check.size for check in checks} == {*SIZES} - {(96, 96)}
    assert all(check.others == 2 for check in checks)


def change(file, key, value):
    report = json.loads(file.read_text())
    report["settings"][key] = value
    file.write_text(json.dumps(report))


def test_one_setting_at_a_time(cpu_files):
    check_one_setting(cpu_reports(read_recorded([cpu_files])))
    change(cpu_files / "mid_96x96" / "report.json", "threads", 1)
    with pytest.raises(UserError) as refusal:
        check_one_setting(cpu_reports(read_recorded([cpu_files])))
    message = str(refusal.value)
    assert "threads: 2 (mid_128x128/report.json), 1 (mid_96x96/report.json)" in message
    assert "dtype" not in message and "more" not in message


def test_fused_biases_are_read_off_the_command(cpu_files):
    file = cpu_files / "mid_96x96" / "report.json"
    report = json.loads(file.read_text())
    report["command"].append("--fuse")  # an option may be shortened
    file.write_text(json.dumps(report))
    reports = cpu_reports(read_recorded([cpu_files]))
    assert [r.job.schedule.fuse_bias for r in reports] == [r.job.size == (96, 96) for r in reports]
    with pytest.raises(UserError, match=r"--fuse-bias: False \(.*\), True \(mid_96x96"):
        check_one_setting(reports)


def test_backends_are_of_the_setting(cpu_files):
    backends = {model: dict.fromkeys("abcd", "reference") for model in ("dit", "vae")}
    change(cpu_files / "mid_96x160" / "report.json", "backends", backends)
    with pytest.raises(UserError, match=r"dit add_norm: cpu \(.*\), None .*; and 6 more"):
        check_one_setting(cpu_reports(read_recorded([cpu_files])))
    assert len(leave_sizes_out(cpu_reports(read_recorded([cpu_files])))) == 3


def test_files_that_are_no_report(tmp_path):
    for text in ("{}", '{"schema": "livetalk/profile/9"}', "[1]", "no json"):
        file = tmp_path / "x.json"
        file.write_text(text)
        with pytest.raises(UserError, match=r"x\.json"):
            read_recorded([file])
        assert not is_profile(file)
    with pytest.raises(UserError, match=r"absent\.json"):
        read_recorded([tmp_path / "absent.json"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no report"):
        read_recorded([empty])


def test_a_garbled_report_is_named(cpu_files):
    file = cpu_files / "mid_96x96" / "report.json"
    report = json.loads(file.read_text())
    del report["settings"]["steps"]
    file.write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"report\.json.*steps"):
        cpu_reports(read_recorded([file]))
    report["settings"] |= {"steps": 4, "model": "their_own"}
    file.write_text(json.dumps(report))
    with pytest.raises(UserError, match="their_own"):
        cpu_reports(read_recorded([file]))
