"""xfuser's attention, against a stand-in with its signatures; none of it has run on a GPU."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from livetalk_kernels.ops import bind_ops
from livetalk_kernels.runtime.comm import LocalCommunicator
from livetalk_kernels.runtime.mesh import Mesh
from livetalk_kernels.runtime.sequence_parallel import ForeignSequence, SequenceParallel
from livetalk_kernels.runtime.xfuser_attention import XFuserAttention, reason

GPU, CPU, BF16 = torch.device("cuda"), torch.device("cpu"), torch.bfloat16
MESH = Mesh(ulysses=2, ring=2)


class LongContextAttention:
    """Takes and gives [B, L, H, d]; three inputs by name, the first argument is for a cache."""

    def __call__(self, attn, query, key, value, *, softmax_scale=None, causal=False):
        assert attn is None and softmax_scale is None and not causal
        assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
        return (query + 2 * key + 3 * value).transpose(1, 2).contiguous().transpose(1, 2)


class Library:
    """What was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the modules in place."""
        self.calls: list[tuple[str, dict[str, int]]] = []
        distributed = {
            "model_parallel_is_initialized": lambda: any(
                name == "parallel" for name, _ in self.calls
            ),
            "init_distributed_environment": self.init,
            "initialize_model_parallel": self.parallel,
        }
        modules = {
            "xfuser": {},
            "xfuser.core": {},
            "xfuser.core.distributed": distributed,
            "xfuser.core.long_ctx_attention": {"xFuserLongContextAttention": LongContextAttention},
        }
        for name, contents in modules.items():
            module = ModuleType(name)
            module.__dict__.update(contents)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(dist, "get_rank", lambda: 3)
        monkeypatch.setattr(dist, "get_world_size", lambda: 4)

    def init(
        self, world_size=-1, rank=-1, distributed_init_method="env://", local_rank=-1, backend=None
    ):
        assert distributed_init_method == "env://" and backend is None
        self.calls.append(
            ("init", {"world_size": world_size, "rank": rank, "local_rank": local_rank})
        )

    def parallel(
        self,
        data_parallel_degree=1,
        classifier_free_guidance_degree=1,
        sequence_parallel_degree=1,
        ulysses_degree=1,
        ring_degree=1,
        tensor_parallel_degree=1,
        pipeline_parallel_degree=1,
        backend=None,
    ):
        degrees = sequence_parallel_degree, ulysses_degree, ring_degree
        self.calls.append(
            ("parallel", dict(zip(("sequence", "ulysses", "ring"), degrees, strict=True)))
        )


def test_is_given_the_mesh_once_and_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(monkeypatch)
    attention = XFuserAttention(MESH)
    XFuserAttention(MESH)
    assert library.calls == [
        ("init", {"world_size": 4, "rank": 3, "local_rank": 3}),
        ("parallel", {"sequence": 4, "ulysses": 2, "ring": 2}),
    ]
    q, k, v = torch.randn(1, 5, 3, 4, 8).unbind(2)
    out = attention(q, k, v)
    assert out.is_contiguous() and out.equal(q + 2 * k + 3 * v)


def test_takes_the_place_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    Library(monkeypatch)
    communicator = LocalCommunicator()
    communicator.size = 4
    ops = bind_ops(device="cpu", dtype=torch.float32)
    parallel = SequenceParallel(MESH, communicator, ops, foreign=XFuserAttention(MESH))
    sequence = parallel.sequence(8)
    assert isinstance(sequence, ForeignSequence) and sequence.layout == "token"
    q, k, v = torch.randn(1, 2, 3, 4, 8).unbind(2)
    assert sequence.attention(q, k, v).equal(q + 2 * k + 3 * v)
    assert sequence.by_token(q).equal(q[0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": CPU}, "runs on cuda, not on cpu"),
        ({"dtype": torch.float32}, "needs float16 or bfloat16, not float32"),
        ({"heads": 3}, "3 heads do not divide by 2 Ulysses ranks"),
    ],
)
def test_reasons(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], text: str) -> None:
    Library(monkeypatch)
    given: dict[str, Any] = {"device": GPU, "dtype": BF16, "heads": 4}
    assert reason(MESH, **given) is None
    assert reason(MESH, **(given | changes)) == text


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xfuser", None)
    text = reason(MESH, GPU, BF16, heads=4)
    assert text is not None and text.endswith("; pip install 'livetalk[xfuser]'")
    assert "\n" not in text
