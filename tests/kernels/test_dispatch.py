import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from livetalk_kernels import KernelConfig, UserError, bind_ops, support_table
from livetalk_kernels.dispatch import resolve
from livetalk_kernels.ops import add_norm as add_norm_contract
from livetalk_kernels.ops import chunk_attention as chunk_contract
from livetalk_kernels.registry import all_backend_names, backend_names, load_op, op_names
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.cases import runnable_cases
from livetalk_model.loading import ModelSource

CPU, META = torch.device("cpu"), torch.device("meta")
DropIn = Callable[[str, str], None]

TOY = """
from livetalk_kernels.ops.add_norm.reference import run


def supports(case):
    if case.dims.get("D", 0) > 64:
        return "toy takes 64 channels at most; pip install bigtoy"
    return None
"""
FAILING = """
def supports(case):
    return None


def run(*arguments, **keywords):
    raise KeyError("toy")
"""
TOY_OP = """
import torch
from livetalk_kernels.call import resolve_call
from livetalk_kernels.spec import Case, Cost, OpSpec


def double(x, *, backend=None):
    return resolve_call("double", backend, x.device, x.dtype)(x)


OP = OpSpec(
    name="double",
    summary="2x",
    kind="norms",
    function=double,
    preference={},
    cases=lambda device, dtype: (Case(op="double", device=device, dtype=dtype),),
    make_inputs=lambda case, generator: ((torch.ones(2),), {}),
    cost=lambda case: Cost(flops=2, bytes=16),
    read=lambda x: ({}, {}),
)
"""
TOY_OP_REFERENCE = """
def supports(case):
    return None


def run(x):
    return 2 * x
"""


def attention_case(device: torch.device, dtype: torch.dtype = torch.float32) -> Case:
    return Case(op="chunk_attention", device=device, dtype=dtype, dims={"H": 2, "d": 16})


def ops_case(op: str) -> Case:
    return Case(op=op, device=CPU, dtype=torch.float32)


def test_every_op_of_the_design_is_there() -> None:
    assert set(op_names()) >= {
        "rms_norm_rope",
        "add_norm",
        "add_norm_quant",
        "add_residual",
        "quantize",
        "fp8_gemm",
        "fp8_gemm_gelu_quant",
        "chunk_attention",
        "merge_lse",
        "context_attention",
        "audio_attention",
        "causal_conv3d",
        "rms_norm_silu",
    }
    for op in op_names():
        assert "reference" in backend_names(op)


def test_binds_each_op_to_plain_callables() -> None:
    ops = bind_ops(KernelConfig(), device="cpu", dtype=torch.float32, D=512, H=4, d=128)
    assert sorted(ops.chosen) == op_names()
    for op in ("chunk_attention", "add_norm"):
        assert ops.chosen[op] == load_op(op).preference["cpu"][0]
    x = torch.randn(1, 3, 8)
    one, zero = torch.ones(8), torch.zeros(8)
    x_new, h = ops.add_norm(x, x, None, one, zero)
    assert torch.equal(x_new, 2 * x)
    assert h.mean().abs() < 1e-6
    with pytest.raises(AttributeError):
        ops.nonsense  # noqa: B018


def test_auto_falls_through_and_says_why() -> None:
    case = Case(op="add_norm", device=CPU, dtype=torch.float64)
    choice = resolve(case, KernelConfig())
    assert choice.name == "reference"
    assert "not cpu: needs float32 or bfloat16, not float64" in choice.reason
    assert resolve(attention_case(META), KernelConfig()).name == "reference"


def test_auto_logs_each_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    case = Case(op="add_norm", device=CPU, dtype=torch.float16)
    with caplog.at_level(logging.INFO, logger="livetalk_kernels"):
        for _ in range(3):
            resolve(case, KernelConfig())
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "add_norm on cpu torch.float16: reference" in messages[0]
    assert "not cpu: needs float32 or bfloat16" in messages[0]


def test_a_name_for_all_leaves_ops_without_it_to_auto() -> None:
    config = KernelConfig.parse(["sdpa"])
    ops = bind_ops(config, device="cpu", dtype=torch.float32)
    assert ops.chosen["audio_attention"] == "sdpa"
    assert (
        ops.chosen["merge_lse"] == bind_ops(device="cpu", dtype=torch.float32).chosen["merge_lse"]
    )
    assert "no sdpa for this op" in ops.choices["merge_lse"].reason
    assert ops.choices["audio_attention"].reason == "named"


@pytest.mark.parametrize("choice", ["sdpa", "chunk_attention=sdpa"])
def test_a_named_backend_that_cannot_run_is_an_error(choice: str) -> None:
    with pytest.raises(UserError, match=r"chunk_attention=sdpa: cannot run: .*not on meta.*auto"):
        resolve(attention_case(META), KernelConfig.parse([choice]))


def test_cuda_reasons_are_specific() -> None:
    cuda = torch.device("cuda")
    table = support_table(device=cuda, dtype=torch.float64)
    assert table["chunk_attention"]["sdpa"] == "torch's fused attention has no float64 on cuda"
    table = support_table(device=cuda, dtype=torch.bfloat16, d=12)
    assert "multiples of 8, not 12" in (table["chunk_attention"]["sdpa"] or "")
    # The VAE's attention has one head of 384 channels.
    table = support_table(device=cuda, dtype=torch.bfloat16, d=384)
    assert table["chunk_attention"]["sdpa"] is None
    table = support_table(device=cuda, dtype=torch.bfloat16)
    assert table["chunk_attention"]["reference"] is None
    assert table["chunk_attention"]["sdpa"] is None


def test_call_argument_wins_over_environment(
    drop_in: DropIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_in("add_norm/failing.py", FAILING)
    monkeypatch.setenv("LIVETALK_BACKEND", "failing")
    x, one = torch.ones(1, 2, 8), torch.ones(8)
    with pytest.raises(KeyError, match="toy"):
        add_norm_contract.add_norm(x, x, None, one, one)
    add_norm_contract.add_norm(x, x, None, one, one, backend="reference")
    add_norm_contract.add_norm(x, x, None, one, one, backend="auto")
    with pytest.raises(UserError, match="add_norm has no backend nonsense"):
        add_norm_contract.add_norm(x, x, None, one, one, backend="nonsense")
    q = torch.ones(1, 2, 1, 8, device=META)
    with pytest.raises(UserError, match=r"cannot run: .*meta"):
        chunk_contract.chunk_attention(q, q, q, backend="sdpa")


def test_a_dropped_in_backend_shows_up_everywhere(drop_in: DropIn) -> None:
    drop_in("add_norm/toy.py", TOY)
    drop_in("add_norm/_helper.py", "raise RuntimeError('never imported')")
    assert {"reference", "toy"} <= set(backend_names("add_norm"))
    assert "_helper" not in backend_names("add_norm")
    assert "toy" in all_backend_names()
    wide = support_table(device=CPU, dtype=torch.float32, D=128)
    assert wide["add_norm"]["toy"] == "toy takes 64 channels at most; pip install bigtoy"
    assert support_table(device=CPU, dtype=torch.float32, D=64)["add_norm"]["toy"] is None
    ops = bind_ops(KernelConfig.parse(["toy"]), device=CPU, dtype=torch.float32, D=64)
    assert ops.chosen["add_norm"] == "toy"
    assert ops.chosen["chunk_attention"] == load_op("chunk_attention").preference["cpu"][0]
    with pytest.raises(UserError, match=r"add_norm=toy: cannot run: .*pip install bigtoy"):
        bind_ops(KernelConfig.parse(["toy"]), device=CPU, dtype=torch.float32, D=65)
    with pytest.raises(UserError, match=r"choose one of auto, .*toy"):
        KernelConfig.parse(["toyy"])
    assert bind_ops(device=CPU, dtype=torch.float32).chosen["add_norm"] != "toy"
    tested = {case.name for case, name in runnable_cases([CPU]) if name == "toy"}
    assert {"empty", "one"} <= tested


def test_a_dropped_in_op_shows_up_everywhere(drop_in: DropIn) -> None:
    drop_in("double/__init__.py", TOY_OP)
    drop_in("double/reference.py", TOY_OP_REFERENCE)
    assert "double" in op_names()
    ops = bind_ops(device=CPU, dtype=torch.float32)
    assert ops.double(torch.ones(1)).item() == 2
    assert support_table(device=CPU, dtype=torch.float32)["double"] == {"reference": None}


def test_a_size_is_not_negative() -> None:
    with pytest.raises(ValueError, match="L is -1"):
        Case(op="add_norm", device=CPU, dtype=torch.float32, dims={"L": -1})


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, livetalk_kernels as k; k.UserError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_named_backend_is_refused_only_where_it_matters(drop_in: DropIn) -> None:
    """A name is meant for the transformer; what cannot run the VAE's sizes leaves it to auto."""
    drop_in("add_norm/toy.py", TOY)
    narrow, wide = ({"D": width} for width in (64, 96))
    for choice in ("toy", "add_norm=toy"):
        config = KernelConfig.parse([choice])
        both = {"device": "cpu", "dtype": torch.float32}
        assert bind_ops(config, **both, main=wide, **narrow).chosen["add_norm"] == "toy"
        left = bind_ops(config, **both, main=narrow, **wide).choices["add_norm"]
        assert left.name == bind_ops(**both).chosen["add_norm"]
        assert left.reason.startswith("not toy here: toy takes 64 channels at most; pip")
        with pytest.raises(UserError, match="add_norm=toy: cannot run: toy takes 64 channels"):
            bind_ops(config, **both, main=wide, **wide)


def test_the_vae_takes_what_it_can_with_a_named_attention(drop_in: DropIn) -> None:
    """The transformer of ``tiny`` has four heads of 64 channels, its VAE one of 32."""
    drop_in(
        "chunk_attention/toy.py",
        "from .reference import run\n\n\ndef supports(case):\n"
        "    return 'toy needs 64 channels' if case.dims.get('d', 64) < 64 else None\n",
    )
    source = ModelSource.find(
        preset="tiny", checkpoint=None, audio_encoder=None, device="cpu", dtype="fp32",
        backend=KernelConfig.parse(["chunk_attention=toy"]), reuse=True,
    )  # fmt: skip
    pipeline = source.load_pipeline(source.load_preparer())
    chosen = {part: ops.choices["chunk_attention"] for part, ops in pipeline.ops.items()}
    assert chosen["dit"].name == "toy" and chosen["vae"].name == "cpu"
    assert "toy needs 64 channels" in chosen["vae"].reason
