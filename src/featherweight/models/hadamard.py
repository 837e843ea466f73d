"""Orthogonal matrices of any size whose entries are all about as large: Hadamard matrices, and products of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError

#: Sylvester's factors are taken at most this large: few passes over the values, each a small product.
RADIX_BITS = 5

#: Paley's factors beyond this size would cost more than they save.
LARGEST_FACTOR = 512

#: By their size four symmetric circulants whose squares add up to 4 size I (Williamson 1944): entries from the second to the
#: middle one of their first rows, a set bit for −1. Found by search among those that a group of six multipliers leaves alone.
WILLIAMSON = {43: (0x4789A, 0x1BAF3, 0x82D63, 0x1210F5)}


@dataclass(frozen=True)
class Construction:
    """`A₁ ⊗ A₂ ⊗ … ⊗ Sylvester(2^twos) / √size`, orthogonal.

    Attributes:
        factors: kinds and sizes of the `A`: ("paley1", 28), ("paley2", 36), ("williamson", 172) or ("hartley", 7), in falling size.
        twos: exponent of Sylvester's part.
    """

    factors: tuple[tuple[str, int], ...]
    twos: int

    @property
    def size(self) -> int:
        """Rows, and columns."""
        return math.prod(size for _, size in self.factors) << self.twos

    @property
    def name(self) -> str:
        """As it stands in files: "paley1(28)x2^9"."""
        powers = [f"2^{self.twos}"] if self.twos or not self.factors else []
        return "x".join([f"{kind}({size})" for kind, size in self.factors] + powers)

    def multiply(self, values: Tensor, transposed: bool = False) -> Tensor:
        """`M x` along the last dimension of `values [..., size]`, or `Mᵀ x`; in their dtype.

        Every factor is one product with a small matrix, scaled by the root of its size: `size · Σ factors` multiplications.
        """
        shape, right, mixed = values.shape, 1, values.contiguous()
        steps = [("sylvester", 1 << bits) for bits in _radices(self.twos)]
        for kind, size in steps + list(reversed(self.factors)):
            factor = _factor(kind, size, values.dtype, values.device)
            factor = factor.t() if transposed else factor
            mixed = mixed.reshape(-1, size) @ factor.t() if right == 1 else factor @ mixed.reshape(-1, size, right)
            mixed, right = mixed.mul_(size**-0.5), right * size
        return mixed.reshape(shape)

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix itself, `[size, size]`."""
        return self.multiply(torch.eye(self.size, dtype=dtype), transposed=True)


@cache
def construct(size: int) -> Construction:
    """The best matrix there is for `size`: with no odd remainder if it can be, then with the fewest multiplications.

    Factors are Hadamard matrices (Paley 1933): `q + 1` for a prime power `q ≡ 3 (mod 4)`, `2 (q + 1)` for `q ≡ 1 (mod 4)`; or Williamson's.
    What odd part they leave becomes a Hartley matrix, `cos + sin` of `2πij/o`: orthogonal, entries at most `√(2/o)`.

    Raises:
        FeatherweightError: a size below 1.
    """
    if size < 1:
        raise FeatherweightError("an orthogonal matrix has rows", found=f"{size} of them", expected="1 or more")
    return min(_all(size, LARGEST_FACTOR), key=lambda each: (_remainder(each) > 1, _cost(each), each.name))


@cache
def construction_named(name: str) -> Construction:
    """The construction of this name, as a file has it.

    Raises:
        FeatherweightError: a name that no construction has.
    """
    factors, twos = [], 0
    for word in name.split("x"):
        kind, _, size = word.removesuffix(")").partition("(")
        if size.isdecimal() and _exists(kind, int(size)):
            factors.append((kind, int(size)))
        elif word.startswith("2^") and word[2:].isdecimal():
            twos += int(word[2:])
        else:
            raise FeatherweightError(
                "unknown construction of an orthogonal matrix", found=name, expected="for example paley1(28)x2^9"
            )
    return Construction(tuple(factors), twos)


def _exists(kind: str, size: int) -> bool:
    """Whether there is a factor of this kind and size."""
    if kind == "hartley":
        return size > 0
    if kind == "williamson":
        return size % 4 == 0 and size // 4 in WILLIAMSON
    q = {"paley1": size - 1, "paley2": size // 2 - 1}.get(kind, 0)
    return size % 4 == 0 and q % 4 == (3 if kind == "paley1" else 1) and _prime_power(q)[1] > 0


def _all(size: int, largest: int) -> Iterator[Construction]:
    """Constructions of `size` with Paley factors of at most `largest`, the rest in twos and one Hartley factor."""
    odd = size // (size & -size)
    yield Construction((("hartley", odd),) if odd > 1 else (), (size & -size).bit_length() - 1)
    if odd == 1 or size % 4:
        return
    for factor in range(min(largest, size) // 4 * 4, 8, -4):
        kind = next((kind for kind in ("paley1", "paley2", "williamson") if _exists(kind, factor)), None)
        if kind is not None and size % factor == 0 and factor & (factor - 1):
            for rest in _all(size // factor, factor):
                yield Construction(((kind, factor), *rest.factors), rest.twos)


def _remainder(construction: Construction) -> int:
    return math.prod(size for kind, size in construction.factors if kind == "hartley")


def _cost(construction: Construction) -> int:
    """Multiplications a column."""
    return sum(size for _, size in construction.factors) + sum(1 << bits for bits in _radices(construction.twos))


def _radices(twos: int) -> list[int]:
    """`twos` cut into as few and as even parts as `RADIX_BITS` allows."""
    parts = -(-twos // RADIX_BITS)
    return [twos // parts + (part < twos % parts) for part in range(parts)]


@cache
def _factor(kind: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One factor, not normalised: its rows have the norm `√size`."""
    make = {"sylvester": _sylvester, "paley1": _paley1, "paley2": _paley2, "williamson": _williamson, "hartley": _hartley}[kind]
    return make(size).to(device, dtype)


def _sylvester(size: int) -> Tensor:
    matrix, two = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(two, matrix)
    return matrix


def _hartley(size: int) -> Tensor:
    steps = torch.arange(size, dtype=torch.int64)
    angles = (steps[:, None] * steps % size).to(torch.float64) * (2 * math.pi / size)
    return angles.cos() + angles.sin()


def _paley1(size: int) -> Tensor:
    """`I + S`, `S` the skew conference matrix of `q = size − 1 ≡ 3 (mod 4)`."""
    return _conference(size - 1) + torch.eye(size, dtype=torch.float64)


def _paley2(size: int) -> Tensor:
    """`C ⊗ [[1, 1], [1, −1]] + I ⊗ [[1, −1], [−1, −1]]`, `C` the symmetric conference matrix of `q = size / 2 − 1 ≡ 1 (mod 4)`."""
    conference = _conference(size // 2 - 1)
    first = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(conference, first) + torch.kron(torch.eye(size // 2, dtype=torch.float64), second)


def _williamson(size: int) -> Tensor:
    """Of circulants `a, b, c, d` as a quaternion's matrix."""
    n = size // 4
    steps = torch.arange(n)
    distance = (steps[:, None] - steps).abs()
    bits = torch.minimum(distance, n - distance) - 1
    a, b, c, d = ((1.0 - 2.0 * (torch.tensor(row << 1) >> bits + 1 & 1)).to(torch.float64) for row in WILLIAMSON[n])
    return torch.cat([torch.cat(rows, 1) for rows in ((a, b, c, d), (-b, a, -d, c), (-c, d, a, -b), (-d, -c, b, a))])


def _conference(q: int) -> Tensor:
    """`C [q + 1, q + 1]`, zeros on the diagonal, ±1 elsewhere, `C Cᵀ = q I`, bordered from `χ(a − b)` over GF(q)."""
    matrix = torch.ones(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 0] = 0.0
    matrix[1:, 0] = -1.0 if q % 4 == 3 else 1.0
    matrix[1:, 1:] = _quadratic_characters(q)
    return matrix


def _quadratic_characters(q: int) -> Tensor:
    """`χ(a − b) [q, q]` over GF(q): 1 for squares, −1 for others, 0 for 0. Elements are polynomials over GF(p), base-p digits."""
    prime, degree = _prime_power(q)
    digits = torch.tensor(list(product(range(prime), repeat=degree)), dtype=torch.int64)
    weights = prime ** torch.arange(degree - 1, -1, -1)
    modulus = _irreducible(prime, degree)
    character = torch.full((q,), -1.0, dtype=torch.float64)
    squares = _reduced([_multiply(element, element, prime) for element in digits.tolist()], modulus, prime)
    character[(torch.tensor(squares) * weights).sum(1)] = 1.0
    character[0] = 0.0
    return character[((digits[:, None] - digits) % prime * weights).sum(-1)]


def _multiply(first: list[int], second: list[int], prime: int) -> list[int]:
    """Product of polynomials, highest power first."""
    result = [0] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            result[i + j] = (result[i + j] + a * b) % prime
    return result


def _reduced(polynomials: list[list[int]], modulus: list[int], prime: int) -> list[list[int]]:
    """Remainders by the monic `modulus`, in as many digits as its degree."""
    degree, remainders = len(modulus) - 1, []
    for polynomial in polynomials:
        rest = list(polynomial)
        for place in range(len(rest) - degree):
            lead = rest[place]
            for offset, coefficient in enumerate(modulus):
                rest[place + offset] = (rest[place + offset] - lead * coefficient) % prime
        remainders.append(rest[-degree:])
    return remainders


def _irreducible(prime: int, degree: int) -> list[int]:
    """The first monic polynomial of this degree that no monic one of at most half of it divides."""
    smaller = [[1, *tail] for size in range(1, degree // 2 + 1) for tail in product(range(prime), repeat=size)]
    for tail in product(range(prime), repeat=degree):
        candidate = [1, *tail]
        if all(any(_reduced([candidate], divisor, prime)[0]) for divisor in smaller):
            return candidate
    raise AssertionError("there is an irreducible polynomial of every degree")


@cache
def _prime_power(number: int) -> tuple[int, int]:
    """`(p, k)` with `p^k = number`; `(number, 0)` where there is none."""
    if number < 2:
        return number, 0
    prime = next((divisor for divisor in range(2, math.isqrt(number) + 1) if number % divisor == 0), number)
    degree, rest = 0, number
    while rest > 1 and rest % prime == 0:
        degree, rest = degree + 1, rest // prime
    return (prime, degree) if rest == 1 and degree else (number, 0)
