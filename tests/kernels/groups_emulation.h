// What `groups.cuh` asks of the card, on a CPU: products are there at once, each warp multiplies its own 16 rows.
#pragma once
#include "emulation.h"

struct Matrix {
    const unsigned char* place;
    int apart;
    float at(int token, int input) const {
        half_word bits;
        memcpy(&bits, place + input / 8 * apart + token / 8 * 128 + token % 8 * 16 + input % 8 * 2, 2);
        return from_fp16(bits);
    }
};
DEVICE Matrix matrix_at(const void* place, int apart) { return {(const unsigned char*)place, apart}; }
DEVICE Matrix moved(Matrix matrix, int bytes) { return {matrix.place + bytes, matrix.apart}; }
DEVICE void begin_products() {}
DEVICE void commit_products() {}
DEVICE void finish_products() { synchronize_warp(); }
template <class T>
DEVICE void hold(T&) {}

template <int COUNT>
DEVICE void multiply_group(float (&c)[COUNT][4], const word (&a)[4], Matrix b) {
    auto& words = fibre_here->warp->words;
    int lane = fibre_here->lane;
    for (int i = 0; i < 4; i++) words[lane][i] = a[i];
    synchronize_warp();
    for (int column = 0; column < COUNT; column++) {
        for (int part = 0; part < 4; part++) {
            double sum = c[column][part];
            for (int k = 0; k < 16; k++) {
                word x = words[lane / 4 * 4 + k % 8 / 2][part / 2 + k / 8 * 2];
                sum += (double)from_fp16((half_word)(x >> k % 2 * 16)) * b.at(column * 8 + lane % 4 * 2 + part % 2, k);
            }
            c[column][part] = (float)sum;
        }
    }
    synchronize_warp();
}
