"""Perplexity of a compressed mixture of experts: width, and whose tokens each expert is calibrated on.

    python benchmarks/experts.py make MODEL [--seconds 180]
    python benchmarks/experts.py measure MODEL [--output FOLDER]

No small trained mixture is at hand, so `make` grows one out of the packaged Llama: the layout of Mixtral, every MLP copied into 8
experts with noise of 0.3 of its weights' spread on each copy, a random router, 2 experts a token. It is then trained on the packaged
calibration text, with the usual loss that balances the experts, until the time is up. `measure` compresses it by every recipe below
and scores the reloaded files on the packaged held-out text.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import featherweight as fw
from featherweight.data.corpora import load_corpus
from featherweight.models.source import resolve_model

EXPERTS, CHOSEN, NOISE = 8, 2, 0.3
LENGTH, BATCH, RATE = 256, 8, 3e-4  # tokens of a window, windows of a step, learning rate

#: Experts that saw fewer tokens than this times their inputs are calibrated on all tokens.
POLICIES = {"its own tokens": 0.0, "all if fewer than inputs": 1.0, "all tokens": 1e9}


def grown(llama: Any) -> Any:
    """A Mixtral whose experts are noisy copies of the Llama's MLPs."""
    from transformers import MixtralConfig, MixtralForCausalLM

    told = llama.config.to_dict()
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "bos_token_id",
            "eos_token_id")  # fmt: skip
    config = MixtralConfig(**{name: told[name] for name in same}, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN)
    model, state = MixtralForCausalLM(config), llama.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.copy_(state[name])
            elif "experts" in name:
                mlp = name.partition("experts")[0]
                parts = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
                copied = torch.cat([state[f"{mlp}{part}.weight"].float().cpu() for part in parts])
                parameter.copy_(copied + NOISE * copied.std() * torch.randn(parameter.shape))
            else:  # the router
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return model


def make(folder: Path, seconds: float, device: str) -> None:
    """Grow, train and save the mixture."""
    torch.manual_seed(0)
    llama = fw.load("demo", dtype=torch.float32).to(device)
    tokenizer = resolve_model("demo").tokenizer()
    tokens = torch.tensor(tokenizer(load_corpus("sample", split="calibration").text)["input_ids"], device=device)
    texts = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    print(f"{texts.numel()} tokens of text", flush=True)
    model = grown(llama).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    started, step = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * max(0.02, 1 - spent / seconds)
        batch = texts[torch.randint(len(texts), (BATCH,), device=device)]
        loss = model(input_ids=batch, labels=batch, output_router_logits=True).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    print(f"{step} steps of {BATCH * LENGTH} tokens, last loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipes() -> list[tuple[str, dict[str, Any]]]:
    """What is measured: a name, and a recipe."""

    def gptq(bits: int, samples: int, policy: str) -> tuple[str, dict[str, Any]]:
        step = {"method": "gptq", "bits": bits, "group_size": 128, "order": "static"}
        told = {"samples": samples, "length": LENGTH}
        name = f"gptq {bits}-bit, {samples * LENGTH:,} tokens, {policy}"
        return name, {"steps": [step], "calibration": told, "engine": {"expert_tokens": POLICIES[policy]}}

    def rtn(bits: int) -> tuple[str, dict[str, Any]]:
        return f"rtn {bits}-bit", {"steps": [{"method": "rtn", "bits": bits, "group_size": 128}]}

    own, usual, everyone = POLICIES
    few, many = 8, 64
    return [
        rtn(4), gptq(4, many, own), rtn(3), gptq(3, many, own), gptq(3, few, own), gptq(3, few, everyone), gptq(3, few, usual),
        gptq(3, many, everyone),
    ]  # fmt: skip


def measure(model: Path, output: Path | None, windows: int) -> None:
    """A row for every recipe, and the dense model first."""
    rows = [{"recipe": "dense", **scored(model, None, windows)}]
    for name, recipe in recipes():
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            result = fw.compress(fw.plan(model, recipe), Path(folder) / "out", statistics=Path(folder) / "statistics")
            routed = [row.measured for row in result.rows if "calibrated_on" in row.measured]
            rows.append({
                "recipe": name, **scored(Path(folder) / "out", model, windows), "bits": round(result.totals.linear_bits, 3),
                "linears": len(routed), "on all tokens": sum(row["calibrated_on"] == "all tokens" for row in routed),
                "fewest tokens": min((row["tokens"] for row in routed), default=""),
                "seconds": round(time.perf_counter() - started, 1),
            })  # fmt: skip
        print(rows[-1], flush=True)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            with (output / "experts.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
                writer.writeheader()
                writer.writerows(rows)


def scored(folder: Path, against: Path | None, windows: int) -> dict[str, float]:
    """Perplexity, and divergence from the dense model."""
    found = {each.name: each.value for each in fw.evaluate(folder, against=against, length=512, windows=windows)}
    print(f"{folder.name}: {found}", flush=True)
    return {"perplexity": round(found["perplexity"], 3), **({"kl": round(found["kl"], 5)} if "kl" in found else {})}


def main() -> None:
    """Make or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("make", "measure"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--output", type=Path)
    told = parser.parse_args()
    if told.verb == "make":
        make(told.model, told.seconds, told.device)
    else:
        measure(told.model, told.output, told.windows)


if __name__ == "__main__":
    main()
