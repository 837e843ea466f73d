"""Draws cut by top-k and top-p: the cut is that of transformers, the tokens come as often as their probabilities say."""

import dataclasses
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from featherweight.decoding.sampling import Sampling
from featherweight.errors import FeatherweightError
from featherweight.kernels.decoding import Chosen
from featherweight.kernels.reference import decode_choice

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

#: top_k and top_p.
CUTS = [(4, 1.0), (0, 0.7), (12, 0.9), (1, 0.2), (400, 0.999)]


def logits_of(rows, vocabulary, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(vocabulary)
    return (2 * torch.randn(rows, vocabulary, generator=generator)).to(device, dtype)


def chosen_of(rows, vocabulary, top_k, top_p, device="cpu", temperature=0.8):
    chosen = Chosen.make(rows, 4, vocabulary, torch.device(device))
    for tensor, value in ((chosen.temperature, temperature), (chosen.top_k, top_k), (chosen.top_p, top_p), (chosen.seed, 5)):
        tensor.fill_(value)
    return chosen


def chi_square(choose_token, top_k, top_p, rows=400, device="cpu", dtype=torch.bfloat16):
    """Tokens of many rows with the same logits: how often each comes, against its probability."""
    logits = logits_of(1, 20, dtype, device).expand(rows, -1).contiguous()
    chosen, sampling = chosen_of(rows, 20, top_k, top_p, device), Sampling(0.8, top_k, top_p)
    choose_token(logits, chosen, sampling.cuts)
    scores = decode_choice.cut_logits(logits[0].double().cpu() / 0.8, top_k, top_p)
    expected = rows * torch.softmax(scores, -1)
    counts = torch.bincount(chosen.token.cpu(), minlength=20).double()
    assert counts[expected == 0].sum() == 0
    often = expected > 5
    observed = torch.cat((counts[often], counts[~often].sum()[None]))
    wanted = torch.cat((expected[often], expected[~often].sum()[None]))
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    free = max(1, len(wanted) - 1)
    assert ((observed - wanted).square() / wanted).sum() < free + 5 * (2 * free) ** 0.5  # about one in 10⁵


DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def compare_launches(device="cpu", vocabularies=(37, 4500), cuts=CUTS, dtypes=DTYPES, rows=40):
    """In two parts and more, in 16 and 32 bits: what is drawn is what transformers keeps, and of few all that it keeps."""
    from featherweight.kernels.triton.decode_choice import choose_token

    for dtype, vocabulary in itertools.product(dtypes, vocabularies):
        logits, used = logits_of(2, vocabulary, dtype, device), chosen_of(2, vocabulary, 0, 1.0, device)
        for top_k, top_p in cuts:  # the sums of one search are not those of the next
            chosen = dataclasses.replace(chosen_of(2, vocabulary, top_k, top_p, device), cut=used.cut)
            kept = decode_choice.cut_logits(logits.double() / 0.8, top_k, top_p).isfinite()
            for _ in range(3):
                choose_token(logits, chosen, Sampling(0.8, top_k, top_p).cuts)
                assert kept.gather(1, chosen.token[:, None]).all(), (dtype, vocabulary, top_k, top_p)
    few = torch.tensor([[64.0, 66, 65, 63, 67, -500]], device=device, dtype=torch.bfloat16) / 64
    logits = few.expand(rows, -1).contiguous()
    for top_k, top_p, expected in ((3, 1.0, {1, 2, 4}), (0, 0.39, {1, 4}), (4, 0.55, {1, 2, 4})):
        chosen = chosen_of(rows, 6, top_k, top_p, device, temperature=1.0)
        choose_token(logits, chosen, Sampling(1.0, top_k, top_p).cuts)
        assert set(chosen.token.tolist()) == expected, (top_k, top_p)


@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
def test_the_cut_is_that_of_transformers(top_k, top_p):
    scores = logits_of(6, 300, torch.float32)
    expected = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    assert torch.equal(decode_choice.cut_logits(scores, top_k, top_p).isfinite(), expected.isfinite())


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), *CUTS])
def test_the_reference_draws_by_probability(top_k, top_p):
    chi_square(decode_choice.choose_token, top_k, top_p, 4000)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled cases run here")
def test_cuts_in_the_interpreter():
    """In parts of 64 logits, of which the interpreter makes tables."""
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from featherweight.kernels import decoding; decoding.CUT_BLOCK = 64\n"
        "import torch; from test_decode_cut import CUTS, chi_square, compare_launches\n"
        "from featherweight.kernels.triton.decode_choice import choose_token\n"
        "chi_square(choose_token, 0, 0.7, 40)\n"
        "compare_launches('cpu', (100,), CUTS[1:4:2] + CUTS[2:3], (torch.bfloat16, torch.float32), 12)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuts_compiled():
    from featherweight.kernels.triton.decode_choice import choose_token

    for dtype in (torch.bfloat16, torch.float32):
        for top_k, top_p in [(0, 1.0), *CUTS]:
            chi_square(choose_token, top_k, top_p, 20000, "cuda", dtype)
    compare_launches("cuda", (37, 4500, 128256))


def test_settings_that_mean_nothing_are_refused():
    for settings in ((-1.0,), (1.0, -1), (1.0, 0, 0.0), (1.0, 0, 1.5)):
        with pytest.raises(FeatherweightError, match="impossible generation settings"):
            Sampling(*settings)
