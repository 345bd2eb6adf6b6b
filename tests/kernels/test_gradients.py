"""Autograd through the backends that say so, and the refusal of all others."""

import dataclasses

import pytest
import torch
from torch import Generator, Tensor

from livetalk_kernels import KernelConfig, UserError, bind_ops
from livetalk_kernels.registry import backend_names, load_backend, load_op, op_names
from livetalk_kernels.spec import Case, as_tuple

CPU = torch.device("cpu")
DEVICES = [CPU, torch.device("cuda")] if torch.cuda.is_available() else [CPU]
TABLES = {"rms_norm_rope": (4, 5)}  # arguments that are constants: cosines and sines
FP8_OPS = {"add_norm_quant", "fp8_gemm", "fp8_gemm_gelu_quant", "quantize"}
SINGULAR = "zeros"  # a case without derivatives: they are defined, not calculated
MAX_FLOPS = 2e7


def trainable_cases(dtype: torch.dtype) -> list:
    """Every small case of every differentiable backend."""
    found = []
    for op in op_names():
        for name in backend_names(op):
            backend = load_backend(op, name)
            if not backend.differentiable:
                continue
            for device in DEVICES:
                for case in load_op(op).cases(device, torch.float32):
                    case = dataclasses.replace(case, dtype=dtype)
                    small = not case.large and load_op(op).cost(case).flops < MAX_FLOPS
                    if not small or 0 in case.dims.values():
                        continue
                    if backend.supports(case) is None:
                        marks = [pytest.mark.gpu] if device.type == "cuda" else []
                        found.append(pytest.param(case, name, id=f"{case}-{name}", marks=marks))
    return found


def arguments(case: Case, dtype: torch.dtype) -> tuple[list, dict, list[int]]:
    """Arguments in a dtype, and the places of those that a derivative is wanted of."""
    positional, keywords = load_op(case.op).make_inputs(case, Generator().manual_seed(7))
    positional = [x.to(dtype) if isinstance(x, Tensor) else x for x in positional]
    constants = TABLES.get(case.op, ())
    places = [
        at for at, x in enumerate(positional) if isinstance(x, Tensor) and at not in constants
    ]
    return positional, keywords, places


def outputs_of(case: Case, backend: str, positional: list, keywords: dict) -> tuple[Tensor, ...]:
    """The outputs that carry derivatives, with 0 for what is infinite: an LSE without keys."""
    outputs = as_tuple(load_backend(case.op, backend).run(*positional, **keywords))
    outputs = outputs[:1] if case.op == "chunk_attention" else outputs
    return tuple(torch.where(x.isfinite(), x, 0.0) for x in outputs)


def gradients(case: Case, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Derivatives of a fixed random sum of all outputs."""
    positional, keywords, places = arguments(case, dtype)
    for at in places:
        positional[at] = positional[at].detach().requires_grad_()
    random, total = Generator().manual_seed(1), torch.zeros(())
    for output in outputs_of(case, backend, positional, keywords):
        factors = torch.randn(output.shape, generator=random, dtype=torch.float64)
        total = total + (output.double() * factors.to(case.device)).sum().cpu()
    return list(torch.autograd.grad(total, [positional[at] for at in places]))


@pytest.mark.parametrize(("case", "backend"), trainable_cases(torch.float32))
def test_derivatives_are_those_of_the_reference(case: Case, backend: str) -> None:
    """In fp32, against fp64: within the rounding of the sums.

    A softmax over one key has no derivative, of which a fused kernel's difference of two rounded
    sums leaves 1e-7 on some processors: hence the absolute part.
    """
    truth = gradients(case, "reference", torch.float64)
    for actual, exact in zip(gradients(case, backend, torch.float32), truth, strict=True):
        assert actual.isfinite().all()
        assert (actual - exact).norm() < 2e-5 * exact.norm() + 1e-6


@pytest.mark.parametrize(
    ("case", "backend"),
    [param for param in trainable_cases(torch.float64) if param.values[0].name != SINGULAR],
)
def test_derivatives_are_those_of_differences(case: Case, backend: str) -> None:
    positional, keywords, places = arguments(case, torch.float64)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(places, tensors, strict=True))
        merged = [given.get(at, x) for at, x in enumerate(positional)]
        return outputs_of(case, backend, merged, keywords)

    inputs = [positional[at].detach().requires_grad_() for at in places]
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6, rtol=1e-5, fast_mode=True)


def test_pixels_without_any_colour_have_no_derivative() -> None:
    x = torch.randn(1, 8, 1, 2, 2, generator=Generator().manual_seed(0))
    x[..., 0, 0] = 0
    x.requires_grad_()
    y = load_backend("rms_norm_silu", "reference").run(x, torch.ones(8))
    (grad,) = torch.autograd.grad(y.square().sum() + y.sum(), x)
    assert not grad[..., 0, 0].any() and 0 < grad.abs().max() < 100


@pytest.mark.parametrize("op", sorted(set(op_names()) - FP8_OPS))
def test_every_op_of_the_model_can_be_trained_with(op: str) -> None:
    assert load_backend(op, "reference").differentiable
    assert any(param.values[0].op == op for param in trainable_cases(torch.float64))


def test_auto_takes_what_has_gradients() -> None:
    ops = bind_ops(KernelConfig(), device="cpu", dtype=torch.float32, differentiable=True)
    assert set(ops.chosen) == set(op_names()) - FP8_OPS
    for op, name in ops.chosen.items():
        assert load_backend(op, name).differentiable, op
    assert ops.chosen["chunk_attention"] == "sdpa" and ops.chosen["causal_conv3d"] == "library"


@pytest.mark.parametrize("choice", ["chunk_attention=cpu", "cpu"])
def test_what_has_no_gradients_is_refused(choice: str) -> None:
    config = KernelConfig.parse([choice])
    bind_ops(config, device="cpu", dtype=torch.float32)
    with pytest.raises(UserError) as error:
        bind_ops(config, device="cpu", dtype=torch.float32, differentiable=True)
    message = str(error.value)
    assert "\n" not in message and "no gradients" in message
    if choice != "cpu":
        assert message.endswith("take reference or sdpa or sdpa_flash or sdpa_math")
