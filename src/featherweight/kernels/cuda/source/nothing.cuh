// No terms beside the chunks.
#pragma once

struct Extra {
    DEVICE Extra(const Work&, int) {}
    DEVICE void look_ahead(const Work&, const Run&, int, int) {}
    DEVICE void ask(const Work&, int) {}
    DEVICE void add(const Work&, Sums&, const Inputs&, int, int) {}
};
