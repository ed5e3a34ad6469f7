// Patches for the network, straight from the scan's own voxels: resampled, clipped, normalised and rounded to
// half in one pass. `gather` in twins.py says what is computed; each thread takes one voxel of a row along z.
#include "half.cuh"
#include "trilinear.cuh"

template <typename Voxel>
__device__ void gather(
    const Voxel* scan, long long scan_x, long long scan_y, long long scan_z, const double* maps,
    half_bits* out, long long batch, long long out_x, long long out_y, long long out_z, long long channels,
    long long channel, float lowest, float highest, float mean, float sd, float padding)
{
    long long rows = batch * out_x * out_y;
    long long step = (long long)gridDim.x * blockDim.y;
    for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step) {
        long long y = row % out_y;
        long long x = row / out_y % out_x;
        const double* map = maps + 12 * (row / out_y / out_x);
        for (long long z = threadIdx.x; z < out_z; z += blockDim.x) {
            double at_x = position(map, 0, x, y, z);
            double at_y = position(map, 1, x, y, z);
            double at_z = position(map, 2, x, y, z);
            float result = padding;
            if (reaches(at_x, scan_x) && reaches(at_y, scan_y) && reaches(at_z, scan_z)) {
                auto value = [=](long long i, long long j, long long k) {
                    return (float)scan[(i * scan_y + j) * scan_z + k];
                };
                float sampled = trilinear(
                    value, neighbours(at_x, scan_x), neighbours(at_y, scan_y), neighbours(at_z, scan_z));
                // NaN is padding too: fmaxf would make it the lowest value, which is a statement.
                if (sampled == sampled) {
                    result = (fminf(fmaxf(sampled, lowest), highest) - mean) / sd;
                }
            }
            out[(row * out_z + z) * channels + channel] = to_half(result);
        }
    }
}

#define GATHER(NAME, VOXEL)                                                                                  \
    extern "C" __global__ void NAME(                                                                         \
        const VOXEL* scan, long long scan_x, long long scan_y, long long scan_z, const double* maps,         \
        half_bits* out, long long batch, long long out_x, long long out_y, long long out_z,                  \
        long long channels, long long channel, float lowest, float highest, float mean, float sd,            \
        float padding)                                                                                       \
    {                                                                                                        \
        gather(scan, scan_x, scan_y, scan_z, maps, out, batch, out_x, out_y, out_z, channels, channel,       \
               lowest, highest, mean, sd, padding);                                                          \
    }

GATHER(gather_int16, short)
GATHER(gather_float32, float)
