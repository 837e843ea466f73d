// Products with weights of which two of every four inputs are kept, as 4-bit codes or as values.
#define STORAGE "two_of_four.cuh"
#include "numbers.cuh"
#include "stream.cuh"

#if VALUES
#include "stream_values.cuh"
#else
EXPORT(multiply_stream)
#endif
