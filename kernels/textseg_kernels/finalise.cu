// From a slab of summed logits to masks on the scan's grid, with counts, boxes and centroid sums in the same
// pass. `finalise` and `finalise_labels` in twins.py say what is computed.
//
// All tallies are whole numbers, so atomics give the same result in every order.
#include "trilinear.cuh"

// A row of tallies for each prompt: voxels, sums of x, y, z, lowest x, y, z, highest x, y, z.
#define TALLIES 10
// Prompts whose tallies fit in shared memory (10 KB); with more, threads add to global memory directly.
#define SHARED_PROMPTS 128
#define NOWHERE 0x7fffffffffffffffLL

struct Tally {
    long long count, sum[3], low[3], high[3];
};

__device__ inline Tally no_voxels() { return {0, {0, 0, 0}, {NOWHERE, NOWHERE, NOWHERE}, {-1, -1, -1}}; }

__device__ inline void take(Tally& tally, long long x, long long y, long long z) {
    long long at[3] = {x, y, z};
    tally.count++;
    for (long long axis = 0; axis < 3; axis++) {
        tally.sum[axis] += at[axis];
        tally.low[axis] = at[axis] < tally.low[axis] ? at[axis] : tally.low[axis];
        tally.high[axis] = at[axis] > tally.high[axis] ? at[axis] : tally.high[axis];
    }
}

__device__ inline void clear_row(long long* row) {
    for (long long entry = 0; entry < 4; entry++) row[entry] = 0;
    for (long long entry = 4; entry < 7; entry++) row[entry] = NOWHERE;
    for (long long entry = 7; entry < TALLIES; entry++) row[entry] = -1;
}

__device__ inline void add(long long* into, long long value) {
    atomicAdd((unsigned long long*)into, (unsigned long long)value);
}

// Bounds only ever widen, so a bound that an old reading already satisfies needs no atomic.
__device__ inline void add_to_row(long long* row, const Tally& tally) {
    if (tally.count == 0) return;
    add(row, tally.count);
    for (long long axis = 0; axis < 3; axis++) {
        add(row + 1 + axis, tally.sum[axis]);
        if (tally.low[axis] < *(volatile long long*)(row + 4 + axis)) atomicMin(row + 4 + axis, tally.low[axis]);
        if (tally.high[axis] > *(volatile long long*)(row + 7 + axis)) atomicMax(row + 7 + axis, tally.high[axis]);
    }
}

__device__ inline Tally row_as_tally(const long long* row) {
    return {row[0], {row[1], row[2], row[3]}, {row[4], row[5], row[6]}, {row[7], row[8], row[9]}};
}

// A slab (prompts, x, y, z) of summed logits and what divides them: one weight a voxel, or where that is null
// the product of three tables.
struct Slab {
    const float* sums;
    long long prompts, x, y, z;
    const float *table_x, *table_y, *table_z, *weights;
};

__device__ inline float logit(
    const Slab& slab, long long prompt, const Neighbours& at_x, const Neighbours& at_y, const Neighbours& at_z)
{
    const float* sums = slab.sums + prompt * slab.x * slab.y * slab.z;
    auto value = [=](long long i, long long j, long long k) {
        long long at = (i * slab.y + j) * slab.z + k;
        float weight = slab.weights ? slab.weights[at] : slab.table_x[i] * slab.table_y[j] * slab.table_z[k];
        return sums[at] / weight;
    };
    return trilinear(value, at_x, at_y, at_z);
}

// One column of the grid a prompt, one byte of the mask (eight voxels along z) a step.
extern "C" __global__ void finalise(
    const float* sums, long long prompts, long long slab_x, long long slab_y, long long slab_z,
    const float* table_x, const float* table_y, const float* table_z, const float* weights, const double* map,
    float threshold, long long out_x, long long out_y, long long out_z, unsigned char* bits, long long* tallies)
{
    __shared__ long long shared[TALLIES];
    if (threadIdx.x == 0) clear_row(shared);
    __syncthreads();

    Slab slab = {sums, prompts, slab_x, slab_y, slab_z, table_x, table_y, table_z, weights};
    long long prompt = blockIdx.x;
    long long row_bytes = (out_z + 7) / 8;
    long long bytes = out_x * out_y * row_bytes;
    long long step = (long long)gridDim.y * blockDim.x;
    Tally tally = no_voxels();
    for (long long byte = (long long)blockIdx.y * blockDim.x + threadIdx.x; byte < bytes; byte += step) {
        long long first = byte % row_bytes * 8;
        long long y = byte / row_bytes % out_y;
        long long x = byte / row_bytes / out_y;
        unsigned char packed = 0;
        for (long long bit = 0; bit < 8 && first + bit < out_z; bit++) {
            long long z = first + bit;
            double at_x = position(map, 0, x, y, z);
            double at_y = position(map, 1, x, y, z);
            double at_z = position(map, 2, x, y, z);
            if (!(reaches(at_x, slab_x) && reaches(at_y, slab_y) && reaches(at_z, slab_z))) continue;
            float value = logit(
                slab, prompt, neighbours(at_x, slab_x), neighbours(at_y, slab_y), neighbours(at_z, slab_z));
            if (value > threshold) {
                packed |= (unsigned char)(1 << bit);
                take(tally, x, y, z);
            }
        }
        bits[prompt * bytes + byte] = packed;
    }

    add_to_row(shared, tally);
    __syncthreads();
    if (threadIdx.x == 0) add_to_row(tallies + TALLIES * prompt, row_as_tally(shared));
}

// One voxel of a row along z a thread; it goes through the prompts and keeps the first of the highest.
extern "C" __global__ void finalise_labels(
    const float* sums, long long prompts, long long slab_x, long long slab_y, long long slab_z,
    const float* table_x, const float* table_y, const float* table_z, const float* weights, const double* map,
    float threshold, long long out_x, long long out_y, long long out_z, short* labels, long long* tallies)
{
    __shared__ long long shared[TALLIES * SHARED_PROMPTS];
    bool fits = prompts <= SHARED_PROMPTS;
    long long thread = (long long)threadIdx.y * blockDim.x + threadIdx.x;
    long long threads = (long long)blockDim.y * blockDim.x;
    for (long long prompt = thread; fits && prompt < prompts; prompt += threads) {
        clear_row(shared + TALLIES * prompt);
    }
    __syncthreads();

    Slab slab = {sums, prompts, slab_x, slab_y, slab_z, table_x, table_y, table_z, weights};
    long long* block_tallies = fits ? shared : tallies;
    long long rows = out_x * out_y;
    long long step = (long long)gridDim.x * blockDim.y;
    // Neighbouring voxels mostly have the same label, so tallies are added up while it stays the same.
    Tally tally = no_voxels();
    long long tallied = 0;
    for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step) {
        long long y = row % out_y;
        long long x = row / out_y;
        for (long long z = threadIdx.x; z < out_z; z += blockDim.x) {
            double at_x = position(map, 0, x, y, z);
            double at_y = position(map, 1, x, y, z);
            double at_z = position(map, 2, x, y, z);
            long long label = 0;
            if (reaches(at_x, slab_x) && reaches(at_y, slab_y) && reaches(at_z, slab_z)) {
                Neighbours along_x = neighbours(at_x, slab_x);
                Neighbours along_y = neighbours(at_y, slab_y);
                Neighbours along_z = neighbours(at_z, slab_z);
                float highest = threshold;
                for (long long prompt = 0; prompt < prompts; prompt++) {
                    float value = logit(slab, prompt, along_x, along_y, along_z);
                    if (value > highest) {
                        highest = value;
                        label = prompt + 1;
                    }
                }
            }
            labels[row * out_z + z] = (short)label;
            if (label != tallied) {
                if (tallied) add_to_row(block_tallies + TALLIES * (tallied - 1), tally);
                tally = no_voxels();
                tallied = label;
            }
            if (label) take(tally, x, y, z);
        }
    }
    if (tallied) add_to_row(block_tallies + TALLIES * (tallied - 1), tally);
    __syncthreads();
    for (long long prompt = thread; fits && prompt < prompts; prompt += threads) {
        add_to_row(tallies + TALLIES * prompt, row_as_tally(shared + TALLIES * prompt));
    }
}
