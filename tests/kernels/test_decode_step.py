"""The kernels of a decode step against their references: in Triton's interpreter everywhere, compiled where there is a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featherweight.kernels.decoding import Chosen, Heads
from featherweight.kernels.reference import decode_attention, decode_choice, decode_rows

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

#: batch, key heads, group, dim, length, position, whether heads are normed; caches of one and of several chunks a program.
ATTENTION = [
    (1, 2, 3, 32, 40, 0, False),
    (2, 2, 1, 32, 200, 70, True),
    (1, 1, 2, 64, 130, 64, False),
    (1, 1, 3, 32, 330, 329, True),
    (2, 1, 2, 32, 330, 63, False),
]
PRODUCTS = [
    {"inputs": 40, "outputs": 7},
    {"inputs": 96, "outputs": 24, "norm": True, "bias": True},
    {"inputs": 64, "outputs": 10, "residual": True},
    {"inputs": 130, "outputs": 9, "norm": True, "activation": "silu", "bias": True},
    {"inputs": 32, "outputs": 5, "activation": "gelu_tanh", "residual": True},
]


def drawn(generator, *shape):
    return torch.randn(*shape, generator=generator)


def compare_rows(kernels, device="cpu"):
    """Embedding, sum and norm, gate, and the fused product."""
    generator = torch.Generator().manual_seed(0)
    table, token = drawn(generator, 11, 24).to(device), torch.tensor([3, 10], device=device)
    for scale in (1.0, 2.5):
        expected = decode_rows.embed(table, token, scale, torch.empty(2, 24, device=device))
        torch.testing.assert_close(kernels.embed(table, token, scale, torch.empty_like(expected)), expected)
    for delta in (None, drawn(generator, 2, 24).to(device)):
        hidden, gain = drawn(generator, 2, 24).to(device), drawn(generator, 24).to(device)
        ours, theirs = hidden.clone(), hidden.clone()
        found = kernels.add_norm(ours, delta, gain, 1e-5, torch.empty_like(hidden))
        expected = decode_rows.add_norm(theirs, delta, gain, 1e-5, torch.empty_like(hidden))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours, theirs)
    both = drawn(generator, 2, 2 * 600).to(device)
    for activation in ("silu", "gelu_tanh"):
        expected = decode_rows.gate(both, activation, both.new_empty(2, 600))
        torch.testing.assert_close(kernels.gate(both, activation, both.new_empty(2, 600)), expected)
    for case in PRODUCTS:
        compare_product(kernels, generator, device, **case)


def compare_product(
    kernels, generator, device, inputs, outputs, norm=False, bias=False, residual=False, activation=None, shape=(4, 32, 1)
):
    """One shape and set of fusions of the product of a row."""
    count = outputs * (1 if activation is None else 2)
    x, weight, rest = drawn(generator, 1, inputs), drawn(generator, count, inputs), drawn(generator, 1, outputs)
    named = {
        "gain": drawn(generator, inputs).to(device) if norm else None,
        "eps": 1e-5,
        "bias": drawn(generator, count).to(device) if bias else None,
        "activation": activation,
    }
    x, weight = x.to(device), weight.to(device)
    ours, theirs = rest.clone().to(device), rest.clone().to(device)
    kernels.row_product(x, weight, ours, residual=ours if residual else None, shape=shape, **named)
    decode_rows.row_product(x, weight, theirs, residual=theirs if residual else None, **named)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def compare_attention(kernels, batch, keys, group, dim, length, position, normed, device="cpu"):
    """Two steps, the second of which must find what the first appended and scratch as the first found it."""
    generator = torch.Generator().manual_seed(1)
    gains = [drawn(generator, dim).to(device) if normed else None for _ in range(2)]
    heads = Heads(keys, group, dim, dim**-0.5, *gains, 1e-6)
    cosine, sine = drawn(generator, length, dim).to(device), drawn(generator, length, dim).to(device)
    cache = [drawn(generator, batch, keys, length, dim).to(device) for _ in range(2)]
    ours, theirs = [each.clone() for each in cache], [each.clone() for each in cache]
    scratch = kernels.make_scratch(heads, batch, length, torch.device(device))
    for here in (max(0, position - 1), position):
        qkv = drawn(generator, batch, (group + 2) * keys * dim).to(device)
        at = torch.tensor([here], dtype=torch.int32, device=device)
        found = kernels.attend(
            qkv, cosine, sine, *ours, at, heads, scratch, torch.full((batch, keys * group * dim), torch.nan, device=device)
        )
        expected = decode_attention.attend(qkv, cosine, sine, *theirs, at, heads, None, torch.empty_like(found))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


def compare_choice(choose_token, device="cpu"):
    """Largest logits, ties to the first, what is not finite, and draws that follow their seed."""
    generator = torch.Generator().manual_seed(2)
    logits = drawn(generator, 2, 2500).to(device)
    logits[0, 2100] = logits[0, 700] = 9.0
    ours, theirs = (Chosen.make(2, 8, 2500, torch.device(device)) for _ in range(2))
    for chosen, function in ((ours, choose_token), (theirs, decode_choice.choose_token)):
        chosen.position.fill_(3)
        function(logits, chosen)
        assert int(chosen.position) == 4 and chosen.history[:, 4].tolist() == chosen.token.tolist()
    assert ours.token.tolist() == theirs.token.tolist() and int(ours.token[0]) == 700
    logits[1, 5] = torch.nan
    choose_token(logits, ours)
    assert ours.history[:, 5].tolist() == [700, -1] and 0 <= int(ours.token[1]) < 2500
    ours.temperature.fill_(0.5)
    ours.seed.fill_(7)
    few = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).mul(0.5).to(device)
    drawn_tokens = draws(choose_token, few, ours)
    assert drawn_tokens == draws(choose_token, few, ours)
    shares = torch.bincount(torch.tensor(drawn_tokens), minlength=3) / len(drawn_tokens)
    assert (shares - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 0.2
    ours.seed.fill_(8)
    assert drawn_tokens != draws(choose_token, few, ours)


def draws(choose_token, logits, like, count=100):
    """Tokens drawn at successive positions from the same logits."""
    chosen = Chosen.make(1, count + 1, logits.shape[1], logits.device)
    chosen.temperature.copy_(like.temperature)
    chosen.seed.copy_(like.seed)
    for _ in range(count):
        choose_token(logits, chosen)
    return chosen.history[0, 1 : count + 1].tolist()


def test_the_references_choose_and_draw():
    compare_choice(decode_choice.choose_token)


def test_the_reference_attention_is_softmax_over_all_tokens():
    generator = torch.Generator().manual_seed(3)
    heads = Heads(2, 3, 16, 0.25)
    keys, values = drawn(generator, 1, 2, 12, 16), drawn(generator, 1, 2, 12, 16)
    qkv = drawn(generator, 1, 10 * 16)
    at, none, all_ones = torch.tensor([9]), torch.zeros(12, 16), torch.ones(12, 16)
    out = decode_attention.attend(qkv, all_ones, none, keys, values, at, heads, None, torch.empty(1, 96))
    q = qkv[:, :96].view(1, 6, 1, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, keys[:, :, :10].repeat_interleave(3, 1), values[:, :, :10].repeat_interleave(3, 1), scale=0.25
    )
    torch.testing.assert_close(out, expected.reshape(1, 96))
    assert torch.equal(keys[0, :, 9].flatten(), qkv[0, 96:128]) and torch.equal(values[0, :, 9].flatten(), qkv[0, 128:])


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled cases run here")
def test_in_the_interpreter():
    """Triton reads its switch when it is imported, hence the process of its own; few splits, so that programs walk chunks."""
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_decode_step import ATTENTION, compare_attention, compare_choice, compare_rows\n"
        "from featherweight.kernels.triton import decode_attention, decode_choice, decode_rows\n"
        "compare_rows(decode_rows); compare_choice(decode_choice.choose_token)\n"
        "[compare_attention(decode_attention, *case) for case in ATTENTION]\n"
        "decode_attention.SPLITS = 3\n"
        "[compare_attention(decode_attention, *case) for case in ATTENTION[3:]]\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]


@needs_triton
@needs_cuda
def test_rows_and_choice_compiled():
    from featherweight.kernels.triton import decode_choice as choice
    from featherweight.kernels.triton import decode_rows as rows

    compare_rows(rows, "cuda")
    compare_choice(choice.choose_token, "cuda")


@needs_triton
@needs_cuda
@pytest.mark.parametrize("splits", [3, 64])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_compiled(case, splits, monkeypatch):
    from featherweight.kernels.triton import decode_attention as attention

    monkeypatch.setattr(attention, "SPLITS", splits)
    compare_attention(attention, *case, device="cuda")
