// Softmax attention of one token over keys and values of which the oldest are in code, all query heads of a key head together.
//
// Grid: parts, key heads times blocks of HEADS query heads, sequences. Part 0 reads the tokens whose values are exact, and the
// first ones; all parts, or all others, share the rest. A warp keeps its own maximum and sums and copies its next stages in the
// background. Warps are added up in shared memory, parts by the last of them to finish.
//
// Fixed when compiled: WARPS, DEPTH (stages of a warp in shared memory), RESIDENT, MASKED, KEYS and VALUES (which codec).
#if KEYS == 1
#include "cache_keys_qjl.cuh"
#elif KEYS == 2
#include "cache_keys_channel.cuh"
#elif KEYS == 3
#include "cache_keys_levels.cuh"
#else
#include "cache_keys_token.cuh"
#endif
#if VALUES == 1
#include "cache_values_integer.cuh"
#else
#include "cache_values_levels.cuh"
#endif
#include "cache_combine.cuh"
#include "cache_exact.cuh"
#include "cache_runs.cuh"

constexpr int STAGE_BYTES = (KEY_STAGE + 15) / 16 * 16 + (VALUE_STAGE + 15) / 16 * 16, VALUES_AT = (KEY_STAGE + 15) / 16 * 16;
constexpr bool BESIDE = WARPS * RESIDENT <= MOST_BESIDE;
constexpr int QUERY_BYTES = 2 * HEADS * HEAD_DIM * 2;  // columns: each head twice

// Where a warp is, and what it has.
struct Walk {
    int sequence, head, lane, row, quarter;
    int coded_keys, coded_values, tokens, first;
    const unsigned char *prepared, *mask;
    const half_word* asked;  // queries of the columns, one after another
    float best = LOWEST, weight = 0;

    // Maximum brought up to date, and what to multiply earlier sums by; false if nothing changes.
    DEVICE bool raise(const float (&x)[2][2], float& factor) {
        float top = fmaxf(fmaxf(x[0][0], x[0][1]), fmaxf(x[1][0], x[1][1]));
        if (!any_lane(top > best + SLACK)) return false;
        for (int lanes = 4; lanes < 32; lanes *= 2) top = fmaxf(top, exchange(top, lanes));
        top = fmaxf(top, best);
        factor = power(best - top);
        best = top;
        weight *= factor;
        return true;
    }

    // Scores become weights, two to a word, as products with values take them.
    template <class Sums>
    DEVICE void weigh(word (&weights)[2][2], Sums& sums, const float (&x)[2][2]) {
        float factor;
        if (raise(x, factor)) sums.rescale(factor);
        const float shift = (float)EXTRA - best;
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const float low = power(x[tile][0] + shift), high = power(x[tile][1] + shift);
            weight += low + high;
            weights[tile][0] = transpose(pair(low, low)), weights[tile][1] = transpose(pair(high, high));
        }
    }
    template <class Sums>
    DEVICE void add(Sums& sums, const float (&x)[2][2]) {
        word weights[2][2];
        weigh(weights, sums, x);
#pragma unroll
        for (int tile = 0; tile < 2; tile++) sums.add(nullptr, tile, weights[tile][0], weights[tile][1], row, quarter);
    }

    // Tokens outside [begin, end), and those that the mask hides, get no weight.
    DEVICE void hide(float (&x)[2][2], int base, int begin, int end) const {
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int token = base + 16 * tile + 8 * half + token_of(row);
                bool seen = token >= begin && token < end;
#if MASKED
                seen = seen && mask[token];
#endif
                if (!seen) x[tile][half] = as_float(0xFF800000u);  // −∞
            }
        }
    }

    template <class Sums>
    DEVICE void store(const Sums& sums, float* state, float* room) const {
        float whole = weight;
        for (int lanes = 4; lanes < 32; lanes *= 2) whole += exchange(whole, lanes);
        float* mine = state + quarter * STATE;
        sums.store(mine, room + quarter * 8, row);
        if (row == 0) mine[HEAD_DIM] = best, mine[HEAD_DIM + 1] = whole;
    }
};

// The stages of a warp in shared memory, filled ahead of their use.
struct Ring {
    KeyFeed keys;
    ValueFeed values;
    unsigned char *first, *next;  // the ring, and the place to be filled next

    DEVICE void begin(const Walk& walk, const Arguments& a, unsigned char* ring) {
        first = next = ring;
        keys.begin(a, walk.sequence, walk.head, walk.lane);
        values.begin(a, walk.sequence, walk.head, walk.lane);
    }
    DEVICE void fetch(const Walk& walk, int stage) {
        if (stage >= 0) {
            const int left = walk.coded_values - stage * STAGE;
            if (left >= STAGE) {
                keys.copy<true>(next, stage, STAGE, walk.lane);
                values.copy<true>(next + VALUES_AT, stage, STAGE, walk.lane);
            } else {
                keys.copy<false>(next, stage, left + walk.coded_keys - walk.coded_values, walk.lane);
                values.copy<false>(next + VALUES_AT, stage, left, walk.lane);
            }
        }
        next = after(next);
        close_copies();
    }
    DEVICE unsigned char* after(unsigned char* place) const {
        return place == first + (DEPTH - 1) * STAGE_BYTES ? first : place + STAGE_BYTES;
    }
};

// A warp's stages of coded values; `shared` holds DEPTH. Where registers allow (BESIDE), values of a stage are added while the next
// one's scores are made, neither of which waits for the other.
DEVICE void walk_coded(Walk& walk, Values& values, const Arguments& a, unsigned char* shared, Runs runs) {
    Ring ring;
    ring.begin(walk, a, shared);
    int stages[DEPTH];  // this one, and those after it
#pragma unroll
    for (int ahead = 0; ahead < DEPTH - 1; ahead++) ring.fetch(walk, stages[ahead] = runs.take(walk.lane));
    if (PREPARED) wait_for_inputs();
    if (stages[0] < 0) return;
    Keys keys;
    keys.begin(a, walk.prepared, walk.asked + walk.row * HEAD_DIM, walk.lane, walk.row, walk.quarter);
    keys.seek(a, walk.sequence, walk.head, stages[0]);
    unsigned char *place = shared, *before = shared;
    word weights[2][2] = {};  // of the stage before, none at first
    const auto add = [&](int tile) { values.add(before + VALUES_AT, tile, weights[tile][0], weights[tile][1], walk.row, walk.quarter); };
    while (stages[0] >= 0) {
        stages[DEPTH - 1] = runs.take(walk.lane);
        keys.fetch(stages[1], walk.row, walk.quarter);
        wait_for_copies<DEPTH - 2>();
        synchronize_warp();
        if (!BESIDE) ring.fetch(walk, stages[DEPTH - 1]);  // into the place of the stage before, which all lanes have read
        const int base = stages[0] * STAGE, left = walk.coded_values - base;
        const bool edge = MASKED || left < STAGE || base < walk.first;
        if (edge && left < STAGE) {
            Values::clear(place + VALUES_AT, left, walk.lane);
            synchronize_warp();
        }
        float x[2][2];
        if constexpr (BESIDE) {
            keys.score(x, place, a, walk.prepared, walk.row, walk.quarter, add);
            synchronize_warp();
            ring.fetch(walk, stages[DEPTH - 1]);
        } else {
            keys.score(x, place, a, walk.prepared, walk.row, walk.quarter, [](int) {});
        }
        if (edge) walk.hide(x, base, walk.first, walk.coded_values);
        walk.weigh(weights, values, x);
        before = place, place = ring.after(place);
        if (!BESIDE) add(0), add(1);
#pragma unroll
        for (int ahead = 0; ahead < DEPTH - 1; ahead++) stages[ahead] = stages[ahead + 1];
    }
    if (BESIDE) add(0), add(1);
}

// The first tokens, and those from the first exact value on, of which the oldest keys may be in code.
DEVICE void walk_exact(Walk& walk, ExactValues& values, const Arguments& a, unsigned char* ring, int warp) {
    if (PREPARED) wait_for_inputs();
    Keys keys;
    keys.begin(a, walk.prepared, walk.asked + walk.row * HEAD_DIM, walk.lane, walk.row, walk.quarter);
    const int begin = walk.coded_values / STAGE, end = walk.tokens > walk.coded_values ? (walk.tokens + STAGE - 1) / STAGE : 0;
    float x[2][2];
    if (warp == WARPS - 1 && walk.first) {
        for (int base = 0; base < walk.first; base += STAGE) {
            score_exact(x, {a.first_keys.of(walk.sequence, walk.head), 0, walk.first, 0}, walk.asked, base, a.scaling, walk.row, walk.quarter);
            walk.hide(x, base, 0, walk.first);
            values.at({a.first_values.of(walk.sequence, walk.head), 0, walk.first, 0}, base);
            walk.add(values, x);
        }
    }
    for (int stage = begin + warp; stage < end; stage += WARPS) {
        const int base = stage * STAGE;
        if (base < walk.coded_keys) {
            keys.seek(a, walk.sequence, walk.head, stage);
            keys.fetch(Runs::NONE, walk.row, walk.quarter);
            KeyFeed feed;
            feed.begin(a, walk.sequence, walk.head, walk.lane);
            feed.copy<false>(ring, stage, walk.coded_keys - base, walk.lane);
            close_copies();
            wait_for_copies<0>();
            synchronize_warp();
            keys.score(x, ring, a, walk.prepared, walk.row, walk.quarter, [](int) {});
            synchronize_warp();
        }
        if (base + STAGE > walk.coded_keys && walk.tokens > walk.coded_keys) {
            float exact[2][2];
            score_exact(exact, {a.exact_keys.of(walk.sequence, walk.head), walk.coded_keys, walk.tokens, a.key_ring}, walk.asked, base,
                        a.scaling, walk.row, walk.quarter);
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const int token = base + 16 * (place / 2) + 8 * (place % 2) + token_of(walk.row);
                if (token >= walk.coded_keys) x[place / 2][place % 2] = exact[place / 2][place % 2];
            }
        }
        walk.hide(x, base, walk.coded_values > walk.first ? walk.coded_values : walk.first, walk.tokens);
        values.at({a.exact_values.of(walk.sequence, walk.head), walk.coded_values, walk.tokens, a.value_ring}, base);
        walk.add(values, x);
    }
}

// What the warps of this part have of some tokens, added up and left in `slot` for the last part.
template <class Sums>
DEVICE void keep(const Walk& walk, const Sums& sums, float* states, float* slot, int warp) {
    synchronize_block();
    walk.store(sums, states + warp * HEADS * STATE, states + WARPS * HEADS * STATE + warp * HEADS * 8);
    synchronize_block();
    if (warp < HEADS) {
        Total total;
        total.template add<WARPS>(states + warp * STATE, 0, WARPS, 1, HEADS * STATE, walk.lane, [](const float* at) { return *(const float4*)at; });
        total.store(slot + warp * STATE, walk.lane);
    }
    synchronize_block();
}

KERNEL void __launch_bounds__(WARPS * 32, RESIDENT) cache_attention(const __grid_constant__ Arguments a) {
    SHARED_MEMORY(shared);
    if (!PREPARED) wait_for_inputs();  // else the kernel before, which prepares the query, has waited for all others
    release_dependents();
    const int warp = threadIdx.x / 32, part = blockIdx.x, parts = gridDim.x, blocks = (a.group + HEADS - 1) / HEADS;
    Walk walk;
    walk.lane = threadIdx.x % 32, walk.row = walk.lane / 4, walk.quarter = walk.lane % 4;
    walk.sequence = blockIdx.z, walk.head = blockIdx.y / blocks;
    const int owner = blockIdx.z * gridDim.y + blockIdx.y, base_head = walk.head * a.group + blockIdx.y % blocks * HEADS;
    const int heads = a.group - blockIdx.y % blocks * HEADS < HEADS ? a.group - blockIdx.y % blocks * HEADS : HEADS;
    walk.coded_keys = a.lengths ? a.lengths[0] : a.coded_keys;
    walk.coded_values = a.lengths ? a.lengths[1] : a.coded_values;
    walk.tokens = a.lengths ? a.lengths[2] : a.tokens;
    walk.first = a.first < walk.coded_values ? a.first : walk.coded_values;
    walk.prepared = a.prepared + (long long)owner * PREPARED;
    walk.mask = a.mask + (long long)walk.sequence * a.mask_stride;
    half_word* asked = (half_word*)shared;
    walk.asked = asked;
    unsigned char* ring = shared + QUERY_BYTES + warp * DEPTH * STAGE_BYTES;
    if (threadIdx.x < 2 * HEADS * HEAD_DIM / 8) {
        const int column = threadIdx.x / (HEAD_DIM / 8), head = column / 2 < heads ? column / 2 : heads - 1;
        const unsigned char* source = a.query.of(walk.sequence, base_head + head);
        ((uint4*)asked)[threadIdx.x] = ((const uint4*)source)[threadIdx.x % (HEAD_DIM / 8)];
    }
    synchronize_block();

    float* states = (float*)(shared + QUERY_BYTES);
    const int coding = parts - a.apart, slots = coding + 1;  // the first slot is that of exact tokens
    float* partial = a.partial + (long long)owner * slots * HEADS * STATE;
    if (part == 0) {
        ExactValues values;
        walk_exact(walk, values, a, ring, warp);
        keep(walk, values, states, partial, warp);
        walk.best = LOWEST, walk.weight = 0;
    }
    if (part >= a.apart) {
        Values values;
        values.begin(a, walk.row, walk.quarter);
        Runs runs;
        runs.begin(a.tickets + 2 * owner + 1, walk.coded_values, coding * WARPS, (part - a.apart) * WARPS + warp, walk.lane);
        walk_coded(walk, values, a, ring, runs);
        wait_for_copies<0>();
        keep(walk, values, states, partial + (1 + part - a.apart) * HEADS * STATE, warp);
    }
    word* last = (word*)shared;
    if (threadIdx.x == 0) {
        *last = take_ticket(a.tickets + 2 * owner, parts);
        if (*last) a.tickets[2 * owner + 1] = 0;
    }
    synchronize_block();
    if (!*last) return;
    half_word* out = a.out + ((long long)walk.sequence * (gridDim.y / blocks) * a.group + base_head) * HEAD_DIM;
    combine(a, partial, states, slots, out, heads, warp, walk.lane);
}

EXPORT(cache_attention)
