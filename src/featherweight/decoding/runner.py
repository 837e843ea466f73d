"""Reading prompts and making tokens by a decode step of our own; on a GPU every step is the replay of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from featherweight.decoding.coded_cache import CodedCache
from featherweight.decoding.reading import read_decoder
from featherweight.decoding.sampling import Sampling
from featherweight.decoding.slots import slots
from featherweight.decoding.step import Step
from featherweight.errors import FeatherweightError
from featherweight.kv_cache import attached

#: Relative to the logits' norm, of a step's logits against the model's own for the same token.
BOUNDS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

#: Tokens that the smallest graph reaches; the next ones reach twice as many each.
SMALLEST_REACH = 512

#: Steps before a capture, in which kernels are compiled.
WARM_UP = 2


def open_runner(
    model: Any, ids: Tensor, length: int, *, sampling: Sampling | None = None, seed: int = 0
) -> tuple[Runner | None, str]:
    """A runner that has read `ids [batch, tokens]` and has room for `length`; or None, and why none runs this model.

    Its first step's logits are compared with the model's own: a model may compute something else than its modules look like.
    """
    try:
        runner = Runner(model, ids.shape[0], length)
        runner.sample(sampling or Sampling(), seed)
        runner.read(ids)
        difference = runner.compare() if ids.shape[1] < length else 0.0
    except FeatherweightError as problem:
        return None, f"{problem.error} ({problem.found})"
    if not difference <= BOUNDS[runner.step.decoder.dtype]:
        return None, f"its step gives other logits than the model, by {difference:.1e} of their norm"
    return runner, ""


class Runner:
    """Sequences of equal length over one static cache, of exact keys and values or, where codecs are attached, of codes.

    Prompts are read by the model's own forward; `open_runner` also compares the first step with the model's.

    Args:
        model: a transformers causal model; linears that share an input are stored stacked from here on, their values unchanged.
        batch: sequences.
        length: tokens that the cache holds of each; `grow` gives it more.
        graphs: whether steps are captured; only on a GPU.

    Attributes:
        step: the step and its buffers.
        difference: of the first step's logits from the model's own, relative to their norm; None where they were not compared.

    Raises:
        FeatherweightError: a model whose modules are not what a step computes.
    """

    def __init__(self, model: Any, batch: int, length: int, *, graphs: bool = True) -> None:
        self.model = model
        self._coded = None if attached(model) is None else CodedCache(model, length)
        self.step = Step(read_decoder(model, batch, length), batch, length, self._coded)
        self._graphs_wanted = graphs and self.step.device.type == "cuda"
        self._graphs: dict[tuple[Any, ...], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._held = 0
        self._sampling = Sampling(), 0
        self.difference: float | None = None

    def get_seq_length(self) -> int:
        """Tokens in the cache, as transformers' caches call it."""
        return self._held

    def crop(self, count: int) -> None:
        """Leave `count` tokens in the cache, or all but the last `-count`."""
        left = max(0, self._held + count) if count < 0 else min(count, self._held)
        if self._coded is not None and left < self._held:
            self._coded.crop(self._held, left)
            self._enter()
        self._held = left

    @property
    def nbytes(self) -> int:
        """Bytes of the static cache, or of the codes and exact tokens held."""
        if self._coded is not None:
            return self.compressed.nbytes
        return sum(tensor.nbytes for tensor in [*self.step.keys, *self.step.values])

    @property
    def compressed(self) -> Any:
        """The `CompressedCache` with what it holds by now; None where keys and values are exact."""
        if self._coded is None:
            return None
        self._coded.leave(self._held)
        return self._coded.cache

    def sample(self, sampling: Sampling, seed: int) -> None:
        """From now on choose tokens so, on the device."""
        chosen = self.step.chosen
        for tensor, value in zip(
            (chosen.temperature, chosen.top_k, chosen.top_p, chosen.seed),
            (sampling.temperature, sampling.top_k, sampling.top_p, seed % 2**31),
            strict=True,
        ):
            tensor.fill_(value)
        self.step.cuts = sampling.cuts
        self._sampling = sampling, seed

    def grow(self, length: int) -> None:
        """Make room for `length` tokens of each sequence; steps are captured anew."""
        if length <= self.step.length:
            return
        old = self.step
        self._graphs.clear()
        if self._coded is not None:
            self._coded.leave(self._held)
            self._coded.length = length
            self._enter()
        self.step = Step(old.decoder, old.batch, length, self._coded)
        for new, before in zip([*self.step.keys, *self.step.values], [*old.keys, *old.values], strict=True):
            new[:, :, : self._held] = before[:, :, : self._held]
        self.sample(*self._sampling)

    @torch.no_grad()
    def read(self, ids: Tensor) -> None:
        """Read `ids [batch, tokens]` behind what the cache holds, and choose the token that follows.

        Raises:
            FeatherweightError: no room.
        """
        held = self._held + ids.shape[1]
        if held > self.step.length:
            raise FeatherweightError(
                "the static cache is full", found=f"{held} tokens", expected=f"at most {self.step.length}", fix="grow it first"
            )
        if self._coded is not None:
            self._coded.leave(self._held)
        self.step.logits = self._forward(ids, self._held).contiguous()
        self._enter()
        self.step.chosen.position.fill_(held - 1)
        self.step.choose()
        self._held = held

    @torch.no_grad()
    def advance(self) -> None:
        """Read the chosen token and choose the next; the host does not wait.

        Raises:
            FeatherweightError: no room.
        """
        if self._held >= self.step.length:
            raise FeatherweightError("the static cache is full", found=f"{self._held} tokens", fix="grow it first")
        reach = min(self.step.length, max(SMALLEST_REACH, 1 << self._held.bit_length()))
        if self._graphs_wanted:
            key = (reach, *self.step.cuts)
            if key not in self._graphs:
                self._graphs[key] = self._capture(reach)
            self._graphs[key].replay()
        else:
            self.step.run(reach)
        self._held += 1

    def tokens(self, count: int) -> Iterator[list[int]]:
        """The chosen tokens of all sequences, then those of `count` − 1 further steps, each while the next one runs.

        Ending the iteration early leaves one more token in the cache than was handed out.

        Raises:
            FeatherweightError: logits that are not finite.
        """
        marks = [self._mark()]
        for number in range(count):
            if number + 1 < count:
                self.advance()
                marks.append(self._mark())
            place, event = marks.pop(0)
            if event is not None:
                event.synchronize()
            made = self.step.chosen.history[:, place].tolist()
            if min(made) < 0:
                raise FeatherweightError(
                    "the logits are not finite", found=f"NaN or Inf at generated token {number}", expected="finite logits",
                    fix="run in float32 or bfloat16; check the compressed weights",
                )  # fmt: skip
            yield made

    def _mark(self) -> tuple[int, torch.cuda.Event | None]:
        """Where the token that was just chosen is written, and when."""
        if self.step.device.type != "cuda":
            return self._held, None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.step.device))
        return self._held, event

    def _enter(self) -> None:
        """Hand a cache in code to the steps."""
        if self._coded is not None and self._coded.enter():
            self._graphs.clear()

    def _forward(self, ids: Tensor, held: int) -> Tensor:
        cache = slots(self.step.keys, self.step.values, held) if self._coded is None else self._coded.cache
        logits: Tensor = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1]

    @torch.no_grad()
    def compare(self) -> float:
        """How far the next step's logits are from the model's own for the same token; the step that follows writes all of it anew."""
        expected = self._forward(self.step.chosen.token[:, None], self._held).float()
        found = self.step.forward(self.step.length).float()
        self.difference = float((found - expected).norm() / expected.norm())
        return self.difference

    def _capture(self, reach: int) -> torch.cuda.CUDAGraph:
        """Record a step that reaches `reach` tokens; what it is at stays as it was."""
        device, chosen = self.step.device, self.step.chosen
        kept = [(tensor, tensor.clone()) for tensor in (chosen.token, chosen.position)]
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.step.run(reach)
                for tensor, before in kept:
                    tensor.copy_(before)
        current.wait_stream(side)
        torch.cuda.synchronize(device)
        with torch.cuda.graph(graph, pool=self._pool, stream=side):
            self.step.run(reach)
        self._pool = self._pool or graph.pool()
        return graph
