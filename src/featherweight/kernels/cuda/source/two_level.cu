// Products with SpQR's weights: codes in groups of 16 inputs with scales and zeros that are codes themselves, and a list of
// weights to be added.
#define STORAGE "two_level.cuh"
#include "numbers.cuh"
#include "stream.cuh"

#if VALUES
#include "two_level_values.cuh"
#else
EXPORT(multiply_stream)
#endif
