// Windows of logits added, weighted, into a slab. `blend` in twins.py says what is computed; each thread owns
// slab voxels and goes through the windows in their order, so that overlapping windows need no float atomics
// and the sum is the same in every run.
#include "half.cuh"

template <typename Logit>
__device__ void blend(
    const Logit* logits, const long long* starts, long long windows, const float* table_x,
    const float* table_y, const float* table_z, long long window_x, long long window_y, long long window_z,
    float* slab, long long prompts, long long slab_x, long long slab_y, long long slab_z, long long box_x,
    long long box_y, long long box_z, long long size_x, long long size_y, long long size_z)
{
    long long rows = prompts * size_x * size_y;
    long long step = (long long)gridDim.x * blockDim.y;
    for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step) {
        long long y = box_y + row % size_y;
        long long x = box_x + row / size_y % size_x;
        long long prompt = row / size_y / size_x;
        float* slab_row = slab + ((prompt * slab_x + x) * slab_y + y) * slab_z;
        for (long long z = box_z + threadIdx.x; z < box_z + size_z; z += blockDim.x) {
            float sum = slab_row[z];
            for (long long window = 0; window < windows; window++) {
                long long i = x - starts[3 * window];
                long long j = y - starts[3 * window + 1];
                long long k = z - starts[3 * window + 2];
                if (i >= 0 && i < window_x && j >= 0 && j < window_y && k >= 0 && k < window_z) {
                    long long at = (((window * prompts + prompt) * window_x + i) * window_y + j) * window_z + k;
                    sum += table_x[i] * table_y[j] * table_z[k] * to_float(logits[at]);
                }
            }
            slab_row[z] = sum;
        }
    }
}

#define BLEND(NAME, LOGIT)                                                                                   \
    extern "C" __global__ void NAME(                                                                         \
        const LOGIT* logits, const long long* starts, long long windows, const float* table_x,               \
        const float* table_y, const float* table_z, long long window_x, long long window_y,                  \
        long long window_z, float* slab, long long prompts, long long slab_x, long long slab_y,              \
        long long slab_z, long long box_x, long long box_y, long long box_z, long long size_x,               \
        long long size_y, long long size_z)                                                                  \
    {                                                                                                        \
        blend(logits, starts, windows, table_x, table_y, table_z, window_x, window_y, window_z, slab,        \
              prompts, slab_x, slab_y, slab_z, box_x, box_y, box_z, size_x, size_y, size_z);                 \
    }

BLEND(blend_float16, half_bits)
BLEND(blend_float32, float)
