"""The nearest codewords of the E8 codebooks, one vector of eight to a thread; see `featherweight.grids.e8_codebook`."""

from __future__ import annotations

import triton
import triton.language as tl

#: Three entries ½ of the base vectors of norm² 12, as bits of their positions.
HALVES = tl.constexpr(
    tuple(
        sum(1 << int(place) for place in places)
        for places in (
            "123 023 013 012 367 357 347 356 346 345 267 257 247 256 246 245 167 157 147 156 146 045 067 057 047 056 046 014 237"
        ).split()
    )
)

#: Base vectors whose entries are a permutation of (2.5) 1.5 … 0.5: how many 2.5 and 1.5 they have.
SHAPES = tl.constexpr(((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)))

#: Bit of the sign byte that negates each coordinate.
SIGN_BITS = tl.constexpr((0, 4, 1, 5, 2, 6, 3, 7))

#: Comparators that sort eight numbers.
NETWORK = tl.constexpr(
    (
        (0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6), (0, 4), (3, 7), (1, 5), (2, 6),
        (1, 4), (3, 6), (2, 4), (3, 5), (3, 4),
    )
)  # fmt: skip


@triton.jit
def swapped(values, first: tl.constexpr, second: tl.constexpr):
    """`values` with the larger of two at the first place."""
    changed = ()
    for k in tl.static_range(8):
        if k == first:
            changed = changed + (tl.maximum(values[first], values[second]),)
        elif k == second:
            changed = changed + (tl.minimum(values[first], values[second]),)
        else:
            changed = changed + (values[k],)
    return changed


@triton.jit
def falling(values):
    """Eight values in falling order."""
    for c in tl.static_range(19):
        values = swapped(values, NETWORK[c][0], NETWORK[c][1])
    return values


@triton.jit
def best_base(vector, shift):
    """Score of the best base vector for `vector − shift`; its fives and threes; the places of its ½ if it is a longer one.

    The score is `|y|·m − ‖m‖²/2`, less what one sign costs where the number of negatives asks for a flip.
    """
    sizes, total, odd = (), tl.zeros_like(vector[0]), tl.zeros_like(vector[0])
    for k in tl.static_range(8):
        y = vector[k] - shift
        sizes = sizes + (tl.abs(y),)
        total += tl.abs(y)
        odd += (y < 0).to(tl.float32)
    odd = odd - 2.0 * tl.floor(odd * 0.5)
    ordered = falling(sizes)
    best, shape = tl.zeros_like(total) - float("inf"), tl.zeros_like(total)
    for c in tl.static_range(7):
        fives, threes = SHAPES[c][0], SHAPES[c][1]
        score = 0.5 * total - (6.25 * fives + 2.25 * threes + 0.25 * (8 - fives - threes)) / 2
        for k in tl.static_range(8):
            if k < fives:
                score += 2.0 * ordered[k]
            elif k < fives + threes:
                score += ordered[k]
        score -= ordered[7] * tl.abs(odd - threes % 2)
        better = score > best
        best, shape = tl.where(better, score, best), tl.where(better, fives * 8.0 + threes, shape)
    places = tl.zeros_like(total)
    for c in tl.static_range(29):
        three, least = tl.zeros_like(total), tl.zeros_like(total) + float("inf")
        for k in tl.static_range(8):
            if (HALVES[c] >> k) % 2 == 1:
                three += sizes[k]
                least = tl.minimum(least, sizes[k])
        score = 1.5 * total - three - 6.0 - (1.0 - odd) * least
        better = score > best
        best, places = tl.where(better, score, best), tl.where(better, HALVES[c] * 1.0, places)
    return best, shape, places, odd


@triton.jit
def nearest(vector, by_key):
    """Code and values of the nearest codeword of the 2-bit codebook to eight values; `by_key` as in `Vectors`.

    What is done twice is a loop, here and in `encode`: the compiler's time grows faster than the code.
    """
    total = tl.zeros_like(vector[0])
    for k in tl.static_range(8):
        total += vector[k]
    best, shape, places = total - float("inf"), tl.zeros_like(total), tl.zeros_like(total)
    odd, shift = tl.zeros_like(total), tl.zeros_like(total)
    for turn in range(0, 2):
        tried = 0.25 - 0.5 * turn
        score, new_shape, new_places, new_odd = best_base(vector, tried)
        score -= 0.5 * total * turn  # by which the two shifts' ‖y‖²/2 differ
        better = score > best
        best, shape = tl.where(better, score, best), tl.where(better, new_shape, shape)
        places, odd = tl.where(better, new_places, places), tl.where(better, new_odd, odd)
        shift = tl.where(better, tried, shift)
    longer = places > 0
    halves = places.to(tl.int32)
    fives = tl.floor(shape / 8.0)
    threes = shape - 8.0 * fives
    sizes = ()
    for k in tl.static_range(8):
        sizes = sizes + (tl.abs(vector[k] - shift),)
    magnitudes, key = (), tl.zeros_like(total)
    for k in tl.static_range(8):
        rank = tl.zeros_like(total)
        for j in tl.static_range(8):
            if j < k:
                rank += (sizes[j] >= sizes[k]).to(tl.float32)
            elif j > k:
                rank += (sizes[j] > sizes[k]).to(tl.float32)
        closed = tl.where(rank < fives, 2.5, tl.where(rank < fives + threes, 1.5, 0.5))
        magnitude = tl.where(longer, tl.where((halves >> k) % 2 == 1, 0.5, 1.5), closed)
        magnitudes = magnitudes + (magnitude,)
        key += magnitude * 3**k
    odd_sum = tl.where(longer, 1.0, threes - 2.0 * tl.floor(threes * 0.5))
    wrong = tl.abs(odd - odd_sum) > 0.5
    least, place = sizes[0] * magnitudes[0], tl.zeros_like(total)
    for k in tl.static_range(8):
        product = sizes[k] * magnitudes[k]
        place, least = tl.where(product < least, k * 1.0, place), tl.minimum(least, product)
    byte = (odd_sum > 0.5).to(tl.int32) * 128
    values = ()
    for k in tl.static_range(8):
        negative = ((vector[k] - shift < 0) != (wrong & (place == k))).to(tl.int32)
        byte = byte ^ (negative << SIGN_BITS[k])
        values = values + (tl.where(negative > 0, -magnitudes[k], magnitudes[k]) + shift,)
    byte = byte ^ (shift < 0).to(tl.int32)
    return (tl.load(by_key + key.to(tl.int32)) << 8) | byte, values


@triton.jit
def nearest_small(vector):
    """Code and values of the nearest of the 256 vectors of the 1-bit codebook to eight values."""
    sizes, total, odd = (), tl.zeros_like(vector[0]), tl.zeros_like(vector[0])
    for k in tl.static_range(8):
        sizes = sizes + (tl.abs(vector[k]),)
        total += sizes[k]
        odd += (vector[k] < 0).to(tl.float32)
    odd = odd - 2.0 * tl.floor(odd * 0.5)
    least, largest, runner = sizes[0], sizes[0], tl.zeros_like(total) - 1.0
    place_least, place, place_runner = tl.zeros_like(total), tl.zeros_like(total), tl.zeros_like(total)
    for k in tl.static_range(1, 8):
        size, place_least = sizes[k], tl.where(sizes[k] < least, k * 1.0, place_least)
        least = tl.minimum(least, size)
        place_runner = tl.where(size > largest, place, tl.where(size > runner, k * 1.0, place_runner))
        runner = tl.where(size > largest, largest, tl.maximum(runner, size))
        place, largest = tl.where(size > largest, k * 1.0, place), tl.maximum(largest, size)
    single, at, single_negative = tl.zeros_like(total) - float("inf"), tl.zeros_like(total), tl.zeros_like(total)
    for k in tl.static_range(8):  # ±2 e_k, without −2 e_8
        if k < 7:
            size, negative = sizes[k], (vector[k] < 0).to(tl.float32)
        else:
            size, negative = vector[k], tl.zeros_like(total)
        better = size > single
        single, at = tl.where(better, size, single), tl.where(better, k * 1.0, at)
        single_negative = tl.where(better, negative, single_negative)
    best, kind = tl.zeros_like(total), tl.zeros_like(total)
    for c in tl.static_range(3):
        if c == 0:
            score = largest + runner - 1.0
        elif c == 1:
            score = 0.5 * total - 1.0 - odd * least
        else:
            score = 2.0 * single - 2.0
        best, kind = tl.where(score > best, score, best), tl.where(score > best, c + 1.0, kind)
    low, high = tl.minimum(place, place_runner), tl.maximum(place, place_runner)
    pairs, halves, values = tl.zeros_like(total), tl.zeros_like(total), ()
    low_negative, high_negative = tl.zeros_like(total), tl.zeros_like(total)
    for k in tl.static_range(8):
        negative = (vector[k] < 0).to(tl.float32)
        low_negative, high_negative = tl.where(low == k, negative, low_negative), tl.where(high == k, negative, high_negative)
        flipped = tl.abs(negative - tl.where(place_least == k, odd, 0.0))
        if k < 7:
            halves += flipped * 2 ** (6 - k)
        pair = tl.where((low == k) | (high == k), 1.0 - 2.0 * negative, 0.0)
        two = tl.where(at == k, 2.0 - 4.0 * single_negative, 0.0)
        half = 0.5 - flipped
        values = values + (tl.where(kind == 1, pair, tl.where(kind == 2, half, tl.where(kind == 3, two, 0.0))),)
    pairs = low * (15.0 - low) * 0.5 + (high - low - 1.0)  # of the 28, in the order of `itertools.combinations`
    code = tl.where(kind == 1, 1.0 + 4.0 * pairs + 2.0 * low_negative + high_negative, 0.0)
    code = tl.where(kind == 2, 113.0 + halves, code)
    code = tl.where(kind == 3, 241.0 + 2.0 * at + single_negative, code)
    return code.to(tl.int32), values


@triton.jit
def encode(vector, bits: tl.constexpr, residual_scale: tl.constexpr, by_key):
    """`featherweight.grids.e8.E8Grid.encode` and `decode` of eight values divided by their scale."""
    if bits < 4:
        code, values = nearest(vector, by_key)
        if bits == 3:
            rest = ()
            for k in tl.static_range(8):
                rest = rest + ((vector[k] - values[k]) * residual_scale,)
            more, residual = nearest_small(rest)
            code = code | (more << 16)
            values = added(values, residual, 1.0 / residual_scale)
        return code, values
    code, rest, values, weigh = tl.zeros_like(vector[0]).to(tl.int32), vector, (), 1.0
    for k in tl.static_range(8):
        values = values + (tl.zeros_like(vector[0]),)
    for book in range(0, 2):
        found, part = nearest(rest, by_key)
        code = code | (found << (16 * book))
        values = added(values, part, weigh)
        rest = ()
        for k in tl.static_range(8):
            rest = rest + ((vector[k] - values[k]) * residual_scale,)
        weigh = 1.0 / residual_scale
    return code, values


@triton.jit
def added(values, others, weigh):
    """`values + weigh · others`, eight of each."""
    sums = ()
    for k in tl.static_range(8):
        sums = sums + (values[k] + others[k] * weigh,)
    return sums
