"""The tuning file: which choice counts, when it is stale, and how one is measured."""

import dataclasses
import importlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from livetalk_kernels import KernelConfig, UserError, bind_ops
from livetalk_kernels import tuning as tuning_module
from livetalk_kernels.bench import tune
from livetalk_kernels.bench.tune import Call, Outcome, Tuner
from livetalk_kernels.config import find_tuning
from livetalk_kernels.dispatch import resolve
from livetalk_kernels.ops import add_norm as contract
from livetalk_kernels.registry import load_op
from livetalk_kernels.spec import Case
from livetalk_kernels.tuning import Choice, MachineEntry, Tuning, TuningKey

CPU, FP32 = torch.device("cpu"), torch.float32
DropIn = Callable[[str, str], None]

FAST = """
import torch
{flags}


def supports(case):
    return None


def run(x, y, gate, weight, bias, *, eps=1e-6):
    {work}
    x_new = x + (y if gate is None else y * gate)
    h = torch.nn.functional.layer_norm(x_new.float(), x.shape[-1:], weight, bias, eps)
    return x_new, h.to(x.dtype)
"""


PACKING = """
from livetalk_kernels.ops.causal_conv3d import library

packed, seen = [], []


def supports(case):
    return None


def pack(weight):
    packed.append(weight.shape)
    return weight.clone()


def run(*arguments, packed=None, **keywords):
    seen.append("packed" if packed is not None else "plain")
    return library.run(*arguments, **keywords)
"""


def choice(op: str = "add_norm", calls: int = 1, dtype: str = "float32", **more: Any) -> Choice:
    p50 = more.pop("p50", {"reference": 1e-3, "cpu": 2e-3})
    dims = more.pop("dims", {"B": 1, "L": 8, "D": 64})
    best = min(p50, key=p50.__getitem__)
    return Choice(op=op, dtype=dtype, dims=dims, calls=calls, backend=best, p50=p50, **more)


def tuning(*choices: Choice, key: TuningKey | None = None) -> Tuning:
    entry = MachineEntry(
        key=key or TuningKey.of(CPU), complete=True, date="", commit="", choices=choices
    )
    return Tuning(path="tuning.json", machines=(entry,))


def case(op: str = "add_norm", dtype: torch.dtype = FP32, **dims: int) -> Case:
    return Case(op=op, device=CPU, dtype=dtype, dims=dims)


def write(path: Path, value: Tuning) -> Path:
    path.write_text(json.dumps(value.as_json()))
    return path


# What counts -----------------------------------------------------------------------------------


def test_advises_the_fastest_and_says_by_how_much():
    known = tuning(choice(p50={"reference": 3e-3, "cpu": 1e-3, "triton": 2.1e-3}))
    assert known.advise(case(L=8, D=64)) == ("cpu", "tuned: tuning.json (2.1x the next)")
    assert known.advise(case()) == ("cpu", "tuned: tuning.json (2.1x the next)")
    alone = tuning(choice(p50={"reference": 1e-3}))
    assert alone.advise(case()) == ("reference", "tuned: tuning.json (no other)")


def test_equal_sizes_count_first_and_then_the_nearest():
    known = tuning(
        choice(dims={"L": 100, "D": 64}, p50={"cpu": 1.0, "reference": 2.0}),
        choice(dims={"L": 1000, "D": 64}, p50={"cpu": 2.0, "reference": 1.0}),
    )
    assert known.advise(case(L=100, D=64))[0] == "cpu"
    assert known.advise(case(L=1000, D=64))[0] == "reference"
    assert known.advise(case(L=310, D=64))[0] == "cpu"  # by ratio: 3.1 and 3.2 times
    name, why = known.advise(case(L=330, D=64))
    assert name == "reference" and "at the nearest sizes L=1000 D=64" in why


def test_several_equally_near_choices_are_weighed_by_calls_and_time():
    short = choice(dims={"L": 8, "D": 64}, calls=100, p50={"cpu": 1.0, "reference": 2.0})
    long = choice(dims={"L": 64, "D": 64}, calls=1, p50={"cpu": 90.0, "reference": 20.0})
    assert tuning(short, long).advise(case(D=64))[0] == "cpu"
    often = dataclasses.replace(long, calls=2)
    assert tuning(short, often).advise(case(D=64))[0] == "reference"


def test_what_was_not_timed_everywhere_does_not_count():
    known = tuning(
        choice(dims={"L": 8}, p50={"cpu": 1.0, "reference": 2.0}),
        choice(dims={"L": 9}, p50={"reference": 2.0}),
    )
    assert known.advise(case())[0] == "reference"
    known = tuning(
        choice(dims={"L": 8}, p50={"cpu": 1.0}), choice(dims={"L": 9}, p50={"reference": 2.0})
    )
    name, why = known.advise(case())
    assert name is None and "no backend was timed at all of 2 shapes" in why


def test_rows_are_not_heads():
    """A model binds its ops with H heads; where an op has no d, H is rows, which nobody knows."""
    few = choice(
        "rms_norm_silu", dims={"C": 8, "H": 40, "W": 8}, calls=1, p50={"cpu": 1.0, "reference": 3.0}
    )
    many = choice(
        "rms_norm_silu", dims={"C": 8, "H": 9, "W": 8}, p50={"cpu": 9.0, "reference": 1.0}
    )
    assert tuning(few, many).advise(case("rms_norm_silu", H=40, d=128))[0] == "reference"


def test_nothing_for_an_op_or_dtype():
    known = tuning(choice())
    assert known.advise(case(dtype=torch.bfloat16)) == (
        None,
        "tuning.json has nothing for bfloat16",
    )
    assert known.advise(case("rms_norm"))[0] is None


# Staleness -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "Abacus 3000"}, "name was Abacus 3000"),
        ({"threads": 99}, "threads was 99, is "),
        ({"instructions": "scalar"}, "instructions was scalar"),
        ({"versions": {"torch": "1.0"}}, "torch was 1.0"),
        ({"device": "cuda"}, "it was not made on cpu"),
    ],
)
def test_another_machine_or_version_is_stale(changed, said, caplog):
    here = TuningKey.of(CPU)
    key = dataclasses.replace(here, **changed)
    if "versions" in changed:
        key = dataclasses.replace(here, versions={**here.versions, **changed["versions"]})
    config = KernelConfig(tuning=tuning(choice(), key=key))
    with caplog.at_level(logging.WARNING, logger="livetalk_kernels"):
        for _ in range(2):
            picked = resolve(case(), config)
    assert picked.name == load_op("add_norm").preference["cpu"][0]
    assert "tuning.json is stale" in picked.reason and said in picked.reason
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("tuning.json: is stale") and "livetalk tune" in line


@pytest.mark.parametrize(
    "strange", [choice(p50={"abacus": 1.0}), choice("addition", p50={"cpu": 1.0})]
)
def test_what_does_not_exist_here_makes_it_stale(strange):
    known = tuning(choice(), strange)
    name, why = known.advise(case())
    assert name is None and "stale" in why and "here" in why


def test_the_key_distinguishes_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = TuningKey.of(CPU)
        torch.set_num_threads(2)
        assert TuningKey.of(CPU).difference(one) == "threads was 2, is 1"
    finally:
        torch.set_num_threads(before)
    assert set(one.versions) == {"livetalk", "torch", "triton", "kernels"}


def test_the_key_of_a_gpu_has_its_libraries(monkeypatch: pytest.MonkeyPatch):
    """A file from before they were part of it is stale, and says why."""
    gpu = torch.device("cuda", 7)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H800")
    monkeypatch.setattr(tuning_module, "gpu_entry", lambda device: {"driver": "580.1"})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    here = TuningKey.of(gpu)
    assert here.versions["cuda"] == "13.0"
    libraries = {"cuda", "cudnn", "flash-attn", "flash-attn-3", "flashinfer-python"}
    assert set(here.versions) >= libraries | {"quack-kernels", "nvidia-cudnn-frontend"}
    older = {name: here.versions[name] for name in ("livetalk", "torch", "triton", "kernels")}
    known = tuning(choice(), key=dataclasses.replace(here, versions=older))
    name, why = known.advise(dataclasses.replace(case(), device=gpu))
    assert name is None and "stale: cuda was absent, is 13.0" in why


def test_an_update_keeps_what_still_holds():
    here = TuningKey.of(CPU)
    old_version = dataclasses.replace(here, versions={**here.versions, "torch": "1.0"})
    elsewhere = dataclasses.replace(here, name="Abacus 3000")
    first, second = choice(dims={"L": 1}), choice(dims={"L": 2})
    newer = dataclasses.replace(second, calls=5)
    made = [(old_version, choice(dims={"L": 3})), (elsewhere, first), (here, first)]
    entries = [tuning(found, key=key).machines[0] for key, found in made]
    entries[2] = dataclasses.replace(entries[2], choices=(first, second))
    known = Tuning(path="f", machines=tuple(entries))
    after = known.updated(tuning(newer).machines[0])
    assert [(entry.key, entry.choices) for entry in after.machines] == [
        (elsewhere, (first,)), (here, (first, newer)),
    ]  # fmt: skip


# The file --------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    known = tuning(choice(variant={"gate": False}), choice(dims={"L": 3}))
    path = write(tmp_path / "t.json", known)
    again = Tuning.load(path)
    assert again.machines == known.machines and again.path == str(path)


def broken(change: Callable[[dict], None]) -> str:
    value = tuning(choice()).as_json()
    change(value)
    return json.dumps(value)


def first_choice(value: dict) -> dict:
    return value["machines"][0]["choices"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" ", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"format": "avatar"}', "is not a tuning file"),
        (broken(lambda v: v.update(version=7)), "version 7"),
        (broken(lambda v: v.pop("machines")), "machines is missing"),
        (broken(lambda v: v.update(machines=[3])), "machines[0] is 3, not an object"),
        (broken(lambda v: v["machines"][0]["key"].pop("threads")), "threads is missing"),
        (
            broken(lambda v: v["machines"][0]["key"].update(versions={"torch": 1})),
            "torch is 1, not",
        ),
        (broken(lambda v: first_choice(v).pop("dims")), "dims is missing"),
        (broken(lambda v: first_choice(v).update(dims={"L": -1})), "dims.L is -1"),
        (broken(lambda v: first_choice(v).update(p50={"reference": 0.0})), "is 0.0"),
        (broken(lambda v: first_choice(v).update(backend="sdpa")), "sdpa was not timed"),
        (broken(lambda v: first_choice(v).update(calls=True)), "calls is True"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(text, said, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        Tuning.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and said in message and "livetalk tune" in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such tuning file"):
        Tuning.load(tmp_path / "t.json")
    with pytest.raises(UserError, match="is a folder"):
        Tuning.load(tmp_path)


# Precedence ------------------------------------------------------------------------------------


def test_only_auto_asks_the_file(tmp_path):
    path = write(tmp_path / "t.json", tuning(choice()))  # reference, where the default is cpu
    default = load_op("add_norm").preference["cpu"][0]
    assert default != "reference"

    def chosen(flags: list[str], environ: dict[str, str]) -> tuple[str, str]:
        config = KernelConfig.from_sources(flags, environ, tuning=path)
        picked = bind_ops(config, device=CPU, dtype=FP32, D=64).choices["add_norm"]
        return picked.name, picked.reason

    name, reason = chosen([], {})
    assert name == "reference" and f"tuned: {path} (2.0x the next)" in reason
    assert chosen(["auto"], {"LIVETALK_BACKEND": "cpu"})[0] == "reference"
    assert chosen(["sdpa"], {})[0] == "reference"  # add_norm has none, so auto
    assert chosen([], {"LIVETALK_BACKEND": "cpu"}) == ("cpu", "named")
    assert chosen(["cpu"], {}) == ("cpu", "named")
    assert chosen(["add_norm=cpu"], {}) == ("cpu", "named")


def test_the_variable_names_a_file_and_the_flag_wins(tmp_path, monkeypatch):
    path = write(tmp_path / "t.json", tuning(choice()))
    other = write(tmp_path / "other.json", tuning())
    assert find_tuning(None, {}) is None and KernelConfig.from_sources([], {}).tuning is None
    environ = {"LIVETALK_CONFIG": str(path)}
    found = find_tuning(None, environ)
    assert found is not None and found.path == str(path)
    assert find_tuning(None, environ) is found
    assert KernelConfig.from_sources([], environ, tuning=other).tuning.path == str(other)
    write(path, tuning(choice(), choice(dims={"L": 3})))
    assert len(find_tuning(None, environ).machines[0].choices) == 2  # read again
    for value in (str(tmp_path / "none.json"), str(tmp_path)):
        with pytest.raises(UserError, match=f"^LIVETALK_CONFIG: {value}"):
            find_tuning(None, {"LIVETALK_CONFIG": value})


def test_a_call_asks_the_variables_file_and_its_argument_wins(tmp_path, monkeypatch, drop_in):
    drop_in("add_norm/toy.py", FAST.format(flags="", work="raise KeyError('toy')"))
    known = tuning(choice(p50={"toy": 1e-6, "cpu": 1.0}))
    monkeypatch.setenv("LIVETALK_CONFIG", str(write(tmp_path / "t.json", known)))
    x, one = torch.ones(1, 8, 64), torch.ones(64)
    with pytest.raises(KeyError, match="toy"):
        contract.add_norm(x, x, None, one, one)
    contract.add_norm(x, x, None, one, one, backend="cpu")


def test_a_tuned_backend_that_cannot_run_falls_through():
    known = tuning(choice("chunk_attention", p50={"flash_attn": 1e-6, "cpu": 1.0}))
    picked = resolve(case("chunk_attention"), KernelConfig(tuning=known))
    assert picked.name == "cpu" and "not flash_attn: " in picked.reason


# Measuring -------------------------------------------------------------------------------------


@pytest.fixture
def short_rounds(small_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "ROUNDS_SECONDS", (0.01, 0.05))


def measure(*calls: Call, budget: float = 5.0, approximate: bool = False) -> list[Outcome]:
    tuner = Tuner(CPU, budget=budget, approximate=approximate, say=lambda head, text: None)
    return list(tuner.run(calls))


@pytest.mark.usefixtures("short_rounds")
def test_the_fastest_is_chosen(drop_in: DropIn):
    slow = "import time; time.sleep(0.01)"
    drop_in("add_norm/slow.py", FAST.format(flags="", work=slow))
    call = Call(case=case(B=1, L=64, D=256), count=3)
    (outcome,) = measure(call)
    found = outcome.choice
    assert found is not None and not outcome.red
    assert set(found.p50) == {"cpu", "reference", "slow"}
    assert found.p50["slow"] == max(found.p50.values()) > 0.01
    assert found.backend == min(found.p50, key=found.p50.__getitem__)
    assert (found.op, found.dtype, found.calls) == ("add_norm", "float32", 3)
    assert found.dims == {"B": 1, "L": 64, "D": 256}


@pytest.mark.usefixtures("short_rounds")
def test_a_toy_that_is_fastest_is_chosen_and_then_runs(drop_in: DropIn, monkeypatch):
    """Both others sleep, so that the toy wins on any machine."""
    source = FAST.format(flags="", work="pass")
    drop_in("add_norm/toy.py", source)
    for name in ("cpu", "reference"):
        backend = backend_module("add_norm", name)
        monkeypatch.setattr(backend, "run", sleeping(backend.run))
    (outcome,) = measure(Call(case=case(B=1, L=4, D=32)))
    assert outcome.choice is not None and outcome.choice.backend == "toy"
    config = KernelConfig(tuning=tuning(outcome.choice))
    ops = bind_ops(config, device=CPU, dtype=FP32, D=32)
    assert ops.chosen["add_norm"] == "toy" and "x the next" in ops.choices["add_norm"].reason


def backend_module(op: str, name: str) -> Any:
    return importlib.import_module(f"livetalk_kernels.ops.{op}.{name}")


def sleeping(run: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any, **keywords: Any) -> Any:
        time.sleep(0.005)
        return run(*arguments, **keywords)

    return slow


@pytest.mark.usefixtures("short_rounds")
@pytest.mark.parametrize("work", ["x = 2 * x", "x = 2 * x if len(x[0]) > 100 else x", "1 / 0"])
def test_a_red_backend_is_not_timed(work, drop_in: DropIn):
    drop_in("add_norm/wrong.py", FAST.format(flags="", work=work))
    (outcome,) = measure(Call(case=case(B=1, L=128, D=32)))
    assert set(outcome.red) == {"wrong"}
    assert outcome.choice is not None and "wrong" not in outcome.choice.p50


@pytest.mark.usefixtures("short_rounds")
def test_approximate_backends_take_part_only_when_asked_for(drop_in: DropIn):
    drop_in("add_norm/rough.py", FAST.format(flags="APPROXIMATE = True", work="pass"))
    call = Call(case=case(B=1, L=4, D=32))
    for approximate in (False, True):
        (outcome,) = measure(call, approximate=approximate)
        assert outcome.choice is not None
        assert ("rough" in outcome.choice.p50) == approximate


@pytest.mark.usefixtures("short_rounds")
def test_approximate_backends_are_held_to_their_own_bounds():
    sizes = {"B": 1, "L": 70, "S": 70, "H": 2, "d": 64}
    (outcome,) = measure(Call(case=case("chunk_attention", **sizes)), approximate=True)
    assert not outcome.red and outcome.choice is not None
    assert "reference_fp8" in outcome.choice.p50


@pytest.mark.usefixtures("short_rounds")
def test_the_budget_goes_to_frequent_calls_first(monkeypatch):
    rare, often = case(B=1, L=4, D=32), case(B=1, L=8, D=32)
    first, second = measure(Call(case=rare), Call(case=often, count=9))
    assert first.call.case == often and first.choice and second.choice
    needed = {4: 1e6, 8: 0.0}
    monkeypatch.setattr(tune, "seconds_needed", lambda case, _: needed[case.dims["L"]])
    short, long = measure(Call(case=rare), Call(case=often))
    assert short.choice and "would take about 1000000 s" in long.skipped
    monkeypatch.setattr(Tuner, "_measure", lambda *_: time.sleep(0.5) or Outcome(call=_[1]))
    _, spent = measure(Call(case=often), Call(case=often), budget=0.5)
    assert "budget of 0.5 s is spent" in spent.skipped
    for budget in (1e-6, 10.0):  # not even measuring the machine; or no call
        with pytest.raises(UserError, match=r"nothing can be timed.* use --budget \d+ or more"):
            measure(Call(case=rare), budget=budget)


@pytest.mark.usefixtures("short_rounds")
def test_a_weight_is_packed_once_and_not_in_each_call(drop_in: DropIn):
    drop_in("causal_conv3d/toy.py", PACKING)
    one = Case(op="causal_conv3d", device=CPU, dtype=FP32, dims=dict(zip(
        ("B", "I", "O", "t", "T", "H", "W", "kt", "k"), (1, 4, 4, 0, 2, 4, 4, 1, 1), strict=True
    )))  # fmt: skip
    (outcome,) = measure(Call(case=one))
    assert outcome.choice is not None and "toy" in outcome.choice.p50
    toy = backend_module("causal_conv3d", "toy")
    assert toy.packed == [torch.Size([4, 4, 1, 1, 1])]
    assert toy.seen[-1] == "packed"  # the contract's own cases come before, without
