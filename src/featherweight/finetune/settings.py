"""What `fw finetune` is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from featherweight.data.tasks import TASKS
from featherweight.errors import FeatherweightError

Task = Literal["lm", "distill", "rte", "winogrande"]
Part = Literal["norms", "factors", "outputs", "signs"]
Precision = Literal["float32", "bfloat16"]

#: Held out if nothing else is said: windows of a text, or examples of a task.
HELD_OUT_WINDOWS, HELD_OUT_EXAMPLES = 8, 64


@dataclass(frozen=True)
class Settings:
    """One training run.

    Attributes:
        task: "lm" for next-token cross entropy, "distill" for KL divergence from a teacher's logits, "rte" and "winogrande" for
            choosing the right answer.
        train: what is free: "norms", "factors" (of low-rank terms), "signs" (of rotations, stored anew as real vectors),
            "outputs" (of the outputs' rotations alone: a norm, or the outputs that make it, scales an input as well).
        rank: the leading ranks of every low-rank term that are free; rounded ones are first stored anew in 16 bits. None for
            whole factors that are stored dense already.
        epochs: passes over the windows or examples.
        learning_rate: the highest, of AdamW.
        warmup: share of the steps in which the rate rises linearly; it then falls linearly to 0.
        weight_decay: of AdamW.
        clipping: largest norm of the gradient.
        length: tokens of a window; of an example at most.
        samples: windows or examples trained on; None for all that are not held out.
        held_out: windows at the end of the text, or examples of the training split, that are measured on and never trained on;
            None for 8 windows or 64 examples.
        batch_size: windows or examples a step, of all processes together.
        every: steps from one measurement and checkpoint to the next; None for a tenth of the run.
        seed: of the choice and the order of windows or examples.
        precision: in which forwards and gradients of activations are computed; what is trained stays in float32.

    Raises:
        FeatherweightError: a setting outside these.
    """

    task: Task = "lm"
    train: tuple[str, ...] = ("norms", "factors")
    rank: int | None = None
    epochs: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.02
    weight_decay: float = 0.0
    clipping: float = 1.0
    length: int = 256
    samples: int | None = None
    held_out: int | None = None
    batch_size: int = 4
    every: int | None = None
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Check every setting."""
        named = (
            ("task", get_args(Task), (self.task,)), ("train", get_args(Part), self.train),
            ("precision", get_args(Precision), (self.precision,)),
        )  # fmt: skip
        for name, allowed, given in named:
            if not given or not set(given) <= set(allowed):
                raise FeatherweightError(f"unknown --{name}", found=", ".join(given), expected=", ".join(allowed))
        limits: dict[str, tuple[Any, str, bool]] = {
            "learning_rate": (self.learning_rate, "above 0", self.learning_rate > 0),
            "warmup": (self.warmup, "from 0 to 1", 0 <= self.warmup <= 1),
            "weight_decay": (self.weight_decay, "0 or more", self.weight_decay >= 0),
            "clipping": (self.clipping, "above 0", self.clipping > 0),
            "length": (self.length, "2 or more", self.length >= 2),
        }
        for name in ("rank", "epochs", "samples", "held_out", "batch_size", "every"):
            value = getattr(self, name)
            limits[name] = (value, "1 or more", value is None or value >= 1)
        for name, (value, expected, right) in limits.items():
            if not right:
                raise FeatherweightError(f"{name} is out of range", found=value, expected=expected)
        if self.rank is not None and "factors" not in self.train:
            raise FeatherweightError(
                "a rank without factors to train",
                found=f"--train {','.join(self.train)}",
                expected="--train factors with --rank",
            )

    @property
    def real_sides(self) -> tuple[str, ...]:
        """Sides of a weight whose rotations are trained as real vectors."""
        return ("input", "output") if "signs" in self.train else ("output",) if "outputs" in self.train else ()

    @property
    def has_examples(self) -> bool:
        """Whether the task is learned from questions with answers, not from a text."""
        return self.task in TASKS

    @property
    def measured_on(self) -> int:
        """Windows or examples held out."""
        return self.held_out or (HELD_OUT_EXAMPLES if self.has_examples else HELD_OUT_WINDOWS)

    def as_dict(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {**asdict(self), "train": sorted(self.train), "held_out": self.measured_on}
