#include "cuda_common.h"
#include "layer_norm_act.h"

// A sample is up to a million elements, so every pass is split over blocks and the sums merged by the next
// kernel, in a fixed order and in double: results are the same from run to run. Forward: moments of pieces of
// a sample, then the result: x is read twice, y written once (the minimum is once and once). Backward: two
// sums per channel and piece, their merge, then grad_x: x and grad_y are read twice, grad_x written once (the
// minimum is once each). The second reading of what fits beside it in the L2 cache costs no memory traffic.
// Padding adds its border to y and grad_y and no pass, as in adain_act.cu.

namespace dgnet_fast {
namespace {

constexpr const char* kName = "layer_norm_act";
constexpr int kPiece = 8192;        // elements whose moments one block takes
constexpr int kPlanePixels = 4096;  // NCHW: pixels of a plane that one block writes or sums
constexpr int kSlicePixels = 256;   // channels_last: pixels of a slice before slices are made longer
constexpr int kMaxSlices = 128;
constexpr double kLeastStd = 1e-6;  // as in dgnet_fast/ops/layer_norm_act.py

// How a sample is cut for everything but the moments: `slices` ranges of pixels, in NCHW of each channel, in
// channels_last of each 32 channels.
struct Cut {
    int64_t slices, groups, pieces;

    explicit Cut(const ImageShape& s) {
        const int64_t pixels = s.channels_last ? kSlicePixels : kPlanePixels;
        slices = (s.pixels + pixels - 1) / pixels;
        if (s.channels_last && slices > kMaxSlices) slices = kMaxSlices;
        groups = s.channels_last ? (s.channels + 31) / 32 : s.channels;
        pieces = (s.channels * s.pixels + kPiece - 1) / kPiece;
    }
    dim3 grid(const ImageShape& s) const { return {unsigned(slices * groups), 1, unsigned(s.batch)}; }
};

// The workspace: per sample and piece its mean and squares; per sample, slice and channel two sums; per
// sample and channel their totals; per sample two terms of the backward. One call uses either the first or
// the rest.
struct Workspace {
    float *moments, *sums, *totals, *terms;
    int64_t size;

    Workspace(float* start, const ImageShape& s, const Cut& cut) : moments(start), sums(start) {
        totals = sums + s.batch * cut.slices * 2 * s.channels;
        terms = totals + s.batch * 2 * s.channels;
        const int64_t backward = s.batch * (cut.slices + 1) * 2 * s.channels + s.batch * 2;
        const int64_t forward = s.batch * cut.pieces * 2;
        size = backward > forward ? backward : forward;
    }
};

// What a thread works on. NCHW: one channel, every kThreads-th pixel of its slice; channels_last: channel
// lane of its group, every kWarps-th.
struct Work {
    int64_t sample, channel, slice;
    int64_t x, y;    // offsets of the channel's first pixel in x, and in the padded y
    int64_t stride;  // between pixels
    unsigned first, last, step;
    bool inside;
};

__device__ Work work_of(const ImageShape& s, int64_t slices, int64_t pixels) {
    Work work;
    work.sample = blockIdx.z;
    work.slice = blockIdx.x % unsigned(slices);
    const int64_t group = blockIdx.x / unsigned(slices);
    const unsigned length = unsigned((pixels + slices - 1) / slices), all = unsigned(pixels);
    const unsigned start = min(all, unsigned(work.slice) * length);
    work.last = min(all, start + length);
    if (s.channels_last) {
        work.channel = group * 32 + threadIdx.x % 32;
        work.first = start + threadIdx.x / 32;
        work.step = kWarps;
        work.stride = s.channels;
        work.x = work.sample * s.pixels * s.channels + work.channel;
        work.y = work.sample * s.padded_pixels * s.channels + work.channel;
    } else {
        work.channel = group;
        work.first = start + threadIdx.x;
        work.step = kThreads;
        work.stride = 1;
        work.x = (work.sample * s.channels + group) * s.pixels;
        work.y = (work.sample * s.channels + group) * s.padded_pixels;
    }
    work.inside = work.channel < s.channels;
    return work;
}

// Writes the mean of each piece and its sum of squares about that mean.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    forward_moments(LayerNormActForward a, int64_t pieces, float* moments) {
    using P = Pack<T, V>;
    const int64_t elements = a.shape.channels * a.shape.pixels, start = int64_t(blockIdx.x) * kPiece;
    const unsigned count = unsigned(min(int64_t{kPiece}, elements - start)), packs = count / V;
    const P* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + blockIdx.z * elements + start);
    float sum = 0;
    for (unsigned i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i];
#pragma unroll
        for (int v = 0; v < V; ++v) sum += to_float(in.lane[v]);
    }
    const float mean = block_sum(sum) / count;
    float squares = 0;
    for (unsigned i = threadIdx.x; i < packs; i += kThreads) {
        const P in = x[i];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float centred = to_float(in.lane[v]) - mean;
            squares += centred * centred;
        }
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        float* pair = moments + (blockIdx.z * pieces + blockIdx.x) * 2;
        pair[0] = mean;
        pair[1] = squares;
    }
}

// Merges the pieces' moments, in double: every block for itself, thread by thread and then over the block.
__device__ void merge_moments(const LayerNormActForward& a, int64_t pieces, const float* moments, float& mean,
                              float& rdenom) {
    const int64_t elements = a.shape.channels * a.shape.pixels;
    const float* pairs = moments + blockIdx.z * pieces * 2;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < pieces; i += kThreads)
        sum += double(pairs[2 * i]) * double(min(int64_t{kPiece}, elements - i * kPiece));
    const double centre = block_sum(sum) / double(elements);
    double squares = 0;
    for (int64_t i = threadIdx.x; i < pieces; i += kThreads) {
        const double difference = pairs[2 * i] - centre;
        squares +=
            pairs[2 * i + 1] + difference * difference * double(min(int64_t{kPiece}, elements - i * kPiece));
    }
    squares = block_sum(squares);
    mean = float(centre);
    rdenom = float(1 / (sqrt(squares / double(elements - 1)) + a.eps));
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        a.mean[blockIdx.z] = mean;
        a.rdenom[blockIdx.z] = rdenom;
    }
}

// Writes a slice of the padded pixels.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_apply(LayerNormActForward a, Reflection image, Cut cut, const float* moments) {
    float mean, rdenom;
    merge_moments(a, cut.pieces, moments, mean, rdenom);
    const Work work = work_of(a.shape, cut.slices, a.shape.padded_pixels);
    if (!work.inside) return;
    const float factor = rdenom * a.gamma[work.channel], shift = a.beta[work.channel];
    const T* x = static_cast<const T*>(a.x) + work.x;
    T* y = static_cast<T*>(a.y) + work.y;
    for (unsigned i = work.first; i < work.last; i += work.step) {
        unsigned source = i;
        if (image.padding) {
            int h, w;
            image.source(i, h, w);
            source = h * image.width + w;
        }
        const float z = (to_float(x[source * work.stride]) - mean) * factor + shift;
        put(y + i * work.stride, leaky(z, z, a.slope));
    }
}

// Sums of the gradient before the activation, and of that times x - mean, per slice and channel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_sums(LayerNormActBackward a, Reflection image, Cut cut, float* sums) {
    const Work work = work_of(a.shape, cut.slices, a.shape.pixels);
    float sum = 0, sum_centred = 0;
    if (work.inside) {
        const float mean = a.mean[work.sample];
        const float factor = a.rdenom[work.sample] * a.gamma[work.channel], shift = a.beta[work.channel];
        const T* x = static_cast<const T*>(a.x) + work.x;
        const T* grad_y = static_cast<const T*>(a.grad_y) + work.y;
        for (unsigned i = work.first; i < work.last; i += work.step) {
            const float centred = to_float(x[i * work.stride]) - mean;
            const float g = image.folded(grad_y, i, work.stride);
            const float grad_z = leaky(centred * factor + shift, g, a.slope);
            sum += grad_z;
            sum_centred += grad_z * centred;
        }
    }
    const bool channels_last = a.shape.channels_last;
    sum = channels_last ? row_sum(sum) : block_sum(sum);
    sum_centred = channels_last ? row_sum(sum_centred) : block_sum(sum_centred);
    if (work.inside && threadIdx.x < (channels_last ? 32 : 1)) {
        float* at = sums + (work.sample * cut.slices + work.slice) * 2 * a.shape.channels + work.channel;
        at[0] = sum;
        at[a.shape.channels] = sum_centred;
    }
}

// One block a sample: its channels' totals, and the two terms that grad_x needs.
__global__ void __launch_bounds__(kThreads)
    backward_merge(LayerNormActBackward a, Cut cut, const float* sums, float* totals, float* terms) {
    const int64_t channels = a.shape.channels, sample = blockIdx.x;
    double grad = 0, grad_centred = 0;
    for (int64_t c = threadIdx.x; c < channels; c += kThreads) {
        double sum = 0, sum_centred = 0;
        for (int64_t i = 0; i < cut.slices; ++i) {
            const float* at = sums + (sample * cut.slices + i) * 2 * channels + c;
            sum += at[0];
            sum_centred += at[channels];
        }
        totals[sample * 2 * channels + c] = float(sum);
        totals[(sample * 2 + 1) * channels + c] = float(sum_centred);
        grad += a.gamma[c] * sum;
        grad_centred += a.gamma[c] * sum_centred;
    }
    grad = block_sum(grad);
    grad_centred = block_sum(grad_centred);
    if (threadIdx.x == 0) {
        const double elements = double(channels * a.shape.pixels), rdenom = a.rdenom[sample];
        const double std_ = 1 / rdenom - a.eps;
        terms[2 * sample] = float(grad / elements * rdenom);
        terms[2 * sample + 1] =
            float(std_ <= kLeastStd * a.eps ? 0 : grad_centred * rdenom * rdenom / (std_ * (elements - 1)));
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_apply(LayerNormActBackward a, Reflection image, Cut cut, const float* terms) {
    const Work work = work_of(a.shape, cut.slices, a.shape.pixels);
    if (!work.inside) return;
    const float mean = a.mean[work.sample];
    const float factor = a.rdenom[work.sample] * a.gamma[work.channel], shift = a.beta[work.channel];
    const float mean_grad = terms[2 * work.sample], share = terms[2 * work.sample + 1];
    const T* x = static_cast<const T*>(a.x) + work.x;
    const T* grad_y = static_cast<const T*>(a.grad_y) + work.y;
    T* grad_x = static_cast<T*>(a.grad_x) + work.x;
    for (unsigned i = work.first; i < work.last; i += work.step) {
        const float centred = to_float(x[i * work.stride]) - mean;
        const float g = image.folded(grad_y, i, work.stride);
        const float grad_z = leaky(centred * factor + shift, g, a.slope);
        put(grad_x + i * work.stride, grad_z * factor - mean_grad - centred * share);
    }
}

// Gradients of gamma and beta: the samples' totals, in their order.
__global__ void __launch_bounds__(kThreads) backward_channels(LayerNormActBackward a, const float* totals) {
    const int64_t channels = a.shape.channels, c = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (c >= channels) return;
    double grad_gamma = 0, grad_beta = 0;
    for (int64_t sample = 0; sample < a.shape.batch; ++sample) {
        grad_beta += totals[sample * 2 * channels + c];
        grad_gamma += double(totals[(sample * 2 + 1) * channels + c]) * a.rdenom[sample];
    }
    a.grad_gamma[c] = float(grad_gamma);
    a.grad_beta[c] = float(grad_beta);
}

}  // namespace

int64_t layer_norm_act_workspace(const ImageShape& shape) {
    return Workspace(nullptr, shape, Cut(shape)).size;
}

void layer_norm_act_forward_cuda(const LayerNormActForward& a, float* workspace, int device,
                                 void* stream_address) {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
    check_sizes(kName, a.shape);
    const OnDevice here(kName, device);
    const Reflection image(a.shape);
    const Cut cut(a.shape);
    const Workspace parts(workspace, a.shape, cut);
    const dim3 pieces(unsigned(cut.pieces), 1, unsigned(a.shape.batch));
    dispatch(a.element, [&](auto zero) {
        using T = typename Device<decltype(zero)>::type;
        constexpr int V = 16 / sizeof(T);
        if (a.shape.channels * a.shape.pixels % V == 0 && aligned(a.x)) {
            forward_moments<T, V><<<pieces, kThreads, 0, stream>>>(a, cut.pieces, parts.moments);
        } else {
            forward_moments<T, 1><<<pieces, kThreads, 0, stream>>>(a, cut.pieces, parts.moments);
        }
        forward_apply<T><<<cut.grid(a.shape), kThreads, 0, stream>>>(a, image, cut, parts.moments);
    });
    check(kName, cudaGetLastError());
}

void layer_norm_act_backward_cuda(const LayerNormActBackward& a, float* workspace, int device,
                                  void* stream_address) {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
    check_sizes(kName, a.shape);
    const OnDevice here(kName, device);
    const Reflection image(a.shape);
    const Cut cut(a.shape);
    const Workspace parts(workspace, a.shape, cut);
    const dim3 grid = cut.grid(a.shape);
    const unsigned samples = unsigned(a.shape.batch);
    const unsigned channel_blocks = unsigned((a.shape.channels + kThreads - 1) / kThreads);
    dispatch(a.element, [&](auto zero) {
        using T = typename Device<decltype(zero)>::type;
        backward_sums<T><<<grid, kThreads, 0, stream>>>(a, image, cut, parts.sums);
        backward_merge<<<samples, kThreads, 0, stream>>>(a, cut, parts.sums, parts.totals, parts.terms);
        backward_apply<T><<<grid, kThreads, 0, stream>>>(a, image, cut, parts.terms);
    });
    backward_channels<<<channel_blocks, kThreads, 0, stream>>>(a, parts.totals);
    check(kName, cudaGetLastError());
}

}  // namespace dgnet_fast
