// Activations as `multiply.cu` keeps them in shared memory, for all units: a warp makes those of one token and one unit.
//
// Fixed when compiled: what `tiles.cuh` names, COLUMNS.
#include "activations.cuh"

KERNEL void __launch_bounds__(32)
arrange(const half_word* x, unsigned char* stages, int inputs, int tokens, int stride) {
    release_dependents();
    wait_for_inputs();
    int bytes = tokens * STRIDE * 2 + (GROUPS_OF_UNIT + 1) * WIDTH * 4;
    Activations activations = {stages, bytes, tokens, inputs, stride, 0, 1, (int)threadIdx.x, x};
    activations.put_token(blockIdx.y, blockIdx.x, blockIdx.x);
}
EXPORT(arrange)
