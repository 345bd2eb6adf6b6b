"""``livetalk plan``: what it prints, draws and refuses."""

import gc
import json

import pytest
from cli_tools import refused
from PIL import Image
from plan_samples import write_cpu_reports

from livetalk_model.cli.main import main


@pytest.fixture
def cpu_files(tmp_path):
    return write_cpu_reports(tmp_path)


def shown(capsys, *options: str) -> str:
    assert main(["plan", *options]) == 0
    return capsys.readouterr().out


def narrow(text: str) -> str:
    assert max(map(len, text.splitlines())) <= 80
    return text


SMALL = ("--preset", "small", "--gpu", "h800", "--gpus", "4")


def test_a_node(capsys):
    printed = narrow(shown(capsys, *SMALL, "--size", "768x448"))
    for word in (
        "Forecast, not measured", "untested on a GPU", "4 x H800", "U x R", "2 x 2", "fp8 *",
        "an approximation", "linears", "denoise", "decode", "communication", "(audio encoder)",
        "a step", "data sheet", "measured elsewhere", "fitted to 11 published figures", "assumed",
        "nvlink 200 GB/s",
    ):  # fmt: skip
        assert word in " ".join(printed.split()), word


def test_for_machines(capsys):
    value = json.loads(shown(capsys, *SMALL, "--precision", "fp8", "--ring", "2", "--json"))
    assert value["forecast"] is True
    (plan,) = value["plans"]
    assert (plan["ulysses"], plan["ring"], plan["precision"]) == (2, 2, "fp8")
    assert plan["approximate"] and plan["fits"] and plan["memory"]["total"] > 1e9
    stages = sum(sum(parts.values()) for parts in plan["stages"].values())
    assert plan["chunk"] == pytest.approx(stages + plan["added_by_beside"])
    assert plan["fps"] == pytest.approx(28 / plan["chunk"])
    assert plan["step"] * 4 == pytest.approx(sum(plan["stages"]["denoise"].values()))
    for quantity in value["hardware"].values():
        assert quantity["source"] and quantity["kind"]
    assert set(value["shares"]) == {"matmul", "attention", "convolution", "memory", "link"}
    assert value["parameters"]["text encoder"]["resident"] == 0
    assert value["settings"]["tokens"] == 12096 and value["settings"]["gpus"] == 4


def test_the_garbage_collector_is_paused_meanwhile(capsys):
    searches = []
    gc.callbacks.append(lambda phase, info: searches.append(phase))
    shown(capsys, *SMALL)
    gc.callbacks.pop()
    assert gc.isenabled()
    assert len(searches) < 10  # with it, hundreds


def test_fused_biases(capsys):
    options = [*SMALL, "--size", "768x448", "--precision", "exact"]
    assert "fused biases" in narrow(shown(capsys, *options, "--fuse-bias"))
    values = [
        json.loads(shown(capsys, *options, "--json", *flag)) for flag in ((), ("--fuse-bias",))
    ]
    assert [value["settings"]["fuse_bias"] for value in values] == [False, True]
    plain, fused = (value["plans"][0] for value in values)
    assert fused["stages"]["decode"]["convolutions"] < plain["stages"]["decode"]["convolutions"]
    assert fused["memory"]["weights"]["VAE"] > plain["memory"]["weights"]["VAE"]


def test_several_nodes(capsys):
    printed = narrow(shown(capsys, *SMALL[:-1], "16", "--nodes", "2"))
    assert "16 x H800 SXM 80 GB, 2 nodes" in printed


def test_what_does_not_fit_is_said(capsys):
    printed = narrow(
        shown(capsys, "--gpu", "h800", "--gpus", "1", "--size", "3072x3072", "--precision", "exact")
    )
    assert "!" in printed and "does not fit 80.0 GB" in " ".join(printed.split())


def test_a_gpu_without_fp8(capsys):
    printed = shown(capsys, *SMALL[:2], "--gpu", "a100", "--gpus", "2")
    assert "fp8" not in printed
    code = main(["plan", "--gpu", "a100", "--precision", "fp8"])
    refused(capsys, code, "A100", "exact")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot(tmp_path, capsys, suffix):
    target = tmp_path / f"scaling.{suffix}"
    narrow(shown(capsys, *SMALL, "--nodes", "1", "--plot", str(target)))
    if suffix == "png":
        assert Image.open(target).size[0] > 1000
    else:
        text = target.read_text()
        for word in ("Forecast, not measured", "real time: 25 FPS", "seconds of a chunk"):
            assert word in text or word.replace(" ", "") in text or "<path" in text


def test_a_cpu(capsys, cpu_files):
    options = ["--gpu", "cpu", "--preset", "mid", "--size", "112x144", "--fit", str(cpu_files)]
    printed = narrow(shown(capsys, *options))
    assert "6 rates fitted to 4 reports of AMD EPYC" in printed and "CPU" in printed
    value = json.loads(shown(capsys, *options, "--json"))
    assert len(value["fitted_to"]) == 4 and value["rates"]["linears"] > 0
    (plan,) = value["plans"]
    assert plan["memory"]["assumed"] is None and not plan["beside"]
    assert "audio encoder" in plan["stages"] and "warm decoder" in plan["stages"]


def changed(file, target, **settings):
    """Copy a report with other settings."""
    report = json.loads(file.read_text())
    report["settings"] |= settings
    target.write_text(json.dumps(report))


def test_a_cpu_is_fitted_to_the_wanted_preset(capsys, cpu_files):
    report = cpu_files / "mid_96x96" / "report.json"
    changed(report, cpu_files / "tiny.json", model="tiny")
    options = ["--gpu", "cpu", "--fit", str(cpu_files), "--size", "112x144"]
    for preset, count in (("mid", 4), ("tiny", 1)):
        value = json.loads(shown(capsys, *options, "--preset", preset, "--json"))
        assert len(value["fitted_to"]) == count
    refused(capsys, main(["plan", *options, "--preset", "small"]), "of small", "--preset small")


def test_a_cpu_is_fitted_to_one_setting(capsys, cpu_files):
    report = cpu_files / "mid_96x96" / "report.json"
    changed(report, cpu_files / "one_thread.json", threads=1)
    code = main(["plan", "--gpu", "cpu", "--fit", str(cpu_files)])
    refused(capsys, code, "threads", "one_thread.json", "name those of one")


def test_validate(capsys, cpu_files):
    printed = narrow(shown(capsys, "--validate", "--fit", str(cpu_files)))
    for word in (
        "8xH800 chunk", "875 ms", "8xA100 decode", "8xH20 step, SGLang FP8", "5.18 s",
        "11 of 11 within 20%", "5 fitted constants", "1,686 TFLOP counted", "1,683", "96x160",
        "4 of 4 within 20%", "6 fitted constants", "issue 3", "(assumed)",
    ):  # fmt: skip
        assert word in printed, word
    value = json.loads(shown(capsys, "--validate", "--fit", str(cpu_files), "--json"))
    assert len(value["figures"]) == 11 and value["fitted_constants"] == 5
    assert all(entry["shares_without_it"] for entry in value["figures"])
    assert [size["within"] for size in value["cpu"]["sizes"]] == [True] * 4


def test_what_is_missed_is_explained(capsys, monkeypatch):
    monkeypatch.setattr("livetalk_model.plan.fit.GOAL", 0.05)
    printed = narrow(shown(capsys, "--validate"))
    assert "the report does not say what the sum covers" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("--gpu", "--validate")),
        (("--gpu", "h900"), ("h900", "h800", "b200", "cpu")),
        (("--gpu", "h800", "--gpus", "11"), ("11", "--nodes")),
        (("--gpu", "h800", "--gpus", "8", "--nodes", "3"), ("--nodes 3",)),
        (("--gpu", "h800", "--size", "770x448"), ("770", "16")),
        (("--gpu", "h800", "--ulysses", "3"), ("--ulysses 3", "8 ranks")),
        (("--gpu", "h800", "--vae-grid", "3x2"), ("--vae-grid 3x2",)),
        (("--gpu", "h800", "--vae-grid", "many"), ("--vae-grid many",)),
        (("--gpu", "h800", "--preset", "huge"), ("huge", "14b")),
        (("--gpu", "h800", "--dtype", "fp32"), ("--dtype fp32",)),
        (("--gpu", "h800", "--fit", "absent.json"), ("absent.json",)),
        (("--gpu", "h800", "--plot", "x.pdf"), ("x.pdf", ".png")),
        (("--gpu", "h800", "--plot", "x.png", "--ring", "2"), ("--plot",)),
        (("--gpu", "h800", "--gpus", "16", "--nodes", "4", "--plot", "x.png"), ("--nodes 4",)),
        (("--gpu", "h800", "--gpus", "11", "--nodes", "11", "--plot", "x.png"), ("--nodes 11",)),
        (("--gpu", "cpu"), ("--gpu cpu", "--fit")),
        (("--gpu", "cpu", "--gpus", "2", "--fit", "x"), ("one rank",)),
        (("--gpu", "cpu", "--plot", "x.png", "--fit", "x"), ("--plot",)),
        (("--validate", "--fuse-bias"), ("--fuse-bias", "--validate")),
        (("--validate", "--gpu", "h800"), ("--gpu", "--validate")),
        (("--validate", "--fit", "absent.json"), ("absent.json",)),
    ],
)
def test_bad_input(capsys, options, words):
    refused(capsys, main(["plan", *options]), *words)


def test_a_file_that_is_no_report(capsys, tmp_path):
    file = tmp_path / "facts.json"
    file.write_text('{"dit": {}}')
    refused(capsys, main(["plan", "--gpu", "h800", "--fit", str(file)]), "facts.json", "report")


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        main(["plan", "--help"])
    assert left.value.code == 0
    printed = narrow(capsys.readouterr().out)
    assert "livetalk plan --gpu h800 --gpus 8 --size 768x448 --precision fp8" in printed
