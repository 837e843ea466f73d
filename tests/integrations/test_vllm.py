"""vLLM over our checkpoints; runs where vLLM is installed (an environment of its own: docs/serving.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import featherweight as fw
from common import SMALL, TINY
from featherweight import api
from featherweight.integrations.vllm_shards import Shard
from featherweight.packed.dense import Dense
from featherweight.packed.integer import Integer

PROMPT = list(range(40, 72))
STEPS: dict[str, list[dict[str, Any]]] = {
    "integer": [{"method": "rtn", "bits": 4, "group_size": 32}],
    "spqr": [{"method": "spqr"}],
    "masked": [{"method": "magnitude", "pattern": "2:4"}, {"method": "rtn", "bits": 4, "group_size": 32}],
    "low rank": [{"method": "rtn", "bits": 3, "group_size": 32}, {"method": "low-rank", "rank": 8, "factor_iterations": 1}],
    "rotated": [{"method": "quip", "bits": 2, "passes": 1}],
    "rounded input": [{"method": "rtn", "bits": 8, "group_size": None, "symmetric": True}, {"method": "round-input"}],
    "floating": [{"method": "rtn", "grid": "nvfp4"}],
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", STEPS)
def test_the_same_tokens_as_transformers(kind: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vllm = pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # it wants a NUMA node for each rank otherwise
    folder = fw.compress(fw.plan("demo", {"name": "r", "steps": STEPS[kind]}, changes=SMALL), tmp_path / "out").folder
    engine = vllm.LLM(str(folder), enforce_eager=True, max_model_len=128, dtype="float32", tensor_parallel_size=ranks)
    asked = vllm.SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    found = list(engine.generate({"prompt_token_ids": PROMPT}, asked)[0].outputs[0].token_ids)
    ours = fw.load(folder, dtype=torch.float32).generate(
        torch.tensor([PROMPT]), max_new_tokens=16, do_sample=False, eos_token_id=-1
    )
    assert found == ours[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize(("name", "symmetric"), [("compressed-tensors", True), ("compressed-tensors", False), ("gptq", True)])
def test_exports_run_in_its_own_kernels(name: str, symmetric: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vllm = pytest.importorskip("vllm")
    for variable, value in {"ENABLE_V1_MULTIPROCESSING": "0", "CPU_KVCACHE_SPACE": "1", "PLUGINS": ""}.items():
        monkeypatch.setenv(f"VLLM_{variable}", value)  # none of our plug-in
    step = {"method": "gptq", "bits": 4, "group_size": 128, "symmetric": symmetric}
    folder = fw.compress(fw.plan("demo", {"name": "r", "steps": [step]}, changes=TINY), tmp_path / "out").folder
    ours = fw.load(folder, dtype=torch.float32)
    whole = ours.generate(torch.tensor([PROMPT]), max_new_tokens=16, do_sample=False, eos_token_id=-1)[0]
    engine = vllm.LLM(
        str(api.export(folder, name, tmp_path / name).folder), enforce_eager=True, max_model_len=128, dtype="float16"
    )
    asked = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    found = engine.generate({"prompt_token_ids": whole.tolist()}, asked)[0].prompt_logprobs[len(PROMPT) :]
    with torch.no_grad():
        expected = ours(whole[None]).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    for position, (token, told) in enumerate(zip(whole[len(PROMPT) :].tolist(), found, strict=True)):
        assert abs(told[token].logprob - float(expected[position, token])) < 0.03  # float16 all the way


def packed(kind: str, tmp_path: Path) -> Any:
    folder = fw.compress(fw.plan("demo", {"name": "r", "steps": STEPS[kind]}, changes=SMALL), tmp_path / "out").folder
    return fw.load(folder, dtype=torch.float32).model.layers[1].mlp.down_proj.packed


@pytest.mark.parametrize("kind", ["integer", "masked", "rotated"])
def test_shards_of_two_ranks_make_the_whole(kind: str, tmp_path: Path):
    weight = packed(kind, tmp_path)
    rows, inputs = weight.shape
    x = torch.randn(3, inputs, generator=torch.Generator().manual_seed(0))
    whole = weight.matmul(x)
    halves = [slice(0, rows // 2), slice(rows // 2, rows)]
    by_rows = torch.cat([Shard(weight, part, slice(0, inputs), torch.float32)(x) for part in halves], -1)
    assert torch.allclose(by_rows, whole, atol=1e-4)
    cuts = [slice(0, inputs // 2), slice(inputs // 2, inputs)]
    by_inputs = sum(Shard(weight, slice(0, rows), part, torch.float32)(x[:, part]) for part in cuts)
    assert torch.allclose(by_inputs, whole, atol=1e-4)


def test_a_shard_that_can_be_cut_holds_its_part_only():
    shard = Shard(Dense(torch.randn(8, 16)), slice(0, 4), slice(0, 8), torch.float32)
    assert shard.linear.packed.shape == (4, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize(
    "cut", [(slice(512, 1024), slice(0, 2048)), (slice(0, 1024), slice(1024, 2048))], ids=["half the rows", "half the inputs"]
)
def test_a_shard_on_a_card_runs_our_kernel(cut: tuple[slice, slice]):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (1024, 2048), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(1024, 16, generator=generator) * 0.01 + 0.001).half()
    weight = Integer.from_codes(codes, scales, torch.randint(0, 16, (1024, 16), generator=generator), 4, 128)
    shard = Shard(weight, *cut, torch.bfloat16).to("cuda")
    for tokens in (1, 17, 300):
        x = torch.randn(tokens, cut[1].stop - cut[1].start, generator=generator).to("cuda", torch.bfloat16)
        expected = x.cpu().double() @ weight.dequantize().double()[cut].T
        assert (shard(x).cpu().double() - expected).norm() < 0.01 * expected.norm()
        assert ".cuda." in type(shard.linear.prepared_for(x)).__module__


def test_what_is_loaded_goes_to_the_device_of_the_layer():
    pytest.importorskip("vllm")
    from featherweight.integrations.vllm_layers import _receive

    layer = torch.nn.Module()
    with torch.device("meta"):  # as vLLM makes a model on its device; files are read on the CPU
        _receive(layer, ["a"], {}, torch.float32)
    layer.weight.weight_loader(layer.weight, torch.ones(2, 3))
    assert layer.received["a"]["weight"].is_meta
