"""CuDNN's FP8 attention, against a stand-in with the package's signatures that rounds as it does.

Nothing of it has run on a GPU. Where the package is installed, the graph is held to its own checks.
"""

import inspect
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from livetalk_kernels.backends.libraries import INSTALLED, LIBRARIES, Libraries
from livetalk_kernels.gpus import GPUS
from livetalk_kernels.ops._attention import plain_attention
from livetalk_kernels.ops.chunk_attention import cudnn_fp8
from livetalk_kernels.registry import load_backend, load_op
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.numerics import calc_diff

FP8, BF16, FP16, FP32 = torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32
SCALARS = ["descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o"]
DTYPES = {"FP8_E4M3": FP8, "BFLOAT16": BF16, "HALF": FP16, "FLOAT": FP32}
HANDLE = object()


class Described:
    """A tensor of a graph, with what was said of it."""

    def __init__(self, **said: Any) -> None:
        self.said = said

    def set_output(self, value: bool) -> "Described":
        self.said["output"] = value
        return self

    def set_dim(self, value: Any) -> "Described":
        self.said["dim"] = value
        return self

    def set_stride(self, value: Any) -> "Described":
        self.said["stride"] = value
        return self

    def set_data_type(self, value: Any) -> "Described":
        self.said["data_type"] = value
        return self

    def holds(self, value: Tensor) -> bool:
        """Return whether a tensor is laid out as described: order of dims and strides."""
        dim, stride = self.said["dim"], self.said["stride"]
        extent = 1 + sum((n - 1) * s for n, s in zip(dim, stride, strict=True))
        whole = value.is_contiguous() and value.numel() == extent
        return whole and value.dtype == DTYPES[self.said["data_type"]]


class Graph:
    """``cudnn.pygraph`` as far as it is used, on tensors of the CPU."""

    made: list["Graph"]

    def __init__(
        self,
        name="test_graph",
        io_data_type=None,
        intermediate_data_type=None,
        compute_data_type=None,
        handle=None,
    ):
        assert (io_data_type, intermediate_data_type, compute_data_type, handle) == (
            "FP8_E4M3", "FLOAT", "FLOAT", HANDLE,
        )  # fmt: skip
        self.state, self.runs = "described", 0
        Graph.made.append(self)

    def tensor(
        self,
        dim,
        stride=None,
        data_type=None,
        is_virtual=False,
        is_pass_by_value=False,
        ragged_offset=None,
        reordering_type=None,
        name="",
        uid=-1,
    ):
        assert not is_virtual and not is_pass_by_value and ragged_offset is None
        return Described(dim=dim, stride=stride, data_type=data_type, name=name)

    def sdpa_fp8(
        self,
        q,
        k,
        v,
        descale_q,
        descale_k,
        descale_v,
        descale_s,
        scale_s,
        scale_o,
        is_inference=None,
        attn_scale=None,
        use_padding_mask=False,
        seq_len_q=None,
        seq_len_kv=None,
        use_causal_mask=False,
        use_causal_mask_bottom_right=False,
        dropout=None,
        compute_data_type=None,
        name="",
        generate_stats=None,
    ):
        """As in version 1.13; newer ones have more arguments, of which none is needed."""
        assert is_inference is None and generate_stats is True
        assert not use_padding_mask and not use_causal_mask and dropout is None
        self.inputs = dict(q=q, k=k, v=v, descale_q=descale_q, descale_k=descale_k)
        self.inputs |= dict(descale_v=descale_v, descale_s=descale_s, scale_s=scale_s)
        self.inputs |= dict(scale_o=scale_o)
        self.attn_scale = attn_scale
        self.outputs = [Described() for _ in range(4)]
        return self.outputs

    def build(self, heuristics):
        assert heuristics == ["A", "FALLBACK"] and self.state == "described"
        assert all(tensor.said["output"] is True for tensor in self.outputs)
        assert (self.inputs["q"].said["dim"][3] % 16) == 0
        self.state = "built"

    def get_workspace_size(self):
        assert self.state == "built"
        return 48

    def execute(self, tensor_dict, workspace=None, handle=None):
        """What the kernel makes of it: weights in e4m3, and out where it was said to be."""
        assert self.state == "built" and handle is HANDLE
        assert workspace.numel() == 48 and workspace.dtype == torch.uint8
        assert set(tensor_dict) == {*self.inputs.values(), *self.outputs}
        assert all(tensor.holds(value) for tensor, value in tensor_dict.items())
        given = {name: tensor_dict[tensor] for name, tensor in self.inputs.items()}
        q, k, v = (given[name].float() * given[f"descale_{name}"] for name in "qkv")
        scores = torch.einsum("blhd,bshd->bhls", q, k) * self.attn_scale
        peak = scores.amax(-1, keepdim=True)
        weights = (scores - peak).exp()
        total = weights.sum(-1)
        rounded = saturated(weights * given["scale_s"], FP8).float() * given["descale_s"]
        sums = torch.einsum("bhls,bshd->blhd", rounded, v)
        result = sums / total.transpose(1, 2)[..., None] * given["scale_o"]
        out, lse, peak_s, peak_o = (tensor_dict[tensor] for tensor in self.outputs)
        out.copy_(saturated(result, out.dtype))
        lse.copy_(peak[..., 0] + total.log())
        peak_s.fill_(1.0), peak_o.copy_(result.abs().max())
        self.runs += 1


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    top = torch.finfo(dtype).max
    return x.clamp(-top, top).to(dtype)


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package, on a Hopper; graphs of another test are forgotten."""
    module = ModuleType("cudnn")
    module.__spec__ = ModuleSpec("cudnn", None)
    module.data_type = SimpleNamespace(**{name: name for name in DTYPES})
    module.heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
    module.pygraph, module.create_handle = Graph, lambda: HANDLE
    module.streams = []
    module.set_stream = lambda handle, stream: module.streams.append((handle, stream))
    Graph.made = []
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(cudnn_fp8, "result_dtype", lambda q: FP8)
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    cudnn_fp8.plan_for.cache_clear(), cudnn_fp8.handle_of.cache_clear()
    yield module
    cudnn_fp8.plan_for.cache_clear(), cudnn_fp8.handle_of.cache_clear()


def random(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(B: int = 2, L: int = 7, S: int = 11, H: int = 3, d: int = 64) -> tuple[Tensor, ...]:
    return tuple(random(B, n, H, d, seed=seed) for seed, n in enumerate((L, S, S)))


def test_the_graph(cudnn: ModuleType) -> None:
    """Dims are [B, H, L, d] whatever the memory layout; q, k and the rest have scales of 1."""
    q, k, v = qkv()
    out, lse = cudnn_fp8.run(q, k, v, scale=0.3)
    (graph,) = Graph.made
    assert graph.attn_scale == 0.3
    for name, length in {"q": 7, "k": 11, "v": 11}.items():
        assert graph.inputs[name].said == {
            "name": name, "data_type": "FP8_E4M3",
            "dim": (2, 3, length, 64), "stride": (length * 192, 64, 192, 1),
        }  # fmt: skip
    for name in SCALARS:
        assert graph.inputs[name].said == {
            "name": name, "data_type": "FLOAT", "dim": (1, 1, 1, 1), "stride": (1, 1, 1, 1),
        }  # fmt: skip
    shapes = [(x.said["dim"], x.said["stride"], x.said["data_type"]) for x in graph.outputs]
    assert shapes == [
        ((2, 3, 7, 64), (7 * 192, 64, 192, 1), "FP8_E4M3"),
        ((2, 3, 7, 1), (21, 7, 1, 1), "FLOAT"),
        ((1, 1, 1, 1), (1, 1, 1, 1), "FLOAT"),
        ((1, 1, 1, 1), (1, 1, 1, 1), "FLOAT"),
    ]
    assert out.shape == q.shape and out.dtype == BF16 and out.is_contiguous()
    assert lse.shape == (2, 3, 7) and lse.dtype == FP32 and lse.is_contiguous()
    assert cudnn.streams == [(HANDLE, 7)]


def test_a_graph_is_built_once_for_each_shape_and_scale(cudnn: ModuleType) -> None:
    for length in (5, 5, 9, 5):
        cudnn_fp8.run(*qkv(L=length))
    assert [graph.runs for graph in Graph.made] == [3, 1]
    cudnn_fp8.run(*qkv(L=5), scale=0.5)
    assert len(Graph.made) == 3 and Graph.made[0].attn_scale == 64**-0.5


@pytest.mark.parametrize("result", [FP8, BF16])
def test_is_within_the_bounds_of_the_contract(
    result: torch.dtype, cudnn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every case with heads that it takes; on a B200 out is not rounded to e4m3."""
    monkeypatch.setattr(cudnn_fp8, "result_dtype", lambda q: result)
    spec, checked = load_op("chunk_attention"), 0
    for case in spec.cases(torch.device("cpu"), BF16):
        if case.large or case.dims["d"] % 16 or not case.dims["S"] or case.dims["L"] < 2:
            continue
        arguments, keywords = spec.make_inputs(case, torch.Generator().manual_seed(0))
        actual = cudnn_fp8.run(*arguments, **keywords)
        scale = keywords["scale"]
        exact = plain_attention(*(x.double() for x in arguments), scale)
        for value, truth, bound in zip(actual, exact, spec.approximate_bounds, strict=True):
            assert bound.calc_diff is not None
            assert calc_diff(value, truth) < bound.calc_diff, case
        checked += 1
    assert checked >= 7


def test_heads_of_v_have_scales_of_their_own(cudnn: ModuleType) -> None:
    """One that is large does not swamp another, and one of zeros stays one."""
    q, k, v = qkv()
    v[:, :, 1] *= 1e4
    v[1, :, 2] = 0
    out, _ = cudnn_fp8.run(q, k, v)
    exact, _ = plain_attention(q.double(), k.double(), v.double(), None)
    assert calc_diff(out[:, :, 0], exact[:, :, 0]) < 5e-3
    assert calc_diff(out[:, :, 1], exact[:, :, 1]) < 5e-3
    assert not out[1, :, 2].any()


def test_nan_is_not_lost(cudnn: ModuleType) -> None:
    for index in range(3):
        given = [x.clone() for x in qkv()]
        given[index][1, 2, 0, 3] = torch.nan
        out, _ = cudnn_fp8.run(*given)
        assert out[1, :, 0].isnan().any()
    v = given[2]
    assert not cudnn_fp8.run(*given[:2], v)[0][:, :, 1].isnan().any()


@pytest.mark.parametrize("shape", [(1, 0, 4), (1, 4, 0), (0, 4, 4)])
def test_empty_inputs_do_not_reach_the_library(
    shape: tuple[int, int, int], cudnn: ModuleType
) -> None:
    B, L, S = shape
    q, k, v = qkv(B, L, S)
    out, lse = cudnn_fp8.run(q, k, v)
    assert out.shape == q.shape and not out.any() and not Graph.made
    assert torch.equal(lse, torch.full((B, 3, L), -torch.inf))


@pytest.mark.parametrize("case", ["fused", "odd_rows"])
def test_strided_inputs(case: str, cudnn: ModuleType) -> None:
    if case == "fused":
        q, k, v = random(2, 5, 3, 2, 64).unbind(2)
    else:
        q, k, v = (x[..., :64] for x in random(3, 2, 5, 2, 65).unbind(0))
    expected = cudnn_fp8.run(*(x.clone() for x in (q, k, v)))
    for actual, value in zip(cudnn_fp8.run(q, k, v), expected, strict=True):
        assert torch.equal(actual, value)


def test_single_queries_are_exact(cudnn: ModuleType) -> None:
    q, k, v = qkv(2, 1, 11, 3, 64)
    expected = load_op("chunk_attention").function(q, k, v, scale=0.1)
    for actual, value in zip(cudnn_fp8.run(q, k, v, scale=0.1), expected, strict=True):
        assert torch.equal(actual, value)
    assert not Graph.made


def test_what_the_kernel_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    q = qkv()[0]
    for capability, expected in {(9, 0): FP8, (10, 0): BF16, (10, 3): BF16, (12, 0): FP8}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert cudnn_fp8.result_dtype(q) == expected


ALL = Libraries(supposed=dict.fromkeys(LIBRARIES, "99"))


def reason(gpu: str, libraries: Libraries = ALL, **dims: int) -> str | None:
    device = torch.device("cuda")
    case = Case(
        op="chunk_attention", device=device, dtype=BF16, dims=dims, gpu=GPUS[gpu],
        libraries=libraries,
    )  # fmt: skip
    return cudnn_fp8.supports(case)


def test_reasons() -> None:
    assert load_backend("chunk_attention", "cudnn_fp8").approximate
    for gpu in ("h100", "b200", "rtx5090"):
        assert reason(gpu) is None and reason(gpu, L=5, d=128) is None
        assert "heads of at most 128 channels" in str(reason(gpu, H=1, d=384))
    assert reason("h100", d=40) == "needs heads of channels in multiples of 16, not 40"
    for gpu in ("a100", "rtx4090"):
        assert "needs compute capability 9.0 or newer" in str(reason(gpu))
    old = ALL.supposing({"cudnn": "9.19.0"})
    assert reason("h100", old) is None and "cudnn 9.28.0 or newer" in str(reason("rtx5090", old))
    old = ALL.supposing({"cudnn": "9.13.0"})
    assert "needs cudnn 9.14.0 or newer, not 9.13.0" in str(reason("h100", old))
    old = ALL.supposing({"cudnn-frontend": "1.9.0"})
    text = "needs cudnn-frontend 1.13 or newer, not 1.9.0; pip install 'livetalk[cudnn]'"
    assert reason("h100", old) == text


def test_the_package_is_asked_for(cudnn: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions are the distribution's; what is not there, or broken, says what installs it."""
    monkeypatch.setattr(
        "livetalk_kernels.backends.libraries.version", lambda name: {NAME: "1.32.0"}[name]
    )
    assert INSTALLED.find("cudnn-frontend") == ("1.32.0", "")
    monkeypatch.setitem(sys.modules, "cudnn", None)
    text = str(INSTALLED.problem("cudnn-frontend"))
    assert text.startswith("cudnn-frontend cannot be imported") and "livetalk[cudnn]" in text


NAME = "nvidia-cudnn-frontend"


@pytest.mark.parametrize("result", [FP8, BF16])
def test_the_package_itself_takes_the_graph(
    result: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every argument is one of the compiled operation's, and its checks without a GPU pass."""
    real = pytest.importorskip("cudnn", reason="pip install nvidia-cudnn-frontend")
    used: dict[str, Any] = {}
    graphs = []
    operation = real.pygraph.sdpa_fp8

    def spy(graph: Any, *given: Any, **more: Any) -> Any:
        assert not given
        used.update(more)
        return operation(graph, **more)

    def validate(graph: Any, heuristics: Any) -> None:
        graph.validate()
        graphs.append(graph)

    monkeypatch.setattr(real.pygraph, "sdpa_fp8", spy)
    monkeypatch.setattr(real.pygraph, "build", validate)
    monkeypatch.setattr(real.pygraph, "get_workspace_size", lambda graph: 0)
    monkeypatch.setattr(real, "create_handle", lambda: None)
    cudnn_fp8.handle_of.cache_clear()
    plan = cudnn_fp8.plan_for.__wrapped__(torch.device("cpu"), 1, 1512, 12096, 5, 128, 0.1, result)
    cudnn_fp8.handle_of.cache_clear()
    assert graphs == [plan.graph] and set(plan.tensors) >= set(SCALARS)
    compiled = getattr(getattr(real, "_pybind_module", None), "backend_graph", real.pygraph)
    signature = str(compiled.sdpa_fp8.__doc__).partition("\n")[0]
    assert all(f" {name}:" in signature for name in used), (sorted(used), signature)
    names = set(inspect.signature(Graph.sdpa_fp8).parameters) - {"self"}
    assert all(f" {name}:" in signature for name in names), signature
