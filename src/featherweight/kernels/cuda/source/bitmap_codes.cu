// Products with 4-bit codes of which any are kept; a bit for each weight tells which.
#define STORAGE "bitmap_codes.cuh"
#include "numbers.cuh"
#include "stream.cuh"

#if VALUES
#include "bitmap_codes_values.cuh"
#else
EXPORT(multiply_stream)
#endif
