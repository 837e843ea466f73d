// Products with values in 16 bits of which any are kept; a bit for each weight tells which.
#define STORAGE "bitmap.cuh"
#include "numbers.cuh"
#include "stream.cuh"

#if VALUES
#include "bitmap_values.cuh"
#else
EXPORT(multiply_stream)
#endif
