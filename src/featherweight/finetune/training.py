"""The loop: AdamW in one process or several, measurements, checkpoints; a killed run goes on bit for bit on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.finetune.free import put, taken
from featherweight.finetune.objective import Objective, measured
from featherweight.finetune.processes import Processes
from featherweight.finetune.settings import Settings
from featherweight.packed.files import write

CHECKPOINT = "finetune-checkpoint.safetensors"

#: `report(step, steps, training loss since the last report, held-out loss)`.
Report = Callable[[int, int, float, float], None]


@dataclass
class State:
    """Where a run stands.

    Attributes:
        best: values of the free parameters with the lowest held-out loss so far.
        history: `(step, mean training loss since the entry before, held-out loss)`; the first is before training.
        step: steps done.
        stopped: why it ended early; "" if it did not.
    """

    best: dict[str, Tensor]
    history: list[tuple[float, float, float]]
    step: int = 0
    stopped: str = ""
    best_step: int = field(init=False, default=0)

    def note(self, step: int, training: float, held_out: float, free: Mapping[str, nn.Parameter]) -> None:
        """Add a measurement; the best state is kept."""
        if held_out < min(entry[2] for entry in self.history):
            self.best, self.best_step = taken(free), step
        self.history.append((step, training, held_out))


@dataclass(frozen=True)
class Training:
    """One run's parts.

    Attributes:
        free: the trained parameters.
        loss: of a batch.
        windows: trained on, `[n, length]`; or examples as `encode` makes them.
        held_out: measured on, likewise.
        folder: of the checkpoint.
        processes: that share every batch.
    """

    free: Mapping[str, nn.Parameter]
    loss: Objective
    windows: Tensor
    held_out: Tensor
    settings: Settings
    folder: Path
    processes: Processes

    @property
    def batches(self) -> list[Tensor]:
        """Indices of the windows of every step, each epoch in an order of its own."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        orders = [torch.randperm(len(self.windows), generator=generator) for _ in range(self.settings.epochs)]
        return [batch for order in orders for batch in order.split(self.settings.batch_size)]

    def measure(self) -> float:
        """The held-out loss."""
        return measured(self.loss, self.held_out, self.settings.batch_size, self.processes.device, self.processes)

    def run(self, report: Report) -> State:
        """Train to the end, or until a loss is not finite; goes on from the folder's checkpoint.

        Every process sums the gradients of all, and so takes the same steps.

        Raises:
            FeatherweightError: the loss is not finite before the first step.
        """
        settings, batches, parameters = self.settings, self.batches, list(self.free.values())
        adam = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        state = self._begin(adam)
        every = settings.every or max(1, len(batches) // 10)
        losses: list[float] = []
        while state.step < len(batches) and not state.stopped:
            adam.param_groups[0]["lr"] = settings.learning_rate * rate(state.step, len(batches), settings.warmup)
            losses.append(self._gradients(self.windows[batches[state.step]]))
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.clipping))
            if not (math.isfinite(losses[-1]) and math.isfinite(norm)):
                state.stopped = f"loss {losses[-1]}, gradient norm {norm} at step {state.step + 1}"
                break
            adam.step()
            adam.zero_grad()
            state.step += 1
            if state.step % every == 0 or state.step == len(batches):
                training, held_out = sum(losses) / len(losses), self.measure()
                losses.clear()
                if not math.isfinite(held_out):
                    state.stopped = f"held-out loss {held_out} after step {state.step}"
                    break
                state.note(state.step, training, held_out, self.free)
                if self.processes.writes:
                    report(state.step, len(batches), training, held_out)
                    self._keep(state, adam)
        return state

    def _gradients(self, batch: Tensor) -> float:
        """Loss of the batch, its gradients in the parameters; each process computes its share of both."""
        part, total = self.processes.share(batch), torch.zeros((), device=self.processes.device)
        if len(part):
            loss = self.loss(part.to(self.processes.device)) * (len(part) / len(batch))
            loss.backward()
            total += loss.detach()
        self.processes.sum_gradients(self.free.values())
        return float(self.processes.sum(total))

    def _begin(self, adam: torch.optim.Optimizer) -> State:
        path = self.folder / CHECKPOINT
        if not path.is_file():
            before = self.measure()
            if not math.isfinite(before):
                raise FeatherweightError("the loss is not finite before training", found=before, expected="a sound output")
            return State(taken(self.free), [(0, math.nan, before)])
        held = load_file(path)
        put(self.free, {name: held[f"now.{name}"] for name in self.free})
        names = ("step", "exp_avg", "exp_avg_sq")
        moments = {
            index: {each: held[f"{each}.{name}"] for each in names} for index, name in enumerate(self.free)
        }  # fmt: skip
        adam.load_state_dict({"state": moments, "param_groups": adam.state_dict()["param_groups"]})
        best = {name: held[f"best.{name}"].to(self.processes.device) for name in self.free}
        state = State(best, [tuple(row) for row in held["history"].tolist()], int(held["steps"][0]))
        state.best_step = int(held["steps"][1])
        return state

    def _keep(self, state: State, adam: torch.optim.Optimizer) -> None:
        held = {f"best.{name}": tensor for name, tensor in state.best.items()}
        for name, parameter in self.free.items():
            held[f"now.{name}"] = parameter.detach()
            held |= {f"{each}.{name}": tensor for each, tensor in adam.state[parameter].items()}
        held["steps"] = torch.tensor([state.step, state.best_step])
        held["history"] = torch.tensor(state.history, dtype=torch.float64)
        write(self.folder / CHECKPOINT, held)


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate at `step`: a linear rise over the warm-up, then a linear fall to 0."""
    rising = math.ceil(steps * warmup)
    return (step + 1) / rising if step < rising else (steps - step) / max(steps - rising, 1)
