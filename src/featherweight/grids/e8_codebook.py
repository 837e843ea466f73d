"""The E8P codebook: 65 536 vectors of 8 values near the lattice E8 + ¼, 2 bits a value, and exact nearest-vector search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import torch
from torch import Tensor

#: Values that share a code.
SIZE = 8

#: A codeword's distance from `D̂8` in every coordinate; its sign is the parity of the sign byte.
SHIFT = 0.25

#: Bit of the sign byte that negates each coordinate.
SIGN_BITS = (0, 4, 1, 5, 2, 6, 3, 7)

#: Positions of the three entries ½ of the 29 base vectors of norm² 12, all others of which are 3/2.
HALVES = (
    "123", "023", "013", "012", "367", "357", "347", "356", "346", "345", "267", "257", "247", "256", "246",
    "245", "167", "157", "147", "156", "146", "045", "067", "057", "047", "056", "046", "014", "237",
)  # fmt: skip

#: Entries in falling order of all other base vectors: one 5/2 or none, and as many 3/2 as the norm allows.
SHAPES = tuple(
    tuple([2.5] * fives + [1.5] * threes + [0.5] * (SIZE - fives - threes))
    for fives, most in ((0, 4), (1, 1))
    for threes in range(most + 1)
)

#: Vectors compared with all candidates at once: fits the cache of a CPU, and fills an accelerator.
CHUNK_ON_CPU, CHUNK_ELSEWHERE = 2**11, 2**16

#: Cost that keeps a candidate from ever being chosen.
NEVER = 1e4


@cache
def base_vectors() -> Tensor:
    """The 256 vectors of absolute values, `[256, 8]` float32.

    227 are all `|v|` of `v ∈ D̂8 = {v ∈ (ℤ + ½)⁸ : Σ v even}` with `‖v‖² ≤ 10`, in lexicographic order; 29 have norm² 12.
    """
    odd = [values for values in product((1, 3, 5), repeat=SIZE) if sum(value * value for value in values) <= 40]
    longer = [[1 if str(position) in halves else 3 for position in range(SIZE)] for halves in HALVES]
    return torch.tensor([*odd, *longer], dtype=torch.float32) / 2


@cache
def codebook() -> Tensor:
    """Every codeword by its code, `[65536, 8]` float32.

    The high byte picks a base vector, whose last coordinate is negated where its sum is odd; the low byte's bits negate
    coordinates, after its lowest bit was flipped if its parity `p` is 1; then ¼ is added (`p = 0`) or taken away (`p = 1`).
    """
    signs = torch.arange(256)
    parity = sum((signs >> bit) & 1 for bit in range(8)) % 2
    flips = (signs ^ parity)[:, None] >> torch.tensor(SIGN_BITS) & 1
    vectors = _stored()[:, None] * (1 - 2 * flips)
    return (vectors + SHIFT * (1 - 2 * parity)[:, None]).reshape(-1, SIZE)


def nearest_codes(vectors: Tensor) -> Tensor:
    """Codes of the nearest codewords of `vectors [n, 8]`, int32 `[n]`; an exact search, of equally near ones any.

    For either shift the nearest `s` to `y = x ∓ ¼` has the signs of `y`, save that `Σ s` must be even: one flip where the
    number of negatives says otherwise. It maximises `|y|·m − ‖m‖²/2 − 2 min_i |y_i| m_i [flip]` over base vectors `m`. 227 of
    them are all permutations of `SHAPES`, so the best of each has its entries in the order of `|y|`, and its flip is that of
    the ½ where `|y|` is least. The 29 are tried one by one where the best permutation of their shape would win.
    """
    size = CHUNK_ON_CPU if vectors.device.type == "cpu" else CHUNK_ELSEWHERE
    return torch.cat([_nearest(chunk) for chunk in vectors.to(torch.float32).split(size)])


def _nearest(vectors: Tensor) -> Tensor:
    tables = _tables(vectors.device)
    shifted = torch.stack((vectors - SHIFT, vectors + SHIFT))
    size, negative = shifted.abs(), shifted < 0
    odd = negative.to(torch.float32) @ tables.ones % 2
    falling, order = size.sort(-1, descending=True)
    score = falling @ tables.shapes - tables.cost - falling[..., -1:] * (odd[..., None] - tables.odd_shapes).abs()
    score, shape = _with_longer(score, size, odd, tables)
    second = score[1] - score[0] > (size[1].square() @ tables.ones - size[0].square() @ tables.ones) / 2

    def pick(pair: Tensor) -> Tensor:
        return torch.where(second.view(-1, *[1] * (pair.ndim - 2)), pair[1], pair[0])

    shape, size = pick(shape), pick(size)
    closed = (shape < len(SHAPES))[:, None]
    magnitudes = torch.empty_like(size).scatter_(1, pick(order), tables.by_shape[shape])
    magnitudes = torch.where(closed, magnitudes, tables.by_shape[shape])
    index = tables.by_key[(magnitudes @ tables.powers).long()]
    negative = pick(negative).to(torch.int32)
    wrong = (pick(odd) + magnitudes @ tables.ones) % 2
    negative.scatter_add_(1, (size * magnitudes).argmin(-1, keepdim=True), wrong.to(torch.int32)[:, None])
    byte = (((negative & 1) * tables.signs).sum(-1, dtype=torch.int32) ^ tables.last[index]) ^ second.to(torch.int32)
    return index << 8 | byte


def _with_longer(score: Tensor, size: Tensor, odd: Tensor, tables: _Tables) -> tuple[Tensor, Tensor]:
    """Best score and its shape, `[2, n]` each; a base vector of norm² 12 counts as a shape of its own, after `SHAPES`.

    Args:
        score: of every shape's best permutation, `[2, n, len(SHAPES) + 1]`; the last is that of norm² 12.
        size: `|y| [2, n, 8]`.
        odd: whether the number of negatives is, `[2, n]` float32.
        tables: on the same device.
    """
    best, shape = score[..., :-1].max(-1)
    best, shape, size, odd = best.view(-1), shape.view(-1), size.view(-1, SIZE), odd.view(-1)
    could = score[..., -1].reshape(-1) > best
    rows = could.nonzero()[:, 0] if size.device.type == "cpu" else slice(None)  # elsewhere waiting costs more than trying all
    features = torch.cat((size[rows], 1 - odd[rows, None], odd[rows, None]), -1)
    longer, chosen = (features @ tables.longer).max(-1)
    wins = longer > best[rows]
    best[rows] = torch.where(wins, longer, best[rows])
    shape[rows] = torch.where(wins, len(SHAPES) + tables.of_longer[chosen], shape[rows])
    return best.view(2, -1), shape.view(2, -1)


def _stored() -> Tensor:
    """The base vectors with the last coordinate negated where the sum is odd, `[256, 8]`: all of even sum."""
    vectors = base_vectors().clone()
    vectors[:, -1] *= 1 - 2 * (vectors.sum(1) % 2)
    return vectors


@dataclass(frozen=True)
class _Tables:
    """What the search looks up, on one device.

    Attributes:
        shapes: entries in falling order, `[8, shapes + 1]`, the last of norm² 12; `cost` are half their norms², `odd_shapes`
            whether their sums are odd.
        by_shape: shapes in rows, then the 29 vectors of norm² 12 as they are, `[shapes + 29, 8]`.
        longer: features (`|y|`, an even number of negatives, an odd one) to the scores of the 29 and their flips of a ½,
            `[10, 116]`; `of_longer` says which of the 29 each is.
        powers: what entries are weighed by for a key, `[8]`; `by_key` gives the base vector of a key.
        last: sign bit that the last coordinate's stored sign takes, by base vector.
        signs: `2^SIGN_BITS`.
        ones: `[8]`.
    """

    shapes: Tensor
    cost: Tensor
    odd_shapes: Tensor
    by_shape: Tensor
    longer: Tensor
    of_longer: Tensor
    powers: Tensor
    by_key: Tensor
    last: Tensor
    signs: Tensor
    ones: Tensor


@cache
def _tables(device: torch.device) -> _Tables:
    vectors, powers = base_vectors(), 3.0 ** torch.arange(SIZE)
    longer = vectors[-len(HALVES) :]
    shapes = torch.cat((torch.tensor(SHAPES), longer[:1].sort(descending=True).values))
    rows, of_longer = [], []
    for index, vector in enumerate(longer):
        rows.append([*vector.tolist(), -6.0 - NEVER, -6.0])
        for half in HALVES[index]:
            flipped = vector.clone()
            flipped[int(half)] = -0.5
            rows.append([*flipped.tolist(), -6.0, -6.0 - NEVER])
        of_longer += [index] * 4
    by_key = torch.zeros(int(powers.sum()) * 3, dtype=torch.int32)
    by_key[(vectors @ powers).long()] = torch.arange(len(vectors), dtype=torch.int32)
    every = {
        "shapes": shapes.T.contiguous(),
        "cost": shapes.square().sum(1) / 2,
        "odd_shapes": shapes.sum(1) % 2,
        "by_shape": torch.cat((shapes[:-1], longer)),
        "longer": torch.tensor(rows).T.contiguous(),
        "of_longer": torch.tensor(of_longer),
        "powers": powers,
        "by_key": by_key,
        "last": (vectors.sum(1) % 2).to(torch.int32) << SIGN_BITS[-1],
        "signs": torch.tensor([2**bit for bit in SIGN_BITS], dtype=torch.int32),
        "ones": torch.ones(SIZE),
    }
    return _Tables(**{name: tensor.to(device) for name, tensor in every.items()})


def base_by_key(device: torch.device) -> Tensor:
    """The base vector of each key `⌊Σ_i v_i 3^i⌋`, int32, on `device`, kept there; for kernels that search by themselves."""
    return _tables(device).by_key


@cache
def small_codebook() -> Tensor:
    """256 vectors of E8, 1 bit a value, `[256, 8]` float32: 0, the 240 of norm² 2, and ±2 e_i without −2 e_8."""
    vectors = [[0.0] * SIZE]
    for pair in combinations(range(SIZE), 2):
        for signs in product((1.0, -1.0), repeat=2):
            vectors.append([signs[pair.index(place)] if place in pair else 0.0 for place in range(SIZE)])
    vectors += [[sign / 2 for sign in signs] for signs in product((1.0, -1.0), repeat=SIZE) if signs.count(-1.0) % 2 == 0]
    for place, sign in list(product(range(SIZE), (2.0, -2.0)))[:-1]:
        vectors.append([sign if other == place else 0.0 for other in range(SIZE)])
    return torch.tensor(vectors)


def nearest_small_codes(vectors: Tensor) -> Tensor:
    """Codes of the nearest vectors of `small_codebook` to `vectors [n, 8]`, int32 `[n]`."""
    table = table_on(small_codebook, vectors.device)
    size = CHUNK_ON_CPU if vectors.device.type == "cpu" else CHUNK_ELSEWHERE
    cost = table.square().sum(1) / 2
    chunks = [(chunk @ table.T - cost).argmax(-1) for chunk in vectors.to(torch.float32).split(size)]
    return torch.cat(chunks).to(torch.int32)


def looked_up(book: Callable[[], Tensor], codes: Tensor) -> Tensor:
    """The vectors of `codes [...]` in the codebook that `book` gives, `[..., 8]` float32, exactly.

    All entries are quarters, at most 2¾: a vector is one word of eight bytes, which is fetched far faster than eight numbers.
    """
    words = table_on(_WORDS[book], codes.device)[codes[..., None].long()]
    return words.view(torch.int8).to(torch.float32).mul_(SHIFT)


def _as_words(book: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: (book() / SHIFT).to(torch.int8).view(torch.int64)[:, 0].contiguous()


#: What gives the words of a codebook.
_WORDS: dict[Callable[[], Tensor], Callable[[], Tensor]] = {book: _as_words(book) for book in (codebook, small_codebook)}


@cache
def table_on(book: Callable[[], Tensor], device: torch.device) -> Tensor:
    """The codebook that `book` gives, on `device`, kept there."""
    return book().to(device)
