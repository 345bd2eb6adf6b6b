import dataclasses
import os

import pytest
import torch

from livetalk_kernels import KernelConfig, UserError
from livetalk_kernels.dispatch import pick
from livetalk_kernels.environment import leave_nccl_errors_to_us
from livetalk_kernels.registry import excluded, load_backend
from livetalk_kernels.spec import Case


def test_all_is_auto_by_default() -> None:
    assert KernelConfig().wanted("add_norm") == ("auto", False)
    assert KernelConfig.parse([]) == KernelConfig()


def test_reads_a_name_for_all_and_names_for_single_ops() -> None:
    config = KernelConfig.parse(["reference", "chunk_attention=sdpa"])
    assert config.wanted("add_norm") == ("reference", False)
    assert config.wanted("chunk_attention") == ("sdpa", True)
    assert config == KernelConfig.parse([" reference , chunk_attention = sdpa "])


@pytest.mark.parametrize(
    "variable", ["TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_RETHROW_CUDA_ERRORS"]
)
def test_nccl_does_not_abort_unless_the_user_wants_it(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, kept in ((None, "0"), ("1", "1")):
        monkeypatch.setattr(os, "environ", {} if given is None else {variable: given})
        leave_nccl_errors_to_us()
        assert os.environ[variable] == kept


def test_a_later_choice_wins() -> None:
    choices = ["sdpa", "add_norm=auto", "add_norm=reference", "reference"]
    config = KernelConfig.parse(choices)
    assert config.default == "reference"
    assert config.backends == {"add_norm": "reference"}


@pytest.mark.parametrize(
    ("flags", "variable", "op", "wanted"),
    [
        ([], "", "add_norm", "auto"),
        ([], "reference", "add_norm", "reference"),
        ([], "sdpa,add_norm=reference", "add_norm", "reference"),
        ([], "sdpa,add_norm=reference", "chunk_attention", "sdpa"),
        (["reference"], "sdpa", "chunk_attention", "reference"),
        (["auto"], "reference", "chunk_attention", "auto"),
        (["reference"], "chunk_attention=sdpa", "chunk_attention", "reference"),
        (["chunk_attention=sdpa"], "reference", "chunk_attention", "sdpa"),
        (["chunk_attention=sdpa"], "reference", "add_norm", "reference"),
        (["chunk_attention=sdpa"], "chunk_attention=reference", "chunk_attention", "sdpa"),
    ],
)
def test_flags_win_over_the_environment(
    flags: list[str], variable: str, op: str, wanted: str
) -> None:
    config = KernelConfig.from_sources(flags, {"LIVETALK_BACKEND": variable})
    assert config.wanted(op)[0] == wanted


def test_reads_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETALK_BACKEND", "chunk_attention=reference")
    assert KernelConfig.from_sources().wanted("chunk_attention") == ("reference", True)
    monkeypatch.delenv("LIVETALK_BACKEND")
    assert KernelConfig.from_sources() == KernelConfig()


@pytest.mark.parametrize(
    ("choice", "parts"),
    [
        ("tritn", ["tritn", "no op has it", "auto", "reference", "sdpa"]),
        ("ad_norm=reference", ["no op ad_norm", "add_norm", "chunk_attention"]),
        ("add_norm=sdpa", ["add_norm has no backend sdpa", "auto, ", "reference"]),
        ("=sdpa", ["'=sdpa'", "NAME or OP=NAME"]),
        ("add_norm=", ["'add_norm='", "NAME or OP=NAME"]),
        ("add_norm=a=b", ["'add_norm=a=b'", "NAME or OP=NAME"]),
        ("reference,,sdpa", ["''", "NAME or OP=NAME"]),
        ("", ["''", "NAME or OP=NAME"]),
    ],
)
def test_bad_choices_say_what_is_valid(choice: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        KernelConfig.parse([choice])
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    if choice:
        with pytest.raises(UserError):
            KernelConfig.from_sources(environ={"LIVETALK_BACKEND": choice})


def test_validates_itself_and_is_frozen() -> None:
    with pytest.raises(UserError):
        KernelConfig(default="nonsense")
    with pytest.raises(UserError):
        KernelConfig(backends={"add_norm": "nonsense"})
    own = {"add_norm": "reference"}
    config = KernelConfig(backends=own)
    own["add_norm"] = "changed"
    assert config.backends["add_norm"] == "reference"
    with pytest.raises(TypeError):
        config.backends["add_norm"] = "changed"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.default = "sdpa"  # type: ignore[misc]


def test_a_wrong_variable_is_named_as_the_source():
    with pytest.raises(UserError, match=r"^LIVETALK_BACKEND=nosuch: "):
        KernelConfig.from_sources([], {"LIVETALK_BACKEND": "nosuch"})


def test_what_is_excluded_has_a_reason_wherever_it_is_asked(monkeypatch: pytest.MonkeyPatch):
    case = Case(op="add_norm", device=torch.device("cpu"), dtype=torch.float32)
    preferred = pick(case, "auto", named=False).name
    monkeypatch.setenv("LIVETALK_EXCLUDE", f" add_norm={preferred}, quantize=triton")
    assert load_backend("add_norm", preferred).supports(case) == "is left out by LIVETALK_EXCLUDE"
    assert pick(case, "auto", named=False).name != preferred
    with pytest.raises(UserError, match=f"add_norm={preferred}: cannot run: is left out by LIVE"):
        pick(case, preferred, named=True)
    assert ("quantize", "triton") in excluded() and excluded({}) == frozenset()


@pytest.mark.parametrize("value", ["triton", "no_op=cpu", "add_norm=no", "add_norm=reference", "="])
def test_what_cannot_be_excluded(value: str):
    with pytest.raises(UserError, match="is not an OP=BACKEND pair that can be left out"):
        excluded({"LIVETALK_EXCLUDE": value})
