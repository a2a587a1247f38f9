// What CUDA bodies share: element types on the device, sums over a block, reflect padding. For .cu files
// alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common.h"

namespace dgnet_fast {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

template <class T>
struct Device;
template <>
struct Device<float> {
    using type = float;
};
template <>
struct Device<BFloat16> {
    using type = __nv_bfloat16;
};
template <>
struct Device<Float16> {
    using type = __half;
};

__device__ inline float to_float(float v) {
    return v;
}
__device__ inline float to_float(__nv_bfloat16 v) {
    return __bfloat162float(v);
}
__device__ inline float to_float(__half v) {
    return __half2float(v);
}
__device__ inline void put(float* p, float v) {
    *p = v;
}
__device__ inline void put(__nv_bfloat16* p, float v) {
    *p = __float2bfloat16_rn(v);
}
__device__ inline void put(__half* p, float v) {
    *p = __float2half_rn(v);
}

__device__ inline float leaky(float z, float value, float slope) {
    return z > 0 ? value : value * slope;
}

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
    T lane[V];
};

// Sum over the block, in every thread.
template <class Number>
__device__ Number block_sum(Number value) {
    __shared__ Number partial[kWarps];
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    __syncthreads();  // `partial` may still be read for the previous sum
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    Number total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[w];
    return total;
}

// Sum over the block's warps, per lane, in every thread.
__device__ inline float row_sum(float value) {
    __shared__ float partial[kWarps][32];
    __syncthreads();
    partial[threadIdx.x / 32][threadIdx.x % 32] = value;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[w][threadIdx.x % 32];
    return total;
}

// Division by a number known at launch: a multiplication and a correction by at most one.
struct Divisor {
    unsigned by, factor;

    explicit Divisor(int64_t value) : by(unsigned(value)) {
        const uint64_t exact = (uint64_t{1} << 32) / by;  // 2^32 for 1, one more than `factor` holds
        factor = unsigned(exact < 0xffffffffu ? exact : 0xffffffffu);
    }
    __device__ void split(unsigned value, int& quotient, int& remainder) const {
        unsigned q = __umulhi(value, factor), r = value - q * by;
        if (r >= by) {
            q += 1;
            r -= by;
        }
        quotient = int(q);
        remainder = int(r);
    }
};

// A picture and its reflect padding. Pixel numbers count within a picture, so they fit in 32 bits.
struct Reflection {
    int height, width, padding;
    Divisor by_width, by_padded_width;

    explicit Reflection(const ImageShape& s)
        : height(int(s.height)),
          width(int(s.width)),
          padding(int(s.padding)),
          by_width(s.width),
          by_padded_width(s.width + 2 * s.padding) {}

    // The row and column of the picture that pixel `i` of the padded picture shows.
    __device__ void source(unsigned i, int& h, int& w) const {
        by_padded_width.split(i, h, w);
        h = reflected(h - padding, height);
        w = reflected(w - padding, width);
    }

    __device__ static int reflected(int at, int size) {
        at = at < 0 ? -at : at;
        return at < size ? at : 2 * (size - 1) - at;
    }

    // The gradient of pixel `i` of the picture: the sum over the padded pixels that show it, `stride` apart.
    template <class T>
    __device__ float folded(const T* grad, unsigned i, int64_t stride) const {
        if (padding == 0) return to_float(grad[i * stride]);
        int h, w;
        by_width.split(i, h, w);
        // Two lines out of three in each direction are seen once.
        const bool once = (h == 0 || h > padding) && (h == height - 1 || h < height - 1 - padding) &&
                          (w == 0 || w > padding) && (w == width - 1 || w < width - 1 - padding);
        if (once) return to_float(grad[at(h, w) * stride]);
        float total = 0;
#pragma unroll
        for (int v = 0; v < 3; ++v) {
            if (!shown(v, h, height)) continue;
#pragma unroll
            for (int u = 0; u < 3; ++u)
                if (shown(u, w, width))
                    total += to_float(grad[at(mirrored(v, h, height), mirrored(u, w, width)) * stride]);
        }
        return total;
    }

  private:
    __device__ int64_t at(int h, int w) const {
        return int64_t(h + padding) * (width + 2 * padding) + (w + padding);
    }
    // Where line `at` of `size` shows: itself (0), before the first line (1), beyond the last (2).
    __device__ bool shown(int side, int at, int size) const {
        if (side == 1) return at >= 1 && at <= padding;
        if (side == 2) return at <= size - 2 && at >= size - 1 - padding;
        return true;
    }
    __device__ static int mirrored(int side, int at, int size) {
        return side == 1 ? -at : side == 2 ? 2 * (size - 1) - at : at;
    }
};

inline bool aligned(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

inline void check(const char* op, cudaError_t error) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(op) + " on CUDA: " + cudaGetErrorString(error));
}

// While it lives, launches go to `device`; then to the one before, which belongs to the caller.
class OnDevice {
  public:
    OnDevice(const char* op, int device) {
        check(op, cudaGetDevice(&before_));
        if (before_ == device) return;
        check(op, cudaSetDevice(device));
        moved_ = true;
    }
    ~OnDevice() {
        if (moved_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
    bool moved_ = false;
};

// Kernels count pixels in 32 bits and samples and blocks of channels along the grid's smaller dimensions.
inline void check_sizes(const char* op, const ImageShape& s) {
    if (s.batch > 65535 || (s.channels + 31) / 32 > 65535 || s.padded_pixels > 0x7fffffff)
        throw std::invalid_argument(std::string(op) +
                                    " on CUDA: batch and channels / 32 must be at most 65535, a padded plane "
                                    "less than 2^31 pixels");
}

}  // namespace dgnet_fast
