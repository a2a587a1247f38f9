#include "adain_act.h"
#include "cuda_common.h"

// NCHW: one block a (sample, channel) plane, three passes over it; a plane of DG-Net is 4 to 32 KiB, so the
// second and third pass read L1: each input is read once from memory and each output written once, the
// minimum. channels_last: a block covers 32 channels and a slice of the pixels; the first kernel writes each
// slice's statistics to the workspace, the second merges them in a fixed order and writes the result. Both
// read x (and grad_y), so where a tensor does not stay in the L2 cache the forward moves 3 tensors for a
// minimum of 2, the backward 5 for 3. Padding adds its border to y and grad_y and no pass: the forward goes
// over the padded pixels and reads each's source, the backward sums the padded pixels that show a pixel. No
// atomics: results are the same from run to run.

namespace dgnet_fast {
namespace {

constexpr const char* kName = "adain_act";
constexpr int kSlicePixels = 256;  // pixels of a slice before slices are made longer
constexpr int kMaxSlices = 32;

struct Affine {
    float mean, factor, shift;
};

template <class Arguments>
__device__ Affine affine(const Arguments& a, int64_t code, float mean, float rstd) {
    return {mean, a.scale ? a.scale[code] * rstd : rstd, a.shift ? a.shift[code] : 0.f};
}

template <class T>
__device__ const T* residual_of(const AdainActForward& a, int64_t sample, int64_t channel) {
    return a.residual ? static_cast<const T*>(a.residual) + sample * a.residual_strides.sample +
                            channel * a.residual_strides.channel
                      : nullptr;
}

// ---- NCHW. V: elements of one load, 1 where the plane's size or the pointers do not allow 16 bytes, where
// there is padding, and where the residual has a row pitch of its own.

template <class T, int V>
__global__ void __launch_bounds__(kThreads) forward_planes(AdainActForward a, Reflection image) {
    using P = Pack<T, V>;
    const int64_t plane = blockIdx.x;
    const unsigned pixels = unsigned(a.shape.pixels), packs = pixels / V;
    const T* start = static_cast<const T*>(a.x) + plane * pixels;
    const P* x = reinterpret_cast<const P*>(start);
    float sum = 0;
    for (unsigned i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i];
#pragma unroll
        for (int v = 0; v < V; ++v) sum += to_float(in.lane[v]);
    }
    const float mean = block_sum(sum) / pixels;
    float squares = 0;
    for (unsigned i = threadIdx.x; i < packs; i += kThreads) {
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
    const T* residual = residual_of<T>(a, plane / a.shape.channels, plane % a.shape.channels);
    T* y = static_cast<T*>(a.y) + plane * a.shape.padded_pixels;
    if constexpr (V == 1) {
        for (unsigned i = threadIdx.x; i < unsigned(a.shape.padded_pixels); i += kThreads) {
            int h, w;
            image.source(i, h, w);
            const float z = (to_float(start[h * image.width + w]) - f.mean) * f.factor + f.shift;
            const float added = residual ? to_float(residual[h * a.residual_strides.row + w]) : 0.f;
            put(y + i, leaky(z, z, a.slope) + added);
        }
    } else {
        const P* addends = reinterpret_cast<const P*>(residual);
        for (unsigned i = threadIdx.x; i < packs; i += kThreads) {
            const P in = x[i];
            P added = {}, out;
            if (addends) added = addends[i];
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const float z = (to_float(in.lane[v]) - f.mean) * f.factor + f.shift;
                put(&out.lane[v], leaky(z, z, a.slope) + (addends ? to_float(added.lane[v]) : 0.f));
            }
            reinterpret_cast<P*>(y)[i] = out;
        }
    }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) backward_planes(AdainActBackward a, Reflection image) {
    using P = Pack<T, V>;
    const int64_t plane = blockIdx.x;
    const unsigned pixels = unsigned(a.shape.pixels), packs = pixels / V;
    const P* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + plane * pixels);
    const T* grad_y = static_cast<const T*>(a.grad_y) + plane * a.shape.padded_pixels;
    P* grad_x = reinterpret_cast<P*>(static_cast<T*>(a.grad_x) + plane * pixels);
    T* grad_residual = a.grad_residual ? static_cast<T*>(a.grad_residual) + plane * pixels : nullptr;
    const float rstd = a.rstd[plane];
    const Affine f = affine(a, plane, a.mean[plane], rstd);
    const auto gradients = [&](unsigned i, float* g) {
        if constexpr (V == 1) {
            g[0] = image.folded(grad_y, i, 1);
        } else {
            const P in = reinterpret_cast<const P*>(grad_y)[i];
#pragma unroll
            for (int v = 0; v < V; ++v) g[v] = to_float(in.lane[v]);
        }
    };
    float sum = 0, sum_centred = 0;
    for (unsigned i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i];
        float g[V];
        gradients(i, g);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float centred = to_float(in.lane[v]) - f.mean;
            const float grad_z = leaky(centred * f.factor + f.shift, g[v], a.slope);
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
    for (unsigned i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i];
        float g[V];
        gradients(i, g);
        P out;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float centred = to_float(in.lane[v]) - f.mean;
            const float grad_z = leaky(centred * f.factor + f.shift, g[v], a.slope);
            put(&out.lane[v], (grad_z - mean_grad - centred * slope_grad) * f.factor);
        }
        grad_x[i] = out;
        if (V == 1 && grad_residual) put(grad_residual + i, g[0]);
    }
}

// ---- channels_last. Thread (lane, row): channel blockIdx.y * 32 + lane, every kWarps-th pixel of slice
// blockIdx.x.

struct Slice {
    int64_t channel, offset, code,
        workspace;              // offset of pixel 0; of (sample, channel); of this slice's pair
    unsigned row, first, last;  // pixels [first, last), this thread's start at first + row
    bool inside;
};

__device__ unsigned slice_length(int64_t pixels) {
    return unsigned((pixels + gridDim.x - 1) / gridDim.x);
}

__device__ Slice slice_of(const ImageShape& s, int64_t pixels) {
    Slice slice;
    const int64_t sample = blockIdx.z;
    const unsigned length = slice_length(pixels);
    slice.channel = blockIdx.y * 32 + threadIdx.x % 32;
    slice.row = threadIdx.x / 32;
    slice.first = min(unsigned(pixels), blockIdx.x * length);
    slice.last = min(unsigned(pixels), slice.first + length);
    slice.offset = sample * s.pixels * s.channels + slice.channel;
    slice.code = sample * s.channels + slice.channel;
    slice.workspace = (sample * gridDim.x + blockIdx.x) * 2 * s.channels + slice.channel;
    slice.inside = slice.channel < s.channels;
    return slice;
}

// Writes each slice's mean and its sum of squares about that mean.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_slices(AdainActForward a, float* workspace) {
    const Slice s = slice_of(a.shape, a.shape.pixels);
    const T* x = static_cast<const T*>(a.x) + s.offset;
    const int64_t stride = a.shape.channels;
    float sum = 0, squares = 0;
    if (s.inside)
        for (unsigned i = s.first + s.row; i < s.last; i += kWarps) sum += to_float(x[i * stride]);
    const float mean = row_sum(sum) / max(s.last - s.first, 1u);
    if (s.inside)
        for (unsigned i = s.first + s.row; i < s.last; i += kWarps) {
            const float centred = to_float(x[i * stride]) - mean;
            squares += centred * centred;
        }
    squares = row_sum(squares);
    if (s.inside && s.row == 0) {
        workspace[s.workspace] = mean;
        workspace[s.workspace + stride] = squares;
    }
}

// Writes a slice of the padded pixels.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_apply(AdainActForward a, Reflection image, const float* workspace) {
    const Slice s = slice_of(a.shape, a.shape.padded_pixels);
    if (!s.inside) return;
    const int64_t stride = a.shape.channels, slices = gridDim.x, length = slice_length(a.shape.pixels);
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
    const T* residual = residual_of<T>(a, blockIdx.z, s.channel);
    T* y = static_cast<T*>(a.y) + blockIdx.z * a.shape.padded_pixels * stride + s.channel;
    for (unsigned i = s.first + s.row; i < s.last; i += kWarps) {
        int h, w;
        image.source(i, h, w);
        const float z = (to_float(x[int64_t(h * image.width + w) * stride]) - f.mean) * f.factor + f.shift;
        const float added = residual ? to_float(residual[h * a.residual_strides.row + w * stride]) : 0.f;
        put(y + i * stride, leaky(z, z, a.slope) + added);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_slices(AdainActBackward a, Reflection image, float* workspace) {
    const Slice s = slice_of(a.shape, a.shape.pixels);
    const int64_t stride = a.shape.channels;
    float sum = 0, sum_centred = 0;
    if (s.inside) {
        const T* x = static_cast<const T*>(a.x) + s.offset;
        const T* grad_y =
            static_cast<const T*>(a.grad_y) + blockIdx.z * a.shape.padded_pixels * stride + s.channel;
        const Affine f = affine(a, s.code, a.mean[s.code], a.rstd[s.code]);
        for (unsigned i = s.first + s.row; i < s.last; i += kWarps) {
            const float centred = to_float(x[i * stride]) - f.mean;
            const float grad_z =
                leaky(centred * f.factor + f.shift, image.folded(grad_y, i, stride), a.slope);
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
__global__ void __launch_bounds__(kThreads)
    backward_apply(AdainActBackward a, Reflection image, const float* workspace) {
    const Slice s = slice_of(a.shape, a.shape.pixels);
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
    const T* grad_y =
        static_cast<const T*>(a.grad_y) + blockIdx.z * a.shape.padded_pixels * stride + s.channel;
    T* grad_x = static_cast<T*>(a.grad_x) + s.offset;
    T* grad_residual = a.grad_residual ? static_cast<T*>(a.grad_residual) + s.offset : nullptr;
    for (unsigned i = s.first + s.row; i < s.last; i += kWarps) {
        const float centred = to_float(x[i * stride]) - f.mean;
        const float g = image.folded(grad_y, i, stride);
        const float grad_z = leaky(centred * f.factor + f.shift, g, a.slope);
        put(grad_x + i * stride, (grad_z - mean_grad - centred * slope_grad) * f.factor);
        if (grad_residual) put(grad_residual + i * stride, g);
    }
}

int64_t slice_count(const ImageShape& shape) {
    const int64_t slices = (shape.pixels + kSlicePixels - 1) / kSlicePixels;
    return slices < kMaxSlices ? slices : kMaxSlices;
}

dim3 slice_grid(const ImageShape& shape) {
    return {unsigned(slice_count(shape)), unsigned((shape.channels + 31) / 32), unsigned(shape.batch)};
}

bool dense(const AdainActForward& a) {
    const Strides& s = a.residual_strides;
    return !a.residual || (s.row == a.shape.width && s.channel == a.shape.pixels &&
                           s.sample == a.shape.channels * a.shape.pixels);
}

}  // namespace

int64_t adain_act_workspace(const ImageShape& shape) {
    return shape.channels_last ? shape.batch * slice_count(shape) * 2 * shape.channels : 0;
}

void adain_act_forward_cuda(const AdainActForward& a, float* workspace, int device, void* stream_address) {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
    check_sizes(kName, a.shape);
    const OnDevice here(kName, device);
    const Reflection image(a.shape);
    dispatch(a.element, [&](auto zero) {
        using T = typename Device<decltype(zero)>::type;
        constexpr int V = 16 / sizeof(T);
        if (a.shape.channels_last) {
            const dim3 grid = slice_grid(a.shape);
            forward_slices<T><<<grid, kThreads, 0, stream>>>(a, workspace);
            forward_apply<T><<<grid, kThreads, 0, stream>>>(a, image, workspace);
            return;
        }
        const unsigned planes = unsigned(a.shape.batch * a.shape.channels);
        if (a.shape.padding == 0 && a.shape.pixels % V == 0 && dense(a) && aligned(a.x) && aligned(a.y) &&
            aligned(a.residual)) {
            forward_planes<T, V><<<planes, kThreads, 0, stream>>>(a, image);
        } else {
            forward_planes<T, 1><<<planes, kThreads, 0, stream>>>(a, image);
        }
    });
    check(kName, cudaGetLastError());
}

void adain_act_backward_cuda(const AdainActBackward& a, float* workspace, int device, void* stream_address) {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
    check_sizes(kName, a.shape);
    const OnDevice here(kName, device);
    const Reflection image(a.shape);
    dispatch(a.element, [&](auto zero) {
        using T = typename Device<decltype(zero)>::type;
        constexpr int V = 16 / sizeof(T);
        if (a.shape.channels_last) {
            const dim3 grid = slice_grid(a.shape);
            backward_slices<T><<<grid, kThreads, 0, stream>>>(a, image, workspace);
            backward_apply<T><<<grid, kThreads, 0, stream>>>(a, image, workspace);
            return;
        }
        const unsigned planes = unsigned(a.shape.batch * a.shape.channels);
        if (a.shape.padding == 0 && a.shape.pixels % V == 0 && aligned(a.x) && aligned(a.grad_y) &&
            aligned(a.grad_x)) {
            backward_planes<T, V><<<planes, kThreads, 0, stream>>>(a, image);
        } else {
            backward_planes<T, 1><<<planes, kThreads, 0, stream>>>(a, image);
        }
    });
    check(kName, cudaGetLastError());
}

}  // namespace dgnet_fast
