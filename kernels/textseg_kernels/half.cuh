// float16 as its 16 bits. Two instructions, so that the sources need no header: NVRTC has none of its own,
// and where cuda_fp16.h lies differs from one installation to the next.
typedef unsigned short half_bits;

#ifndef TEXTSEG_HOST
__device__ inline float to_float(half_bits bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline half_bits to_half(float value) {
    half_bits bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ inline float to_float(float value) { return value; }
