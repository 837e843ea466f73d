// Planes of bytes that the lattice's product reads.
#pragma once
#include "instructions.cuh"

// Where entry `at` stands in planes: of every 16 entries these have 0 to 3, 8 to 11, 4 to 7, 12 to 15.
DEVICE int byte_of(int at) {
    int four = at >> 2 & 3;
    return at + (four == 1 ? 4 : four == 2 ? -4 : 0);
}
