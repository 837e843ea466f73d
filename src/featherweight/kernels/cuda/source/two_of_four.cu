// Products with weights of which two of every four inputs are kept, as 4-bit codes or as values.
#define STORAGE "two_of_four.cuh"
#include "numbers.cuh"
#include "stream.cuh"

EXPORT(multiply_stream)
