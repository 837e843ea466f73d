// No terms beside the chunks.
#pragma once

struct Extra {
    DEVICE Extra(const Work&, const Run&, int) {}
    DEVICE void begin(const Work&, int, bool, int, int) {}
    DEVICE void add(Sums&, const Work&, const Inputs&, int) {}
};

struct Beside {
    DEVICE Beside(const Work&, const Run&, int) {}
    DEVICE void add(float (&)[COLUMNS][4], const Work&, const Inputs&, int, bool, int) {}
};
