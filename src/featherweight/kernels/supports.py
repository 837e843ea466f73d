"""Whether a kernel runs for a signature on a device, and why not, in words."""

from __future__ import annotations

import importlib
import importlib.util

import torch

from featherweight.kernels.kernel import Signature, Support

#: Beside the storages of which the lattice kernels put together what they stored.
LATTICE = "featherweight.packed.lattice"


#: Share of a card's memory below which what is smaller is preferred to what is faster.
SCARCE = 0.25


def always(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Everywhere."""
    return True, "plain torch: the reference, on every device"


def triton_sweep(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Blocks of columns of the walk."""
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if signature.get("columns", 0) > 128:
        return False, f"at most 128 columns to a block, not {signature['columns']}"
    return True, "one launch per block of columns"


def cuda_integer(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `kernels/cuda` reads of plain integer codes."""
    if signature.get("kind") != "integer":
        return False, f"for integer codes, not for {signature.get('kind')}"
    return on_hopper("integer", signature, device)


def in_chunks(storage: str) -> Support:
    """Weights that a module of `kernels/cuda` reads in chunks."""
    return lambda signature, device: on_hopper(storage, signature, device)


def in_bits(storage: str) -> Support:
    """The same, where the module knows how many bits a weight takes on the card."""

    def supports(signature: Signature, device: torch.device) -> tuple[bool, str]:
        runs, reason = on_hopper(storage, signature, device)
        module = importlib.import_module(f"featherweight.kernels.cuda.{storage}")
        return runs, f"{reason}; {module.resident_bits(signature):.2f} bits a weight stay on the card" if runs else reason

    return supports


def in_little_room(storage: str) -> Support:
    """The same of masked codes, where all of them have no kernel or would leave a card too little room."""

    def supports(signature: Signature, device: torch.device) -> tuple[bool, str]:
        runs, reason = in_bits(storage)(signature, device)
        if not runs or not cuda_integer(signature["values"], device)[0]:
            return runs, reason
        free, total = torch.cuda.mem_get_info(device)
        if free >= SCARCE * total:
            return (
                False,
                f"slower than all codes, for cards of which less than {SCARCE:.0%} is free, not {free / total:.0%}; {reason}",
            )
        return True, reason

    return supports


def on_hopper(storage: str, signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What a module of `kernels/cuda` reads, on Hopper and later, where a compiler is at hand."""
    if "kind" not in signature:
        return False, "no description of a weight"
    if against := importlib.import_module(f"featherweight.kernels.cuda.{storage}").reason_against(signature):
        return False, against
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    if (activations := signature.get("activations", "bfloat16")) not in ("bfloat16", "float16"):
        return False, f"for bfloat16 and float16 activations, not {activations}"
    from featherweight.kernels.cuda.compiler import missing

    if not torch.cuda.is_available():
        return False, "there is no CUDA device here"
    if (capability := torch.cuda.get_device_capability(device)) < (9, 0):
        return False, f"for compute capability 9.0 and later, not {capability[0]}.{capability[1]}"
    if absent := missing():
        return False, absent
    many = "by slabs" if storage == "integer" else "from dense values"
    return True, f"16-bit activations without gradients: codes go straight to the matrix unit, or {many} for many tokens"


def inside(kind: str, part: str, how: str) -> Support:
    """Weights of a kind that run through the kernel of a part of theirs."""

    def supports(signature: Signature, device: torch.device) -> tuple[bool, str]:
        from featherweight.kernels.registry import supporting  # which names this function

        if signature.get("kind") != kind:
            return False, f"for {kind} weights, not for {signature.get('kind')}"
        if device.type != "cuda":
            return False, f"written for CUDA, not for {device.type}: composed of what it holds"
        inner = {**signature[part], "activations": signature.get("activations", "bfloat16")}
        best = supporting("dequantize_matmul", inner, device)[0]
        return best.prepares, f"{how}: {best.name}" if best.prepares else "what it holds has no kernel of its own"

    return supports


def triton_groups(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Blocks that fit their groups as they go."""
    size = signature.get("group_size", 0)
    if not 0 < size <= 128 or size % 16:
        return False, f"groups of a multiple of 16 columns up to 128, not {size}"
    return triton_sweep(signature, device)


def cuda_walk(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Whole blocks of the walk, with what is dropped, on Hopper and later."""
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    size, of = signature.get("group_size", 0), signature.get("of", 0)
    if size and not (0 < size <= 128 and size % 16 == 0):
        return False, f"groups of a multiple of 16 columns up to 128, not {size}"
    if signature.get("inputs", 0) % 4:
        return False, f"inputs in fours, not {signature['inputs']}"
    second = signature.get("second_group_size", 1)
    if second not in (1, 2, 4, 8, 16, 32, 64):
        return False, f"second groups of a power of two of rows up to 64, not {second}"
    if of not in (0, 2, 4, 8, 16):
        return False, f"N of 2, 4, 8 or 16, not of {of}"
    if signature.get("how") == "least" and (any(rows % 32 for rows in signature["linears"]) or (size and 128 % size)):
        return False, "linears of 32 rows each, and groups that divide 128 columns, where weights compete"
    from featherweight.kernels.cuda.compiler import missing

    if torch.cuda.get_device_capability(device) < (9, 0):
        return False, "for compute capability 9.0 and later"
    absent = missing()
    return not absent, absent or "one launch for every 128 columns: fitted, selected, decided"


def triton_two_level(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Groups with two levels of parameters and outliers."""
    second = signature.get("second_group_size", 0)
    if signature.get("group_size") != 16 or signature.get("inputs", 0) % 16:
        return False, f"groups of 16 columns, not {signature.get('group_size')}, and inputs in sixteens"
    if second not in (1, 2, 4, 8, 16, 32, 64, 128):
        return False, f"second groups of a power of two of rows up to 128, not {second}"
    return triton_sweep(signature, device)


def triton_fit(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Fits of all groups at once."""
    runs, reason = triton_sweep({}, device)
    return runs, "one launch for all groups" if runs else reason


def cuda_lattice(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Codes of the E8 lattice between Hadamard rotations, on Hopper and later, where a compiler is at hand."""
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    from featherweight.kernels.cuda.compiler import missing

    against: str = importlib.import_module(f"{LATTICE}_device").unsupported(signature)
    if (activations := signature.get("activations", "bfloat16")) not in ("bfloat16", "float16"):
        against = f"for bfloat16 and float16 activations, not {activations}"
    elif not against and not torch.cuda.is_available():
        against = "there is no CUDA device here"
    elif not against and (capability := torch.cuda.get_device_capability(device)) < (9, 0):
        against = f"for compute capability 9.0 and later, not {capability[0]}.{capability[1]}"
    against = against or missing()
    return (
        not against,
        against or "16-bit activations without gradients: rotated, then multiplied from codes; by values if many",
    )


def int_mm(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `torch._int_mm` takes on CUDA: more than 16 tokens, inputs and outputs in eights; on a CPU anything."""
    if device.type not in ("cpu", "cuda"):
        return False, f"torch's int8 product is for CPU and CUDA, not for {device.type}"
    whole = signature.get("inputs", 0) % 8 == 0 and signature.get("outputs", 0) % 8 == 0
    if device.type == "cuda" and not (signature.get("tokens", 0) > 16 and whole):
        return False, "on CUDA torch's int8 product needs more than 16 tokens, and sizes in eights"
    return True, "torch's int8 product"


def triton_step(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Parts of a fused decode step."""
    if device.type != "cuda":
        return False, f"written for CUDA, not for {device.type}"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if signature.get("rows", 1) > 1:
        return False, f"for one row, not for {signature['rows']}"
    if signature.get("dtype") not in ("bfloat16", "float16", "float32"):
        return False, f"not for {signature.get('dtype')}"
    return True, "part of a fused decode step"


def cpu_integer(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Any bits, groups and sizes, wherever there is a C compiler; compiles when first asked."""
    from featherweight.kernels.cpu.compiler import missing

    if signature.get("kind") != "integer":
        return False, f"for integer codes, not for {signature.get('kind')}"
    if device.type != "cpu":
        return False, f"written for CPUs, not for {device.type}"
    if signature.get("activations") == "float64":
        return False, "for activations of 16 or 32 bits, not float64"
    if signature.get("group_index"):
        return False, "it does not read groups with a stored index"
    if reason := missing("integer"):
        return False, reason
    from featherweight.kernels.cpu.integer import told

    return True, told(signature)


def cpu_fit(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """Fits of all groups at once, wherever there is a C compiler."""
    from featherweight.kernels.cpu.compiler import missing

    if device.type != "cpu":
        return False, f"written for CPUs, not for {device.type}"
    if signature.get("fit") == "mse":
        return False, "by the extremes or weighted, not by mse"
    reason = missing("fit")
    return not reason, reason or "every candidate of a group tried while it lies in the first cache"


def _before_hopper(device: torch.device) -> str:
    """Why a kernel for Hopper and later does not run on a device; "" where it does."""
    if device.type != "cuda":
        return f"written for CUDA, not for {device.type}"
    return "for compute capability 9.0 and later" if torch.cuda.get_device_capability(device) < (9, 0) else ""


def cuda_cache(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `kernels/cuda/cache_attention.py` reads: one query over codes of its codecs, on Hopper and later."""
    if before := _before_hopper(device):
        return False, before
    if signature["queries"] != 1 or signature["dtype"] not in ("bfloat16", "float16"):
        return False, f"for one query of 16 bits, not for {signature['queries']} of {signature['dtype']}"
    from featherweight.kernels.cuda.cache_layout import unsupported
    from featherweight.kernels.cuda.compiler import missing

    reason = missing() or unsupported(signature["keys"], signature["values"], signature["head_dim"])
    return not reason, reason or "one launch for all query heads of a key head, tokens read in code"


def cuda_encode(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `kernels/cuda/cache_encode.py` codes, on Hopper and later."""
    if before := _before_hopper(device):
        return False, before
    from featherweight.kernels.cuda.cache_encode import unsupported
    from featherweight.kernels.cuda.compiler import missing

    reason = missing() or unsupported(signature["head_dim"], signature["dtype"], signature)
    return not reason, reason or "one launch for all tokens"


def cuda_coded_step(signature: Signature, device: torch.device) -> tuple[bool, str]:
    """What `kernels/cuda/cache_append.py` adds to and reads, on Hopper and later."""
    if before := _before_hopper(device):
        return False, before
    from featherweight.kernels.cuda.cache_append import unsupported
    from featherweight.kernels.cuda.compiler import missing

    reason = missing() or unsupported(signature["keys"], signature["values"], signature["head_dim"], signature["dtype"])
    return not reason, reason or "a launch that adds a token and codes what it settles, and those of attention over codes"
