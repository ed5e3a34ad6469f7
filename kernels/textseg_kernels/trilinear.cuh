// Where a voxel of one grid lies in another, and what a volume says there.
//
// A map is 3 x 4, row by row, in voxels: position = map[:, :3] @ index + map[:, 3]. A voxel reaches half a
// voxel to each side of its centre, so a volume of size n reaches from -0.5 to n - 0.5. Between the outermost
// centres and that border the border voxel's value holds.

// Positions are rounded to this part of a voxel, so that maps that differ by rounding give equal values. A
// power of two: fractions of it are exact in float, and grids over one field of view meet on it.
#define POSITION_STEPS 131072.0

struct Neighbours {
    long long low, high;
    float fraction;
};

__device__ inline double position(const double* map, long long axis, long long x, long long y, long long z) {
    const double* row = map + 4 * axis;
    double exact = row[0] * (double)x + row[1] * (double)y + row[2] * (double)z + row[3];
    return rint(exact * POSITION_STEPS) / POSITION_STEPS;
}

__device__ inline bool reaches(double position, long long size) {
    return position >= -0.5 && position <= (double)size - 0.5;
}

// At a whole position `high` is `low`: no voxel is read that has no weight, were it NaN or past the end.
__device__ inline Neighbours neighbours(double position, long long size) {
    double clamped = fmin(fmax(position, 0.0), (double)(size - 1));
    double low = floor(clamped);
    Neighbours found;
    found.fraction = (float)(clamped - low);
    found.low = (long long)low;
    found.high = found.low + (found.fraction > 0.0f ? 1 : 0);
    return found;
}

__device__ inline float mixed(float low, float high, float fraction) { return low + (high - low) * fraction; }

// value(x, y, z) at eight voxels, mixed along z, then y, then x.
template <typename Value>
__device__ inline float trilinear(Value value, Neighbours x, Neighbours y, Neighbours z) {
    float low_low = mixed(value(x.low, y.low, z.low), value(x.low, y.low, z.high), z.fraction);
    float low_high = mixed(value(x.low, y.high, z.low), value(x.low, y.high, z.high), z.fraction);
    float high_low = mixed(value(x.high, y.low, z.low), value(x.high, y.low, z.high), z.fraction);
    float high_high = mixed(value(x.high, y.high, z.low), value(x.high, y.high, z.high), z.fraction);
    float low = mixed(low_low, low_high, y.fraction);
    float high = mixed(high_low, high_high, y.fraction);
    return mixed(low, high, x.fraction);
}
