"""Every numeric flag of every command: what is no number in its range is refused in one line."""

import argparse
import importlib
from collections.abc import Iterator

import pytest

from livetalk_kernels.bench import compare
from livetalk_model.cli import numbers
from livetalk_model.cli.common import parse_size
from livetalk_model.cli.main import COMMANDS, Parser, main
from livetalk_model.cli.numbers import Number, number, whole
from livetalk_model.sampler import MAX_STEPS
from livetalk_model.stream.chunk import MAX_FPS, MIN_FPS

BAD = ("nan", "inf", "-inf", "-1", "1e19", "9" * 5000, "", "many", "0x10")


def actions(command: str) -> Iterator[argparse.Action]:
    """All options of a command."""
    parser = Parser(prog="livetalk")
    subparsers = parser.add_subparsers()
    importlib.import_module(f"livetalk_model.cli.{command}").add_parser(subparsers)
    yield from subparsers.choices[command]._actions


FLAGS = [
    pytest.param(command, action, id=f"{command} {action.option_strings[0]}")
    for command in COMMANDS
    for action in actions(command)
    if isinstance(action.type, Number)
]


def test_every_number_has_a_range():
    """``int`` and ``float`` take what no machine has: infinity, or a billion threads."""
    bare = [
        f"{command} {action.option_strings}"
        for command in COMMANDS
        for action in actions(command)
        if action.type in (int, float)
    ]
    assert not bare
    assert len(FLAGS) > 35


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize(("command", "action"), FLAGS)
def test_what_is_out_of_range_is_refused(command, action, text, capsys):
    flag = action.option_strings[0]
    with pytest.raises(SystemExit) as leaving:
        main([command, f"{flag}={text}"])
    said = capsys.readouterr().err
    assert leaving.value.code == 2
    assert said.count("\n") == 1 and len(said) < 300
    assert said.startswith(f"error: argument {flag}: {text[:40]}") and str(action.type) in said


@pytest.mark.parametrize(("command", "action"), FLAGS)
def test_both_ends_are_accepted_and_a_default_lies_between(command, action):
    kind = action.type
    for bound in (kind.low, kind.high):
        assert kind(str(bound)) == bound
        assert type(kind(str(bound))) is kind.kind
    if action.default not in (None, argparse.SUPPRESS):
        assert kind(str(action.default)) == action.default


def test_numbers():
    assert whole(1, 3)("2") == 2 and number(0, 1)("0.5") == 0.5
    assert str(whole(1, 2**63)) == f"a whole number from 1 to {2**63}"
    for kind, text in ((whole(1, 3), "2.0"), (whole(1, 3), "4"), (number(0, 1), "1.0001")):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
            kind(text)


def test_ranges_are_those_of_what_they_are_for():
    """They are written again where nothing heavy is imported."""
    assert numbers.MAX_STEPS == MAX_STEPS
    assert numbers.MIN_PAIRS == compare.MIN_PAIRS
    fps = next(action for action in actions("generate") if "--fps" in action.option_strings)
    if isinstance(fps.type, Number):
        assert (fps.type.low, fps.type.high) == (MIN_FPS, MAX_FPS)


@pytest.mark.parametrize("text", ["0", "-1x2", "9" * 5000 + "x16", "16x", "axb", "", "16x16x16"])
def test_a_size_that_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        parse_size(text)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "shape",
    ["L=0", "L=1,0", "L=0:4:1", "L=" + "9" * 5000, f"L={2**31}", "L=1:2147483647:1", "L=4:1:1",
     "L=1:4:0", "L=nan", "L=-1", "L=1e9", "=3", "L"],
)  # fmt: skip
def test_a_shape_that_is_none(shape, capsys):
    assert main(["bench", "add_norm", "--device", "cpu", "--shape", shape]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --shape") and said.count("\n") == 1 and len(said) < 300


@pytest.mark.parametrize("seconds", ["nan", "-1", "0", "", "soon"])
def test_a_deadline_that_is_none(seconds, capsys):
    options = ["--portrait", "a.png", "--audio", "a.wav", "--output", "o.mp4"]
    code = main(["generate", *options, "--nproc", "2", "--deadline", f"load={seconds}"])
    assert code == 2 and "--deadline load=" in capsys.readouterr().err
