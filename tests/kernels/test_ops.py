"""Every op by every backend that runs here, on every small case of its contract."""

import pytest
import torch
from torch import Generator, Tensor

from livetalk_kernels.backends import cpu
from livetalk_kernels.registry import backend_names, load_backend, load_op, op_names
from livetalk_kernels.spec import Arguments, Case, as_tuple
from livetalk_kernels.testing.cases import runnable_cases
from livetalk_kernels.testing.numerics import (
    check_backend,
    guard_is_whole,
    guarded,
    poisoned_memory,
)

COMPILED = {"cpu", "triton", "triton_fp8", "cuda"}
MAX_FLOPS, MAX_BYTES = 5e9, 1.3e8
CPU = torch.device("cpu")
DEVICES = [CPU, torch.device("cuda")] if torch.cuda.is_available() else [CPU]


def inputs(case: Case) -> Arguments:
    return load_op(case.op).make_inputs(case, Generator().manual_seed(7))


def tensors(arguments: Arguments) -> list[Tensor]:
    positional, keywords = arguments
    return [value for value in (*positional, *keywords.values()) if isinstance(value, Tensor)]


def is_dense(tensor: Tensor) -> bool:
    """Whether some order of the dimensions is contiguous; enough for the VAE's feature maps."""
    order = sorted(range(tensor.ndim), key=lambda dim: (-tensor.stride(dim), -tensor.shape[dim]))
    return tensor.permute(order).is_contiguous()


def raw(tensor: Tensor) -> Tensor:
    """Its bytes, so that NaN equals NaN and -0 differs from 0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def marks(case: Case) -> list[pytest.MarkDecorator]:
    return [pytest.mark.gpu] if case.device.type == "cuda" else []


every = pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(*pair, id=f"{pair[0]}-{pair[0].device}-{pair[1]}", marks=marks(pair[0]))
        for pair in runnable_cases(DEVICES)
    ],
)


@every
def test_is_as_exact_as_the_contract_says(case: Case, backend: str) -> None:
    ok, reason = check_backend(case, backend)
    assert ok, reason


def affordable(case: Case, backend: str) -> bool:
    """Whether a case of the model's own size can be checked in fp64 within seconds."""
    if case.device.type != "cpu":
        return True
    cost = load_op(case.op).cost(case)
    return backend == "cpu" and cost.flops < MAX_FLOPS and cost.bytes < MAX_BYTES


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(*pair, id=f"{pair[0]}-{pair[0].device}-{pair[1]}", marks=marks(pair[0]))
        for pair in runnable_cases(DEVICES, large=True)
        if affordable(*pair)
    ],
)
def test_is_as_exact_at_the_sizes_of_the_model(case: Case, backend: str) -> None:
    ok, reason = check_backend(case, backend)
    assert ok, reason


@every
def test_gives_fresh_outputs_and_leaves_its_inputs(case: Case, backend: str) -> None:
    positional, keywords = arguments = inputs(case)
    before = [raw(tensor).clone() for tensor in tensors(arguments)]
    outputs = as_tuple(load_backend(case.op, backend).run(*positional, **keywords))
    for tensor, copy in zip(tensors(arguments), before, strict=True):
        assert torch.equal(raw(tensor), copy), "an input was changed"
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors(arguments)]
    permuted = case.options.get("m_major", False)
    for output in outputs:
        assert output.is_contiguous() or ((output.ndim == 5 or permuted) and is_dense(output))
        assert output.untyped_storage().data_ptr() not in storages or not output.numel()
        assert not output.requires_grad
        storages.append(output.untyped_storage().data_ptr())


@every
def test_reads_and_writes_just_its_tensors_and_repeats(case: Case, backend: str) -> None:
    positional, keywords = inputs(case)
    run = load_backend(case.op, backend).run
    expected = as_tuple(run(*positional, **keywords))
    with poisoned_memory():
        fenced = [guarded(x) if isinstance(x, Tensor) else x for x in positional]
        actual = as_tuple(run(*fenced, **keywords))
    for first, second in zip(expected, actual, strict=True):
        assert torch.equal(raw(first), raw(second))


@every
def test_public_function_runs_the_backend(case: Case, backend: str) -> None:
    positional, keywords = inputs(case)
    expected = as_tuple(load_backend(case.op, backend).run(*positional, **keywords))
    actual = as_tuple(load_op(case.op).function(*positional, **keywords, backend=backend))
    for first, second in zip(expected, actual, strict=True):
        assert torch.equal(raw(first), raw(second))


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(*pair, id=f"{pair[0]}-{pair[0].device}-{pair[1]}", marks=marks(pair[0]))
        for pair in runnable_cases(DEVICES)
        if (pair[1] in COMPILED and pair[0].name in {"odd", "history"})
        or (pair[1] == "triton" and pair[0].name == "m_major")
    ],
)
def test_compiled_backends_are_good_torch_operators(case: Case, backend: str) -> None:
    """Schema, fake tensors (shapes, dtypes, strides), autograd registration, tracing."""
    operator = getattr(torch.ops.livetalk, f"{case.op}_{backend}")
    arguments = inputs(case)
    utilities = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if not any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors(arguments)):
        utilities.append("test_schema")  # it compares inputs by allclose, which FP8 has not
    torch.library.opcheck(operator.default, *arguments, test_utils=utilities)


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(*pair, id=f"{pair[0]}-{pair[0].device}-{pair[1]}", marks=marks(pair[0]))
        for pair in runnable_cases(DEVICES)
        if load_backend(pair[0].op, pair[1]).launches is not None
    ],
)
def test_launches_write_just_their_outputs(case: Case, backend: str) -> None:
    """Canaries around every output survive, and every element of it is written."""
    launches = load_backend(case.op, backend).launches
    assert launches is not None
    positional, keywords = inputs(case)
    expected = as_tuple(load_op(case.op).function(*positional, **keywords, backend=backend))
    outputs = [
        guarded(torch.full_like(output.float(), 0.5).to(output.dtype)) for output in expected
    ]
    for launch in launches(tuple(outputs), *positional, **keywords):
        launch()
    for output, value in zip(outputs, expected, strict=True):
        assert torch.equal(raw(output), raw(value))
        assert guard_is_whole(output), "written outside the output"


@pytest.mark.parametrize("isa", cpu.ISAS[:-1])
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=str(case)) for case, name in runnable_cases([CPU]) if name == "cpu"],
)
def test_every_instruction_set_is_as_exact(case: Case, isa: str) -> None:
    try:
        torch.ops.livetalk.use_isa(isa)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    try:
        ok, reason = check_backend(case, "cpu")
    finally:
        torch.ops.livetalk.use_isa("best")
    assert ok, reason


@pytest.mark.parametrize("op", op_names())
def test_contract_is_complete(op: str) -> None:
    spec = load_op(op)
    cases = spec.cases(CPU, spec.dtypes[0])
    names = [case.name for case in cases]
    assert len(set(names)) == len(names) and all(names)
    assert any(case.large for case in cases) and not all(case.large for case in cases)
    assert all(case.op == op for case in cases)
    for names_of_device in spec.preference.values():
        assert set(names_of_device) <= set(backend_names(op)) - {"reference"}
        assert len(set(names_of_device)) == len(names_of_device)
        assert not any(load_backend(op, name).approximate for name in names_of_device)
    for case in cases:
        cost = spec.cost(case)
        assert cost.flops >= 0 and cost.bytes >= 0
        assert not case.large or min(cost.flops, cost.bytes) > 0
    assert "Args:" in (spec.function.__doc__ or "") and "Returns:" in (spec.function.__doc__ or "")


@pytest.mark.parametrize("op", op_names())
def test_bytes_of_the_cost_model(op: str) -> None:
    """Moved bytes lie between the outputs alone and all tensors of the call."""
    spec = load_op(op)
    for case in spec.cases(CPU, spec.dtypes[0]):
        if case.large:
            continue
        positional, keywords = arguments = inputs(case)
        outputs = as_tuple(load_backend(op, "reference").run(*positional, **keywords))
        written = sum(output.nbytes for output in outputs)
        read = sum(tensor.nbytes for tensor in tensors(arguments))
        assert written <= spec.cost(case).bytes <= written + read, case
