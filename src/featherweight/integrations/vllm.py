"""vLLM serves our checkpoints from their packed bytes; `register` is the entry point `vllm.general_plugins`.

Importing this module imports nothing of vLLM.
"""

from __future__ import annotations

from featherweight.integrations.config import METHOD


def register() -> None:
    """Tell vLLM of our `quant_method`; may be called again, as vLLM does in each of its processes."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    if METHOD in QUANTIZATION_METHODS:
        return
    from featherweight.integrations.vllm_layers import register_config

    register_config()
