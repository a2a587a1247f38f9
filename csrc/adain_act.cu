#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "adain_act.h"

// NCHW: one block a (sample, channel) plane, three passes over it; a plane of DG-Net is 4 to 32 KiB, so the
// second and third pass read L1. channels_last: a block covers 32 channels and a slice of the pixels; the
// first kernel writes each slice's statistics to the workspace, the second merges them in a fixed order and
// writes the result. No atomics: results are the same from run to run.

namespace dgnet_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kSlicePixels = 256;  // pixels of a slice before slices are made longer
constexpr int kMaxSlices = 32;

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

__device__ float to_float(float v) {
    return v;
}
__device__ float to_float(__nv_bfloat16 v) {
    return __bfloat162float(v);
}
__device__ float to_float(__half v) {
    return __half2float(v);
}
__device__ void put(float* p, float v) {
    *p = v;
}
__device__ void put(__nv_bfloat16* p, float v) {
    *p = __float2bfloat16_rn(v);
}
__device__ void put(__half* p, float v) {
    *p = __float2half_rn(v);
}

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
    T lane[V];
};

// Sum over the block, in every thread.
__device__ float block_sum(float value) {
    __shared__ float partial[kWarps];
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    __syncthreads();  // `partial` may still be read for the previous sum
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[w];
    return total;
}

struct Affine {
    float mean, factor, shift;
};

template <class Arguments>
__device__ Affine affine(const Arguments& a, int64_t code, float mean, float rstd) {
    return {mean, a.scale ? a.scale[code] * rstd : rstd, a.shift ? a.shift[code] : 0.f};
}

__device__ float leaky(float z, float value, float slope) {
    return z > 0 ? value : value * slope;
}

// ---- NCHW. V: elements of one load, 1 where the plane's size or the pointers do not allow 16 bytes.

template <class T, int V>
__global__ void __launch_bounds__(kThreads) forward_planes(AdainActForward a) {
    using P = Pack<T, V>;
    const int64_t plane = blockIdx.x, pixels = a.shape.pixels, packs = pixels / V;
    const P* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + plane * pixels);
    float sum = 0;
    for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i];
#pragma unroll
        for (int v = 0; v < V; ++v) sum += to_float(in.lane[v]);
    }
    const float mean = block_sum(sum) / pixels;
    float squares = 0;
    for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float centred = to_float(in.lane[v]) - mean;
            squares += centred * centred;
        }
    }
    const float rstd = rsqrtf(block_sum(squares) / pixels + a.eps);
    if (threadIdx.x == 0) {
        a.mean[plane] = mean;
        a.rstd[plane] = rstd;
    }
    const Affine f = affine(a, plane, mean, rstd);
    const P* residual =
        a.residual ? reinterpret_cast<const P*>(static_cast<const T*>(a.residual) + plane * pixels) : nullptr;
    P* y = reinterpret_cast<P*>(static_cast<T*>(a.y) + plane * pixels);
    for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i];
        P added = {}, out;
        if (residual) added = residual[i];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float z = (to_float(in.lane[v]) - f.mean) * f.factor + f.shift;
            put(&out.lane[v], leaky(z, z, a.slope) + (residual ? to_float(added.lane[v]) : 0.f));
        }
        y[i] = out;
    }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) backward_planes(AdainActBackward a) {
    using P = Pack<T, V>;
    const int64_t plane = blockIdx.x, pixels = a.shape.pixels, packs = pixels / V;
    const P* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + plane * pixels);
    const P* grad_y = reinterpret_cast<const P*>(static_cast<const T*>(a.grad_y) + plane * pixels);
    P* grad_x = reinterpret_cast<P*>(static_cast<T*>(a.grad_x) + plane * pixels);
    const float rstd = a.rstd[plane];
    const Affine f = affine(a, plane, a.mean[plane], rstd);
    float sum = 0, sum_centred = 0;
    for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i], grad = grad_y[i];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float centred = to_float(in.lane[v]) - f.mean;
            const float grad_z = leaky(centred * f.factor + f.shift, to_float(grad.lane[v]), a.slope);
            sum += grad_z;
            sum_centred += grad_z * centred;
        }
    }
    sum = block_sum(sum);
    sum_centred = block_sum(sum_centred);
    if (threadIdx.x == 0) {
        a.grad_shift[plane] = sum;
        a.grad_scale[plane] = sum_centred * rstd;
    }
    const float mean_grad = sum / pixels, slope_grad = sum_centred / pixels * rstd * rstd;
    for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i], grad = grad_y[i];
        P out;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float centred = to_float(in.lane[v]) - f.mean;
            const float grad_z = leaky(centred * f.factor + f.shift, to_float(grad.lane[v]), a.slope);
            put(&out.lane[v], (grad_z - mean_grad - centred * slope_grad) * f.factor);
        }
        grad_x[i] = out;
    }
}

// ---- channels_last. Thread (lane, row): channel blockIdx.y * 32 + lane, every kWarps-th pixel of slice
// blockIdx.x.

struct Slice {
    int64_t channel, row, first, last;  // pixels [first, last), this thread's start at first + row
    int64_t offset, code, workspace;    // of pixel 0; of (sample, channel); of this slice's pair of floats
    bool inside;
};

__device__ Slice slice_of(const ImageShape& s) {
    Slice slice;
    const int64_t sample = blockIdx.z, slices = gridDim.x, length = (s.pixels + slices - 1) / slices;
    slice.channel = blockIdx.y * 32 + threadIdx.x % 32;
    slice.row = threadIdx.x / 32;
    slice.first = blockIdx.x * length;
    slice.last = min(s.pixels, slice.first + length);
    slice.offset = sample * s.pixels * s.channels + slice.channel;
    slice.code = sample * s.channels + slice.channel;
    slice.workspace = (sample * slices + blockIdx.x) * 2 * s.channels + slice.channel;
    slice.inside = slice.channel < s.channels;
    return slice;
}

// Sum over the block's rows, per channel, in every thread.
__device__ float row_sum(float value) {
    __shared__ float partial[kWarps][32];
    __syncthreads();
    partial[threadIdx.x / 32][threadIdx.x % 32] = value;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[w][threadIdx.x % 32];
    return total;
}

// Writes each slice's mean and its sum of squares about that mean.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_slices(AdainActForward a, float* workspace) {
    const Slice s = slice_of(a.shape);
    const T* x = static_cast<const T*>(a.x) + s.offset;
    const int64_t stride = a.shape.channels;
    float sum = 0, squares = 0;
    if (s.inside)
        for (int64_t i = s.first + s.row; i < s.last; i += kWarps) sum += to_float(x[i * stride]);
    const float mean = row_sum(sum) / max(s.last - s.first, int64_t{1});
    if (s.inside)
        for (int64_t i = s.first + s.row; i < s.last; i += kWarps) {
            const float centred = to_float(x[i * stride]) - mean;
            squares += centred * centred;
        }
    squares = row_sum(squares);
    if (s.inside && s.row == 0) {
        workspace[s.workspace] = mean;
        workspace[s.workspace + stride] = squares;
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) forward_apply(AdainActForward a, const float* workspace) {
    const Slice s = slice_of(a.shape);
    if (!s.inside) return;
    const int64_t stride = a.shape.channels, slices = gridDim.x;
    const int64_t length = (a.shape.pixels + slices - 1) / slices;
    const float* merged = workspace + s.workspace - int64_t(blockIdx.x) * 2 * stride;
    // Chan's merge of the slices' means and sums of squares.
    float mean = 0, squares = 0, count = 0;
    for (int64_t i = 0; i < slices; ++i) {
        const float added = max(min(a.shape.pixels - i * length, length), int64_t{0});
        if (added == 0) break;
        const float difference = merged[i * 2 * stride] - mean, share = added / (count + added);
        mean += difference * share;
        squares += merged[i * 2 * stride + stride] + difference * difference * count * share;
        count += added;
    }
    const float rstd = rsqrtf(squares / a.shape.pixels + a.eps);
    if (blockIdx.x == 0 && s.row == 0) {
        a.mean[s.code] = mean;
        a.rstd[s.code] = rstd;
    }
    const Affine f = affine(a, s.code, mean, rstd);
    const T* x = static_cast<const T*>(a.x) + s.offset;
    const T* residual = a.residual ? static_cast<const T*>(a.residual) + s.offset : nullptr;
    T* y = static_cast<T*>(a.y) + s.offset;
    for (int64_t i = s.first + s.row; i < s.last; i += kWarps) {
        const float z = (to_float(x[i * stride]) - f.mean) * f.factor + f.shift;
        put(y + i * stride, leaky(z, z, a.slope) + (residual ? to_float(residual[i * stride]) : 0.f));
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_slices(AdainActBackward a, float* workspace) {
    const Slice s = slice_of(a.shape);
    const int64_t stride = a.shape.channels;
    float sum = 0, sum_centred = 0;
    if (s.inside) {
        const T* x = static_cast<const T*>(a.x) + s.offset;
        const T* grad_y = static_cast<const T*>(a.grad_y) + s.offset;
        const Affine f = affine(a, s.code, a.mean[s.code], a.rstd[s.code]);
        for (int64_t i = s.first + s.row; i < s.last; i += kWarps) {
            const float centred = to_float(x[i * stride]) - f.mean;
            const float grad_z = leaky(centred * f.factor + f.shift, to_float(grad_y[i * stride]), a.slope);
            sum += grad_z;
            sum_centred += grad_z * centred;
        }
    }
    sum = row_sum(sum);
    sum_centred = row_sum(sum_centred);
    if (s.inside && s.row == 0) {
        workspace[s.workspace] = sum;
        workspace[s.workspace + stride] = sum_centred;
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_apply(AdainActBackward a, const float* workspace) {
    const Slice s = slice_of(a.shape);
    if (!s.inside) return;
    const int64_t stride = a.shape.channels, slices = gridDim.x;
    const float* merged = workspace + s.workspace - int64_t(blockIdx.x) * 2 * stride;
    float sum = 0, sum_centred = 0;
    for (int64_t i = 0; i < slices; ++i) {
        sum += merged[i * 2 * stride];
        sum_centred += merged[i * 2 * stride + stride];
    }
    const float rstd = a.rstd[s.code];
    if (blockIdx.x == 0 && s.row == 0) {
        a.grad_shift[s.code] = sum;
        a.grad_scale[s.code] = sum_centred * rstd;
    }
    const Affine f = affine(a, s.code, a.mean[s.code], rstd);
    const float mean_grad = sum / a.shape.pixels, slope_grad = sum_centred / a.shape.pixels * rstd * rstd;
    const T* x = static_cast<const T*>(a.x) + s.offset;
    const T* grad_y = static_cast<const T*>(a.grad_y) + s.offset;
    T* grad_x = static_cast<T*>(a.grad_x) + s.offset;
    for (int64_t i = s.first + s.row; i < s.last; i += kWarps) {
        const float centred = to_float(x[i * stride]) - f.mean;
        const float grad_z = leaky(centred * f.factor + f.shift, to_float(grad_y[i * stride]), a.slope);
        put(grad_x + i * stride, (grad_z - mean_grad - centred * slope_grad) * f.factor);
    }
}

int64_t slice_count(const ImageShape& shape) {
    const int64_t slices = (shape.pixels + kSlicePixels - 1) / kSlicePixels;
    return slices < kMaxSlices ? slices : kMaxSlices;
}

dim3 slice_grid(const ImageShape& shape) {
    const int64_t blocks = (shape.channels + 31) / 32;
    if (shape.batch > 65535 || blocks > 65535)
        throw std::invalid_argument(
            "adain_act on CUDA, channels_last: batch and channels / 32 must be at most 65535");
    return {unsigned(slice_count(shape)), unsigned(blocks), unsigned(shape.batch)};
}

bool aligned(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

void check(cudaError_t error) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("adain_act on CUDA: ") + cudaGetErrorString(error));
}

}  // namespace

int64_t adain_act_workspace(const ImageShape& shape) {
    return shape.channels_last ? shape.batch * slice_count(shape) * 2 * shape.channels : 0;
}

void adain_act_forward_cuda(const AdainActForward& a, float* workspace, int device, void* stream_address) {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
    check(cudaSetDevice(device));
    dispatch(a.element, [&](auto zero) {
        using T = typename Device<decltype(zero)>::type;
        constexpr int V = 16 / sizeof(T);
        if (a.shape.channels_last) {
            const dim3 grid = slice_grid(a.shape);
            forward_slices<T><<<grid, kThreads, 0, stream>>>(a, workspace);
            forward_apply<T><<<grid, kThreads, 0, stream>>>(a, workspace);
            return;
        }
        const unsigned planes = unsigned(a.shape.batch * a.shape.channels);
        if (a.shape.pixels % V == 0 && aligned(a.x) && aligned(a.y) && aligned(a.residual)) {
            forward_planes<T, V><<<planes, kThreads, 0, stream>>>(a);
        } else {
            forward_planes<T, 1><<<planes, kThreads, 0, stream>>>(a);
        }
    });
    check(cudaGetLastError());
}

void adain_act_backward_cuda(const AdainActBackward& a, float* workspace, int device, void* stream_address) {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
    check(cudaSetDevice(device));
    dispatch(a.element, [&](auto zero) {
        using T = typename Device<decltype(zero)>::type;
        constexpr int V = 16 / sizeof(T);
        if (a.shape.channels_last) {
            const dim3 grid = slice_grid(a.shape);
            backward_slices<T><<<grid, kThreads, 0, stream>>>(a, workspace);
            backward_apply<T><<<grid, kThreads, 0, stream>>>(a, workspace);
            return;
        }
        const unsigned planes = unsigned(a.shape.batch * a.shape.channels);
        if (a.shape.pixels % V == 0 && aligned(a.x) && aligned(a.grad_y) && aligned(a.grad_x)) {
            backward_planes<T, V><<<planes, kThreads, 0, stream>>>(a);
        } else {
            backward_planes<T, 1><<<planes, kThreads, 0, stream>>>(a);
        }
    });
    check(cudaGetLastError());
}

}  // namespace dgnet_fast
