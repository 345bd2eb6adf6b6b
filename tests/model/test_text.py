"""Text encoders: parity with the published umT5, tokens, and damaged files."""

import random
import re
import socket
from pathlib import Path

import pytest
import torch
from encoder_samples import umt5_weights, write_tokenizer

from livetalk_kernels.errors import UserError
from livetalk_model.encoders.text import (
    MAX_TOKENS,
    RandomTextEncoder,
    TextEncoder,
    clean_prompt,
    load_tokenizer,
    load_umt5,
)
from livetalk_model.linear import Linear


def plain_umt5(weights: dict[str, torch.Tensor], ids: torch.Tensor, heads: int) -> torch.Tensor:
    """The encoder written plainly, in float64, for fewer than 17 tokens."""
    w = {key: value.double() for key, value in weights.items()}

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w[key]

    x = w["token_embedding.weight"][ids]
    step = torch.arange(len(ids))[None] - torch.arange(len(ids))[:, None]
    # 32 buckets: 16 for keys before or at the query, 16 after it; up to 7 apart one each, then
    # 8 to 15 apart log-spaced up to 128.
    far = 8 + (torch.log(step.abs().clamp(min=1) / 8) / torch.log(torch.tensor(16.0)) * 8).long()
    bucket = torch.where(step.abs() < 8, step.abs(), far.clamp(max=15)) + 16 * (step > 0)
    for layer in range(sum(key.endswith("norm1.weight") for key in w)):
        block = f"blocks.{layer}."
        h = norm(x, block + "norm1.weight")
        q, k, v = (
            (h @ w[block + f"attn.{name}.weight"].T).unflatten(-1, (heads, -1)) for name in "qkv"
        )
        scores = torch.einsum("qhd,khd->hqk", q, k)
        scores += w[block + "pos_embedding.embedding.weight"][bucket].permute(2, 0, 1)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + out @ w[block + "attn.o.weight"].T
        h = norm(x, block + "norm2.weight")
        gate = h @ w[block + "ffn.gate.0.weight"].T
        gate = torch.nn.functional.gelu(gate, approximate="tanh")
        x = x + (gate * (h @ w[block + "ffn.fc1.weight"].T)) @ w[block + "ffn.fc2.weight"].T
    return norm(x, "norm.weight")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "t5.pth"
    torch.save(umt5_weights(), path)
    return path


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_golden(small_golden, golden_checkpoint):
    tensors = small_golden("text")
    rows = int(tensors["mask"].sum())
    path = golden_checkpoint("t5_tiny")
    network = load_umt5(path, device="cpu", dtype=torch.float32)
    encoder = TextEncoder(network, None)
    expected = tensors["out_padded"][0, :rows]
    assert rows < tensors["ids"].shape[1]
    out = encoder.embed_ids(tensors["ids"][0, :rows])
    assert (out - expected).norm() <= 1e-4 * expected.norm()
    half = TextEncoder(load_umt5(path, device="cpu", dtype=torch.bfloat16), None)
    linears = [m for m in half._network.modules() if isinstance(m, torch.nn.Linear)]
    assert linears and {type(layer) for layer in linears} == {Linear}  # bf16 is not emulated
    out = half.embed_ids(tensors["ids"][0, :rows])
    assert out.dtype == torch.bfloat16
    # Attention without scaling saturates, so bf16 errs by 8 % (measured on the published code).
    assert (out.float() - expected).norm() <= 0.1 * expected.norm()


def test_formula(checkpoint):
    ids = torch.tensor([3, 7, 39, 0, 11, 12, 7, 7, 1, 25, 30, 2])
    network = load_umt5(checkpoint, device="cpu", dtype=torch.float32)
    out = TextEncoder(network, None).embed_ids(ids)
    torch.testing.assert_close(
        out.double(), plain_umt5(umt5_weights(), ids, heads=3), rtol=1e-4, atol=1e-5
    )


def test_prompt_to_rows(checkpoint, tokenizer_dir):
    encoder = TextEncoder.from_checkpoint(
        checkpoint, tokenizer_dir, device="cpu", dtype=torch.float32
    )
    out = encoder.encode("  a person\tis\n talking ")
    assert encoder.width == 32
    assert torch.equal(out, encoder.embed_ids(torch.tensor([3, 4, 5, 6, 1])))
    assert encoder.encode("").shape == (1, 32)


def test_tokenizer_never_asks_the_network(tokenizer_dir, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_tokenizer(tokenizer_dir)("a person")["input_ids"] == [3, 4, 1]


def test_long_prompt_is_cut_and_keeps_its_end(checkpoint, tokenizer_dir):
    encoder = TextEncoder.from_checkpoint(
        checkpoint, tokenizer_dir, device="cpu", dtype=torch.float32
    )
    out = encoder.encode("talking " * 1000)
    assert out.shape == (MAX_TOKENS, 32)
    ids = torch.tensor([6] * (MAX_TOKENS - 1) + [1])
    torch.testing.assert_close(out, encoder.embed_ids(ids))


def test_default_dtype_is_the_published_one(checkpoint, tokenizer_dir):
    encoder = TextEncoder.from_checkpoint(checkpoint, tokenizer_dir, device="cpu")
    assert encoder.encode("a person").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a\t person \n\n talks ", "a person talks"),
        ("Tom &amp;amp; Ann", "Tom & Ann"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("a\u00a0b\u3000c", "a b c"),
        ("Keep CASE, and _signs_!", "Keep CASE, and _signs_!"),
        ("", ""),
    ],
)
def test_clean_prompt(text, cleaned):
    assert clean_prompt(text) == cleaned


def test_clean_prompt_of_plain_text_is_that_of_ftfy():
    """Plain text is not given to ftfy, which would change nothing."""
    import ftfy

    draw = random.Random(0)
    printable = "".join(map(chr, range(32, 127))).replace("&", "")
    for text in (printable, *("".join(draw.choices(printable, k=80)) for _ in range(200))):
        assert clean_prompt(text) == re.sub(r"\s+", " ", ftfy.fix_text(text)).strip()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.attn.o.weight"), r"1 missing .blocks.1.attn.o.weight"),
        (lambda w: w.pop("token_embedding.weight"), "no matrix token_embedding.weight"),
        (lambda w: w.pop("blocks.0.attn.q.weight"), "no matrix blocks.0.attn.q.weight"),
        (lambda w: w.update({"norm.weight": torch.zeros(31)}), r"1 wrong .norm.weight: shape"),
        (lambda w: w.update({"decoder.weight": torch.zeros(1)}), r"1 unexpected .decoder"),
    ],
)
def test_damaged_weights(tmp_path, change, message):
    weights = umt5_weights()
    change(weights)
    torch.save(weights, tmp_path / "t5.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_umt5(tmp_path / "t5.pth", device="cpu", dtype=torch.float32)
    assert "\n" not in str(caught.value)
    assert "t5.pth" in str(caught.value)


def test_truncated_weights(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"t5.pth: truncated"):
        load_umt5(checkpoint, device="cpu", dtype=torch.float32)


def test_missing_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no such folder; copy google"):
        load_tokenizer(tmp_path / "google/umt5-xxl")


@pytest.mark.parametrize("content", [None, "", "{", '{"version": "1.0"}'])
def test_damaged_tokenizer(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    match = "the tokenizer file is empty" if content == "" else "not a usable tokenizer"
    with pytest.raises(UserError, match=match) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_random_encoder():
    encoder = RandomTextEncoder(width=64)
    out = encoder.encode("hello  world")
    assert out.shape == (12, 64)
    assert out.dtype == torch.float32
    assert 0.8 < out.std() < 1.2
    assert torch.equal(out, RandomTextEncoder(width=64).encode("hello world"))
    assert not torch.allclose(out, RandomTextEncoder(width=64, seed=1).encode("hello world"))
    assert not torch.allclose(out, encoder.encode("hello word!"))
    assert encoder.encode("\u00e9" * 400).shape == (MAX_TOKENS, 64)
    assert encoder.encode("").shape == (1, 64)
