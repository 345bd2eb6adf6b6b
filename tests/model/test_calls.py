"""The calls that a model is said to make are those that it makes."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from livetalk_kernels.bench.calls import case_of
from livetalk_kernels.bench.runner import make_inputs
from livetalk_kernels.registry import load_op, op_names
from livetalk_kernels.spec import Case
from livetalk_model import load_pipeline
from livetalk_model.config import NEW_FRAMES, get_preset
from livetalk_model.dry_run.calls import model_calls
from livetalk_model.stream.chunk import StreamOptions

CPU, META, FP32 = torch.device("cpu"), torch.device("meta"), torch.float32
SIZE = (32, 48)
FP8_LINEARS = "fp8_gemm_gelu_quant", "fp8_gemm"


def rows(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    """Shape as rows of the last dimension, which is how ops that work on rows see it."""
    return tensor.reshape(-1, *tensor.shape[-1:]).shape, tensor.dtype


def check_inputs(case: Case, arguments: tuple) -> None:
    """The case's own inputs are like the call's."""
    made, _ = make_inputs(dataclasses.replace(case, device=META))
    assert len(made) == len(arguments)
    for index, (own, given) in enumerate(zip(made, arguments, strict=True)):
        if own is None or given is None:  # no history may be one of no frames
            assert own is None or (given is None and not own.numel()), (case, index)
        else:
            assert rows(own) == rows(given), (case, index)


def key(case: Case) -> tuple:
    """The call, but for the memory format, in which a library may leave the contract."""
    options = {name: value for name, value in case.options.items() if name != "channels_last"}
    return case.op, *case.dims.items(), *sorted(options.items())


@pytest.mark.parametrize(
    ("precision", "schedule"),
    [("exact", {}), ("fp8", {}), ("exact", {"fuse_bias": True})],
)
def test_the_calls_are_those_of_a_running_model(precision, schedule):
    preset = get_preset("tiny")
    fp8 = precision == "fp8"
    calls = model_calls(preset, size=SIZE, device=CPU, dtype=FP32, fp8=fp8, steps=2, **schedule)
    assert all(call.case.device == CPU and call.case.dtype == FP32 for call in calls)
    pipeline = load_pipeline(
        preset="tiny", device="cpu", dtype="fp32", precision=precision, **schedule
    )
    text = torch.zeros(preset.dit.text_len // 2, preset.dit.text_dim)
    picture = Image.fromarray(np.zeros((*SIZE, 3), np.uint8))
    avatar = pipeline.prepare(picture, size=SIZE, prompt_embeds=text)
    seen: dict[tuple, int] = {}

    def noting(op, run):
        def noted(*arguments, **keywords):
            case = case_of(op, CPU, FP32, arguments, keywords)
            assert case is not None
            check_inputs(case, arguments)
            seen[key(case)] = seen.get(key(case), 0) + 1
            return run(*arguments, **keywords)

        return noted

    for ops in pipeline.ops.values():
        for op in op_names():
            setattr(ops, op, noting(op, getattr(ops, op)))
    with pipeline.session(avatar, options=StreamOptions(steps=2)) as session:
        sound = np.zeros(NEW_FRAMES * 640, np.float32)
        for _ in range(4):
            if sum(map(len, session.push(sound))):
                seen.clear()  # the first chunk, which starts from one motion latent
                break
        assert sum(map(len, session.push(sound))) == NEW_FRAMES
    found = {key(call.case): call.count for call in calls}
    assert set(seen) <= set(found), set(seen) - set(found)
    layers = preset.dit.num_layers
    attention = [call for call in calls if call.case.op == "context_attention"]
    assert [call.count for call in attention] == [2 * layers]  # of each step
    assert bool(schedule) == any(call.case.op == "add_residual" for call in calls)
    biased = {c.case.options.get("bias") for c in calls if c.case.op == "rms_norm_silu"}
    assert biased == ({True, None} if schedule else {None})


@pytest.mark.parametrize("m_major", [False, True])
def test_block_scales_are_stored_as_asked_for(m_major):
    preset = get_preset("tiny")
    preset = dataclasses.replace(preset, dit=dataclasses.replace(preset.dit, ffn_dim=768))
    calls = model_calls(
        preset, size=SIZE, device=CPU, dtype=FP32, fp8=True, m_major_scales=m_major, steps=1
    )
    found = {op: [c.case.options for c in calls if c.case.op == op] for op in FP8_LINEARS}
    assert [options.get("m_major", False) for options in found[FP8_LINEARS[0]]] == [m_major]
    layouts = {options.get("scales") for options in found[FP8_LINEARS[1]] if "block" in options}
    assert layouts == {"columns" if m_major else None}


def test_what_only_several_ranks_call_has_a_case():
    case = next(case for case in load_op("merge_lse").cases(CPU, FP32) if case.name == "odd")
    arguments, keywords = load_op("merge_lse").make_inputs(case, torch.Generator())
    assert case_of("merge_lse", CPU, FP32, arguments, keywords).dims == case.dims
