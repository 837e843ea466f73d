"""What `torchrun` says about this process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from featherweight.errors import FeatherweightError

#: The words in which it says it.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: Verbs whose work is shared among processes.
_SHARED = ("compress", "statistics", "finetune")


def launched() -> int:
    """How many processes were started together; 1 without `torchrun`."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TOLD) else 1


def leads() -> bool:
    """Whether this process is the first of them: the one that writes and prints."""
    return launched() == 1 or os.environ["RANK"] == "0"


def require_shared(words: Sequence[str]) -> None:
    """Refuse verbs that several processes would each do whole.

    Args:
        words: of the command line.

    Raises:
        FeatherweightError: naming those that share their work.
    """
    if launched() > 1 and words and not words[0].startswith("-") and words[0] not in _SHARED:
        raise FeatherweightError(
            f"fw {words[0]} runs in one process", found=f"{launched()} of them", expected=f"fw {words[0]} without torchrun",
            fix=f"torchrun shares the work of {', '.join(_SHARED)}",
        )  # fmt: skip
