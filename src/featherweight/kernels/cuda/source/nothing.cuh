// No terms beside the chunks.
#pragma once

struct Extra {
    DEVICE Extra(const Work&, const Run&, int) {}
    DEVICE void begin(const Work&, int, bool, int, int) {}
    DEVICE void add(const Work&, float (&)[COLUMNS][4], const Inputs&, int) {}
};
