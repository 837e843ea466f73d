// Activations of a block of TOKENS tokens as `batch.cu` wants them in shared memory: one image for each unit of inputs. First fp16
// numbers, `[step of 16][eight of them][token / 8][token % 8][8]`, in the order in which lanes hold codes (`layout.py`), times the
// powers of two that the codes' places ask for (`fields.cuh`); then what zero points contribute, fp32 `[group][TOKENS]`.
#pragma once
#define COLUMNS (TOKENS / 8)
#include "fields.cuh"

constexpr int HALF_BYTES = TOKENS * 16, STEP_BYTES = 2 * HALF_BYTES;  // eight inputs, and sixteen, of all tokens
constexpr int NUMBER_BYTES = UNIT / 16 * STEP_BYTES, IMAGE_BYTES = NUMBER_BYTES + GROUPS_OF_UNIT * TOKENS * 4;
