"""Mixtures of experts as linears: the 3-D tensors into which transformers fuses experts, taken apart.

A module that transformers marks as holding experts (`use_experts_implementation`) says itself how its tensors lie: transposed or not,
gate and up one after the other or in turn, with biases or without. No family is listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cut:
    """Where one expert's tensor lies in one of the fused ones, `[experts, ...]`.

    Attributes:
        fused: name of that tensor within its module.
        expert: index.
        outputs: of that expert's slice, as `[out, in]` or `[out]`.
        transposed: whether the slice is stored as `[in, out]`.
    """

    fused: str
    expert: int
    outputs: slice
    transposed: bool

    def of(self, expert: Tensor) -> Tensor:
        """A view of the expert's own slice: `[out, in]` or `[out]`."""
        return (expert.t() if self.transposed else expert)[self.outputs]


@dataclass(frozen=True)
class FusedExperts:
    """How a module of transformers holds its experts.

    Attributes:
        count: of experts.
        hidden, intermediate: features of their inputs and outputs, and between.
        gated: whether there is a gate beside the up projection; both are then one tensor, `gate_up_proj`.
        transposed: whether tensors are `[experts, in, out]` rather than `[experts, out, in]`.
        concatenated: whether all gates come before all ups, rather than in turn.
        bias: whether there are biases, `[experts, out]`.
    """

    count: int
    hidden: int
    intermediate: int
    gated: bool
    transposed: bool
    concatenated: bool
    bias: bool

    @classmethod
    def of(cls, module: nn.Module) -> FusedExperts | None:
        """The layout of a module that holds experts and nothing else; None for any other."""
        marks = [getattr(module, name, None) for name in ("has_gate", "is_transposed", "is_concatenated", "has_bias")]
        if None in marks or getattr(module, "has_post_expert_norm", False) or not hasattr(module, "_apply_gate"):
            return None
        gated, transposed, concatenated, bias = map(bool, marks)
        down = module._parameters.get("down_proj")
        if down is None or down.ndim != 3:
            return None
        count, hidden, intermediate = (int(down.shape[place]) for place in ((0, 2, 1) if transposed else (0, 1, 2)))
        made = cls(count, hidden, intermediate, gated, transposed, concatenated, bias)
        found = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
        return made if found == made.shapes() else None

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """`(out, in)` of an expert's linears, in the order of execution."""
        inner, outer = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        return {**({"gate_proj": inner} if self.gated else {}), "up_proj": inner, "down_proj": outer}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the fused tensors by their names."""
        first = "gate_up_proj" if self.gated else "up_proj"
        sizes = {first: ((1 + self.gated) * self.intermediate, self.hidden), "down_proj": (self.hidden, self.intermediate)}
        shapes = {
            name: (self.count, columns, rows) if self.transposed else (self.count, rows, columns)
            for name, (rows, columns) in sizes.items()
        }
        return shapes | ({f"{name}_bias": (self.count, rows) for name, (rows, _) in sizes.items()} if self.bias else {})

    def cuts(self) -> dict[str, Cut]:
        """Where every tensor of every expert lies, by its name here: `3.gate_proj.weight`."""
        cuts = {}
        for expert in range(self.count):
            for name in self.sizes:
                fused, rows = self._place(name)
                cuts[f"{expert}.{name}.weight"] = Cut(fused, expert, rows, self.transposed)
                if self.bias:
                    cuts[f"{expert}.{name}.bias"] = Cut(f"{fused}_bias", expert, rows, False)
        return cuts

    def fuse(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fused tensors of all experts' own, which are named as in `cuts`."""
        like = next(iter(tensors.values()))
        fused = {name: like.new_empty(shape) for name, shape in self.shapes().items()}
        for name, cut in self.cuts().items():
            cut.of(fused[cut.fused][cut.expert]).copy_(tensors[name])
        return fused

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """Outputs of both projections as the fused one would give them, `[tokens, 2 intermediate]`."""
        return torch.cat((gate, up), -1) if self.concatenated else torch.stack((gate, up), -1).flatten(-2)

    def _place(self, name: str) -> tuple[str, slice]:
        if not self.gated or name == "down_proj":
            return name, slice(None)
        second = name == "up_proj"
        if not self.concatenated:
            return "gate_up_proj", slice(int(second), None, 2)
        return "gate_up_proj", slice(second * self.intermediate, (1 + second) * self.intermediate)


class Expert(nn.Module):  # type: ignore[misc]
    """One expert: two or three linears, and the activation between them, which is the original module's own."""

    def __init__(self, layout: FusedExperts, tensors: dict[str, Tensor], activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._layout, self._activate = layout, activate
        for name in layout.sizes:
            self.add_module(name, _linear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias")))

    def forward(self, x: Tensor) -> Tensor:
        """`x [tokens, hidden]` to `[tokens, hidden]`."""
        first = self._layout.join(self.gate_proj(x), self.up_proj(x)) if self._layout.gated else self.up_proj(x)
        return self.down_proj(self._activate(first))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` of tensors that are there; its own constructor would draw values first, thousands of times."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return linear


class Experts(nn.Module):  # type: ignore[misc]
    """What stands in the place of a fused module: its experts by number, `0`, `1`, ..., each a module of linears.

    The sum of the visited experts is taken in their order, as transformers' eager implementation takes it.

    Attributes:
        layout: of the fused tensors.
        wide: experts that look at all tokens, for statistics; what they add for tokens not sent to them is dropped.
    """

    def __init__(self, fused: nn.Module, layout: FusedExperts) -> None:
        """Take over the experts of `fused`, as views of its tensors; it is left without them."""
        super().__init__()
        self.layout, self.wide = layout, frozenset[int]()
        parameters = dict(fused.named_parameters())
        fused._parameters.clear()
        activate: Any = fused._apply_gate if layout.gated else fused.act_fn
        cuts = layout.cuts()
        for number in range(layout.count):
            own = {name.partition(".")[2]: cut for name, cut in cuts.items() if cut.expert == number}
            tensors = {name: cut.of(parameters[cut.fused].detach()[number]) for name, cut in own.items()}
            self.add_module(str(number), Expert(layout, tensors, activate))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts, `[tokens, hidden]`; without values every expert gets as many tokens as there are.

        Args:
            hidden_states: `[tokens, hidden]`.
            top_k_index, top_k_weights: experts of each token and their weights, `[tokens, chosen]`.
        """
        output = torch.zeros_like(hidden_states)
        weights = top_k_weights.flatten()
        for number, visits in self._visits(top_k_index):
            tokens, expert = visits // top_k_index.shape[-1], self.get_submodule(str(number))
            values = expert(hidden_states)[tokens] if number in self.wide else expert(hidden_states[tokens])
            output.index_add_(0, tokens, (values * weights[visits, None]).to(output.dtype))
        return output

    def first_alone(self, hidden_states: Tensor, *routing: Tensor) -> Tensor:
        """What the first expert makes of all tokens, `[tokens, hidden]`, whatever the routing."""
        output: Tensor = self.get_submodule("0")(hidden_states.clone())
        return output

    def _visits(self, index: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every expert that has something to look at, with the places of its visits in the flat `index`."""
        chosen = index.flatten()
        order = chosen.argsort(stable=True)
        if index.is_meta:
            yield from ((number, order[: len(index)]) for number in range(self.layout.count))
            return
        counts = torch.bincount(chosen, minlength=self.layout.count).tolist()
        for number, visits in enumerate(order.split(counts)[: self.layout.count]):
            if len(visits) or number in self.wide:
                yield number, visits


def separate_experts(model: nn.Module) -> None:
    """Put an `Experts` in the place of every fused module of `model`; values are shared, not copied."""
    found = [(path, module, FusedExperts.of(module)) for path, module in model.named_modules()]
    for path, module, layout in found:
        if layout is not None:
            model.set_submodule(path, Experts(module, layout))


def find_experts(model: nn.Module) -> dict[str, Experts]:
    """The separated experts of `model` by module path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Experts)}


def first_expert(path: str) -> str:
    """Path of the first expert beside the one at `path`, all of which are alike."""
    return f"{path.rpartition('.')[0]}.0"


@contextmanager
def all_tokens_for(model: nn.Module, experts: set[str]) -> Iterator[None]:
    """Inside, the experts at these paths look at all tokens that come to their mixture; outputs stay what they are."""
    banks: dict[str, set[int]] = {}
    for path in experts:
        bank, _, number = path.rpartition(".")
        banks.setdefault(bank, set()).add(int(number))
    modules = {path: model.get_submodule(path) for path in banks}
    try:
        for path, module in modules.items():
            module.wide = frozenset(banks[path])
        yield
    finally:
        for module in modules.values():
            module.wide = frozenset()


@contextmanager
def noting_routing(model: nn.Module, block: str, noted: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the experts that each token of a block goes to, and their weights, are noted on the CPU: `PATH.index`, `PATH.weights`."""

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            noted.update({f"{path}.index": args[1].cpu().contiguous(), f"{path}.weights": args[2].cpu().contiguous()})

        return hook

    found = find_experts(model.get_submodule(block))
    handles = [experts.register_forward_pre_hook(note(f"{block}.{path}")) for path, experts in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def repeating_routing(model: nn.Module, noted: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, tokens go where `noted` says, for one forward on the tokens it was noted for.

    Which experts are the best is no continuous function of a token: rounding can send it elsewhere, where all is different.
    """

    def repeat(path: str) -> Callable[..., tuple[Tensor, ...]]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0], noted[f"{path}.index"].to(args[1].device), noted[f"{path}.weights"].to(args[2]))

        return hook

    handles = [
        experts.register_forward_pre_hook(repeat(path))
        for path, experts in find_experts(model).items()
        if f"{path}.index" in noted
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
