// Connected parts of a mask, voxels joined across faces, edges and corners, by union-find: each voxel points
// at an earlier voxel of its part, roots at themselves, and two roots are joined with atomicMin (Komura 2015,
// Playne and Hawick 2018). A part's root is in the end its first voxel, whatever the order of the threads.
// `keep_components` and `keep_largest_component` in twins.py say what is computed.
//
// A mask (x, y, z) has a byte a voxel or, packed, a bit: z along the bytes, the lowest bit first.

#define OUTSIDE -1LL

// Other threads change labels meanwhile, so every step reads memory anew.
__device__ inline long long root_of(const long long* labels, long long voxel) {
    const volatile long long* current = labels;
    long long parent = current[voxel];
    while (parent != voxel) {
        voxel = parent;
        parent = current[voxel];
    }
    return voxel;
}

__device__ inline void join(long long* labels, long long a, long long b) {
    while (true) {
        a = root_of(labels, a);
        b = root_of(labels, b);
        if (a == b) return;
        long long later = a > b ? a : b;
        long long earlier = a > b ? b : a;
        long long before = atomicMin(labels + later, earlier);
        if (before == later) return;
        // Another thread joined `later` elsewhere first; what it was joined to is of our part as well.
        a = before;
        b = earlier;
    }
}

// Each mask voxel points at itself.
extern "C" __global__ void components_start(
    const unsigned char* mask, bool packed, long long size_x, long long size_y, long long size_z,
    long long* labels)
{
    long long rows = size_x * size_y;
    long long row_bytes = packed ? (size_z + 7) / 8 : size_z;
    long long step = (long long)gridDim.x * blockDim.y;
    for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step) {
        for (long long z = threadIdx.x; z < size_z; z += blockDim.x) {
            const unsigned char* bytes = mask + row * row_bytes;
            bool inside = packed ? (bytes[z / 8] >> (z % 8)) & 1 : bytes[z] != 0;
            labels[row * size_z + z] = inside ? row * size_z + z : OUTSIDE;
        }
    }
}

// A voxel is joined with the one before it in its row, and with three voxels of each of the four rows before
// its own that touch it: of those the middle one stands for all three where it is in the mask.
extern "C" __global__ void components_join(
    long long size_x, long long size_y, long long size_z, long long* labels)
{
    const long long before_x[4] = {0, -1, -1, -1};
    const long long before_y[4] = {-1, -1, 0, 1};
    long long rows = size_x * size_y;
    long long step = (long long)gridDim.x * blockDim.y;
    for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step) {
        long long y = row % size_y;
        long long x = row / size_y;
        for (long long z = threadIdx.x; z < size_z; z += blockDim.x) {
            long long voxel = row * size_z + z;
            if (labels[voxel] == OUTSIDE) continue;
            if (z > 0 && labels[voxel - 1] != OUTSIDE) join(labels, voxel, voxel - 1);
            for (long long other = 0; other < 4; other++) {
                long long other_x = x + before_x[other];
                long long other_y = y + before_y[other];
                if (other_x < 0 || other_y < 0 || other_y >= size_y) continue;
                long long middle = (other_x * size_y + other_y) * size_z + z;
                if (labels[middle] != OUTSIDE) {
                    join(labels, voxel, middle);
                } else {
                    if (z > 0 && labels[middle - 1] != OUTSIDE) join(labels, voxel, middle - 1);
                    if (z + 1 < size_z && labels[middle + 1] != OUTSIDE) join(labels, voxel, middle + 1);
                }
            }
        }
    }
}

// Every voxel points at its root, and sizes (zero before) holds at each root the voxels of its part. A thread
// adds up while it stays in one part, since atomics on the one root of a large part would queue.
extern "C" __global__ void components_count(long long voxels, long long* labels, long long* sizes)
{
    long long step = (long long)gridDim.x * blockDim.x;
    long long counted = OUTSIDE;
    unsigned long long count = 0;
    for (long long voxel = (long long)blockIdx.x * blockDim.x + threadIdx.x; voxel < voxels; voxel += step) {
        if (labels[voxel] == OUTSIDE) continue;
        long long root = root_of(labels, voxel);
        labels[voxel] = root;
        if (root != counted) {
            if (count) atomicAdd((unsigned long long*)sizes + counted, count);
            counted = root;
            count = 0;
        }
        count++;
    }
    if (count) atomicAdd((unsigned long long*)sizes + counted, count);
}

// What is kept, in the mask's own format: the part of the root `only`, or where that is null parts of at
// least `least` voxels.
extern "C" __global__ void components_keep(
    const long long* labels, const long long* sizes, const long long* only, long long least, bool packed,
    long long size_x, long long size_y, long long size_z, unsigned char* kept)
{
    long long voxels_a_byte = packed ? 8 : 1;
    long long row_bytes = (size_z + voxels_a_byte - 1) / voxels_a_byte;
    long long rows = size_x * size_y;
    long long step = (long long)gridDim.x * blockDim.y;
    for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step) {
        for (long long byte = threadIdx.x; byte < row_bytes; byte += blockDim.x) {
            unsigned char result = 0;
            for (long long bit = 0; bit < voxels_a_byte && byte * voxels_a_byte + bit < size_z; bit++) {
                long long root = labels[row * size_z + byte * voxels_a_byte + bit];
                bool keeps = root != OUTSIDE && (only ? root == *only : sizes[root] >= least);
                result |= (unsigned char)(keeps ? 1 << bit : 0);
            }
            kept[row * row_bytes + byte] = result;
        }
    }
}
