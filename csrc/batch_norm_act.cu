#include "batch_norm_act.h"
#include "cuda_common.h"

// The batch is cut into units whose pixels are neighbours: in channels_last a unit is a group, in NCHW a
// sample. Every pass is split over slices of a unit and the sums of a group merged by the next kernel, in a
// fixed order: results are the same from run to run. Statistics are taken about a value of the channel, its
// group's first, by Welford's running mean in a thread and by Chan's formula between threads and blocks, so
// that a mean far from zero costs no accuracy. Bytes from and to memory are those of
// kernels/batch_norm_act.py.

namespace dgnet_fast {
namespace {

constexpr const char* kName = "batch_norm_act";
constexpr int kLanes =
    8;  // channels_last: threads side by side in a row; with 16 bytes each a line of 128 bytes
constexpr int kRows = kThreads / kLanes;
constexpr int kBlockElements = 16384;  // at least so many a block: fewer blocks leave less to merge
constexpr int kMostBlocks = 1024;      // an H100's 132 multiprocessors hold 4 to 8 each

struct Cut {
    int64_t channels, groups, units;  // units of a group
    int64_t pixels, slice_pixels;     // of a unit
    int64_t slices, parts;            // of a unit, of a group

    Cut(const ImageShape& s, int64_t groups) : channels(s.channels), groups(groups) {
        const int64_t samples = s.batch / groups;
        units = s.channels_last ? 1 : samples;
        pixels = s.channels_last ? samples * s.pixels : s.pixels;
        const int64_t width = s.channels_last ? 64 : 1;  // channels of a block, about
        const int64_t blocks = (channels + width - 1) / width * groups * units;
        const int64_t most = std::max<int64_t>(1, kMostBlocks / blocks);
        slice_pixels = std::max(kBlockElements / width, (pixels + most - 1) / most);
        slice_pixels = (slice_pixels + 7) / 8 * 8;  // whole packs
        slices = (pixels + slice_pixels - 1) / slice_pixels;
        parts = units * slices;
    }
    // Blocks side by side that serve all channels, V elements to a thread.
    int64_t columns(bool channels_last, int V) const {
        return channels_last ? (channels + kLanes * V - 1) / (kLanes * V) : channels;
    }
};

// The workspace: two sums per group, part and channel; then two per group and channel.
struct Workspace {
    float *parts, *sums;
    int64_t size;

    Workspace(float* start, const Cut& cut) : parts(start) {
        const int64_t channels = cut.groups * cut.channels;
        sums = parts + cut.parts * 2 * channels;
        size = (cut.parts + 1) * 2 * channels;
    }
};

// What a thread works on: packs of V elements, each `stride` after the one before. In channels_last a pack
// holds V channels of a pixel, in NCHW V pixels of a channel.
template <int V, bool ChannelsLast>
struct Work {
    static constexpr int kChannels = ChannelsLast ? V : 1;
    int64_t group, channel, code, at, stride;
    int64_t part;  // where in the workspace this block's two sums of `channel` are
    unsigned first, last, step;
    float elements;  // of a channel in the block's slice
    bool leads;      // of the threads that share its channels, the one that writes their sums
    bool opens;      // leads in the first slice of all

    explicit __device__ Work(const Cut& cut) {
        const unsigned columns =
            ChannelsLast ? unsigned((cut.channels + kLanes * V - 1) / (kLanes * V)) : unsigned(cut.channels);
        const int64_t column = blockIdx.x % columns, slice = blockIdx.x / columns, unit = blockIdx.y;
        const int64_t start = slice * cut.slice_pixels;
        const int64_t stop = min(cut.pixels, start + cut.slice_pixels);
        elements = float(stop - start);
        group = unit / cut.units;
        if (ChannelsLast) {
            channel = (column * kLanes + threadIdx.x % kLanes) * V;
            first = unsigned(start) + threadIdx.x / kLanes;
            last = unsigned(stop);
            step = kRows;
            stride = cut.channels;
            at = unit * cut.pixels * cut.channels + channel;
        } else {
            channel = column;
            first = unsigned(start / V) + threadIdx.x;
            last = unsigned(stop / V);
            step = kThreads;
            stride = V;
            at = (unit * cut.channels + channel) * cut.pixels;
        }
        const bool inside = channel < cut.channels;
        if (!inside) last = 0;
        leads = inside && threadIdx.x < (ChannelsLast ? kLanes : 1);
        opens = leads && unit == 0 && slice == 0;
        code = group * cut.channels + channel;
        part = (unit * cut.slices + slice) * 2 * cut.channels + channel;
        if (!inside) channel = code = 0;  // read, and not used
    }
};

// Sums over the threads that share a channel, in each of them; in NCHW over the elements of a pack too.
template <int V, bool ChannelsLast>
__device__ void channel_sum(float (&value)[V]) {
    if (ChannelsLast) {
        __shared__ float partial[kWarps][kLanes][V];
        const int warp = threadIdx.x / 32, lane = threadIdx.x % kLanes;
#pragma unroll
        for (int v = 0; v < V; ++v)
            for (int step = 16; step >= kLanes; step /= 2)
                value[v] += __shfl_xor_sync(0xffffffffu, value[v], step);
        __syncthreads();  // `partial` may still be read for the previous sums
        if (threadIdx.x % 32 < kLanes) {
#pragma unroll
            for (int v = 0; v < V; ++v) partial[warp][lane][v] = value[v];
        }
        __syncthreads();
#pragma unroll
        for (int v = 0; v < V; ++v) {
            value[v] = 0;
            for (int w = 0; w < kWarps; ++w) value[v] += partial[w][lane][v];
        }
    } else {
        float total = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) total += value[v];
        total = block_sum(total);
#pragma unroll
        for (int v = 0; v < V; ++v) value[v] = total;
    }
}

// A value of the channel, about which its statistics are taken.
template <class T, bool ChannelsLast>
__device__ float pivot_of(const void* x, const Cut& cut, int64_t group, int64_t channel) {
    const int64_t start = group * cut.units * cut.pixels * cut.channels;
    return to_float(static_cast<const T*>(x)[start + (ChannelsLast ? channel : channel * cut.pixels)]);
}

template <class T, int V>
__device__ const Pack<T, V>& pack(const void* values, int64_t at) {
    return *reinterpret_cast<const Pack<T, V>*>(static_cast<const T*>(values) + at);
}

template <class T, int V>
__device__ Pack<T, V>& pack(void* values, int64_t at) {
    return *reinterpret_cast<Pack<T, V>*>(static_cast<T*>(values) + at);
}

// Writes the mean less the pivot of each slice and channel, and the sum of squares about it.
template <class T, int V, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads) forward_sums(BatchNormActForward a, Cut cut, float* parts) {
    const Work<V, ChannelsLast> work(cut);
    constexpr int K = Work<V, ChannelsLast>::kChannels;
    float pivot[K], mean[V] = {}, squares[V] = {}, sums[V];
#pragma unroll
    for (int k = 0; k < K; ++k) pivot[k] = pivot_of<T, ChannelsLast>(a.x, cut, work.group, work.channel + k);
    float count = 0;
    for (unsigned i = work.first; i < work.last; i += work.step) {
        const Pack<T, V> in = pack<T, V>(a.x, work.at + i * work.stride);
        count += 1;
        const float share = 1 / count;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float x = to_float(in.lane[v]) - pivot[v % K];
            const float difference = x - mean[v];
            mean[v] += difference * share;
            squares[v] += difference * (x - mean[v]);
        }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] = mean[v] * count;
    channel_sum<V, ChannelsLast>(sums);
#pragma unroll
    for (int v = 0; v < V; ++v) {
        sums[v] /= work.elements;
        const float apart = mean[v] - sums[v];
        squares[v] += count * apart * apart;
    }
    channel_sum<V, ChannelsLast>(squares);
    if (!work.leads) return;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        parts[work.part + k] = sums[k];
        parts[work.part + cut.channels + k] = squares[k];
    }
}

// A block merges 32 channels of a group, each warp every kWarps-th part.
template <class T, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads)
    forward_merge(BatchNormActForward a, Cut cut, const float* parts) {
    const int64_t channel = blockIdx.x * 32 + threadIdx.x % 32, group = blockIdx.y, step = 2 * cut.channels;
    const bool inside = channel < cut.channels;
    const unsigned count = inside ? unsigned(cut.parts) : 0, slices = unsigned(cut.slices);
    const float elements = float(cut.units * cut.pixels);
    const float length = float(cut.slice_pixels);
    const float rest = float(cut.pixels - (cut.slices - 1) * cut.slice_pixels);  // of a unit's last slice
    parts += group * cut.parts * step + channel;
    float sum = 0, squares = 0;
    for (unsigned i = threadIdx.x / 32; i < count; i += kWarps)
        sum += parts[i * step] * (i % slices == slices - 1 ? rest : length);
    const float mean = row_sum(sum) / elements;
    for (unsigned i = threadIdx.x / 32; i < count; i += kWarps) {
        const float apart = parts[i * step] - mean;
        squares +=
            parts[i * step + cut.channels] + apart * apart * (i % slices == slices - 1 ? rest : length);
    }
    squares = row_sum(squares);
    if (inside && threadIdx.x < 32) {
        a.mean[group * cut.channels + channel] = pivot_of<T, ChannelsLast>(a.x, cut, group, channel) + mean;
        a.var[group * cut.channels + channel] = squares / elements;
    }
}

template <class T, int V, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads) forward_apply(BatchNormActForward a, Cut cut) {
    const Work<V, ChannelsLast> work(cut);
    constexpr int K = Work<V, ChannelsLast>::kChannels;
    float mean[K], factor[K], shift[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
        mean[k] = a.mean[work.code + k];
        factor[k] = a.weight[work.channel + k] / sqrtf(a.var[work.code + k] + float(a.eps));
        shift[k] = a.bias[work.channel + k];
    }
    for (unsigned i = work.first; i < work.last; i += work.step) {
        const int64_t at = work.at + i * work.stride;
        const Pack<T, V> in = pack<T, V>(a.x, at);
        Pack<T, V> added, out;
        if (a.residual) added = pack<T, V>(a.residual, at);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            float z = (to_float(in.lane[v]) - mean[v % K]) * factor[v % K] + shift[v % K];
            if (a.residual) z += to_float(added.lane[v]);
            put(&out.lane[v], a.relu && z < 0 ? 0.f : z);  // NaN passes
        }
        pack<T, V>(a.y, at) = out;
    }
}

// The gradient before the ReLU; `source` and `sign` are what it is read from, `sign` null for no ReLU.
template <class T, int V>
__device__ Pack<T, V> grad_z(const void* source, const void* sign, int64_t at) {
    Pack<T, V> grad = pack<T, V>(source, at);
    if (sign) {
        const Pack<T, V> y = pack<T, V>(sign, at);
#pragma unroll
        for (int v = 0; v < V; ++v)
            if (to_float(y.lane[v]) <= 0) put(&grad.lane[v], 0.f);
    }
    return grad;
}

// Writes sums of the gradient before the ReLU, plain and times centred x, and grad_residual.
template <class T, int V, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads) backward_sums(BatchNormActBackward a, Cut cut, float* parts) {
    const Work<V, ChannelsLast> work(cut);
    constexpr int K = Work<V, ChannelsLast>::kChannels;
    float mean[K], sums[V] = {}, products[V] = {};
#pragma unroll
    for (int k = 0; k < K; ++k) mean[k] = a.mean[work.code + k];
    for (unsigned i = work.first; i < work.last; i += work.step) {
        const int64_t at = work.at + i * work.stride;
        const Pack<T, V> in = pack<T, V>(a.x, at), grad = grad_z<T, V>(a.grad_y, a.relu ? a.y : nullptr, at);
        if (a.grad_residual) pack<T, V>(a.grad_residual, at) = grad;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float g = to_float(grad.lane[v]);
            sums[v] += g;
            products[v] += g * (to_float(in.lane[v]) - mean[v % K]);
        }
    }
    channel_sum<V, ChannelsLast>(sums);
    channel_sum<V, ChannelsLast>(products);
    if (!work.leads) return;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        parts[work.part + k] = sums[k];
        parts[work.part + cut.channels + k] = products[k];
    }
}

__global__ void __launch_bounds__(kThreads) backward_merge(Cut cut, const float* parts, float* sums) {
    const int64_t channel = blockIdx.x * 32 + threadIdx.x % 32, group = blockIdx.y, step = 2 * cut.channels;
    const bool inside = channel < cut.channels;
    const unsigned count = inside ? unsigned(cut.parts) : 0;
    parts += group * cut.parts * step + channel;
    float sum = 0, product = 0;
    for (unsigned i = threadIdx.x / 32; i < count; i += kWarps) {
        sum += parts[i * step];
        product += parts[i * step + cut.channels];
    }
    sum = row_sum(sum);
    product = row_sum(product);
    if (inside && threadIdx.x < 32) {
        sums[group * step + channel] = sum;
        sums[group * step + cut.channels + channel] = product;
    }
}

// grad_x; the first slice's blocks add up the groups' gradients of weight and bias.
template <class T, int V, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads)
    backward_apply(BatchNormActBackward a, Cut cut, const float* sums) {
    const Work<V, ChannelsLast> work(cut);
    constexpr int K = Work<V, ChannelsLast>::kChannels;
    const float elements = float(cut.units * cut.pixels), eps = float(a.eps);
    const int64_t step = 2 * cut.channels;
    if (work.opens) {
        for (int k = 0; k < K; ++k) {
            const int64_t channel = work.channel + k;
            float grad_weight = 0, grad_bias = 0;
            for (int64_t group = 0; group < cut.groups; ++group) {
                const float* at = sums + group * step + channel;
                grad_bias += at[0];
                grad_weight += at[cut.channels] / sqrtf(a.var[group * cut.channels + channel] + eps);
            }
            a.grad_weight[channel] = grad_weight;
            a.grad_bias[channel] = grad_bias;
        }
    }
    float mean[K], scale[K], level[K], slope[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const float rstd = 1 / sqrtf(a.var[work.code + k] + eps);
        const float* at = sums + work.group * step + work.channel + k;
        mean[k] = a.mean[work.code + k];
        scale[k] = a.weight[work.channel + k] * rstd;
        level[k] = at[0] / elements;
        slope[k] = at[cut.channels] / elements * rstd * rstd;
    }
    // The sums' kernel has left the masked gradient in grad_residual: one tensor to read and not two.
    const void* source = a.grad_residual ? a.grad_residual : a.grad_y;
    const void* sign = a.relu && !a.grad_residual ? a.y : nullptr;
    for (unsigned i = work.first; i < work.last; i += work.step) {
        const int64_t at = work.at + i * work.stride;
        const Pack<T, V> in = pack<T, V>(a.x, at), grad = grad_z<T, V>(source, sign, at);
        Pack<T, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float centred = to_float(in.lane[v]) - mean[v % K];
            put(&out.lane[v],
                (to_float(grad.lane[v]) - level[v % K] - centred * slope[v % K]) * scale[v % K]);
        }
        pack<T, V>(a.grad_x, at) = out;
    }
}

// Calls launch(pack width, order) as compile-time constants: 16 bytes a pack where the layout and every
// address allow it.
template <class T, class Launch>
void with_packs(const ImageShape& s, std::initializer_list<const void*> addresses, Launch launch) {
    constexpr int V = 16 / sizeof(T);
    bool whole = (s.channels_last ? s.channels : s.pixels) % V == 0;
    for (const void* address : addresses) whole = whole && aligned(address);
    const auto in_order = [&](auto width) {
        if (s.channels_last) {
            launch(width, std::true_type());
        } else {
            launch(width, std::false_type());
        }
    };
    if (whole) {
        in_order(std::integral_constant<int, V>());
    } else {
        in_order(std::integral_constant<int, 1>());
    }
}

void check_cut(const ImageShape& s, const Cut& cut) {
    check_sizes(kName, s);
    if (cut.pixels > 0x7fffffff || cut.slices * cut.channels > 0x7fffffff)
        throw std::invalid_argument(std::string(kName) +
                                    " on CUDA: a group must have fewer than 2^31 pixels");
}

}  // namespace

int64_t batch_norm_act_workspace(const ImageShape& shape, int64_t groups) {
    return Workspace(nullptr, Cut(shape, groups)).size;
}

void batch_norm_act_forward_cuda(const BatchNormActForward& a, float* workspace, int device,
                                 void* stream_address) {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
    const Cut cut(a.shape, a.groups);
    check_cut(a.shape, cut);
    const OnDevice here(kName, device);
    const Workspace space(workspace, cut);
    const dim3 merge(unsigned((cut.channels + 31) / 32), unsigned(cut.groups));
    dispatch(a.element, [&](auto zero) {
        using T = typename Device<decltype(zero)>::type;
        with_packs<T>(a.shape, {a.x, a.residual, a.y}, [&](auto width, auto order) {
            constexpr int V = decltype(width)::value;
            constexpr bool L = decltype(order)::value;
            const dim3 grid(unsigned(cut.slices * cut.columns(L, V)), unsigned(cut.groups * cut.units));
            forward_sums<T, V, L><<<grid, kThreads, 0, stream>>>(a, cut, space.parts);
            forward_merge<T, L><<<merge, kThreads, 0, stream>>>(a, cut, space.parts);
            forward_apply<T, V, L><<<grid, kThreads, 0, stream>>>(a, cut);
        });
    });
    check(kName, cudaGetLastError());
}

void batch_norm_act_backward_cuda(const BatchNormActBackward& a, float* workspace, int device,
                                  void* stream_address) {
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
    const Cut cut(a.shape, a.groups);
    check_cut(a.shape, cut);
    const OnDevice here(kName, device);
    const Workspace space(workspace, cut);
    const dim3 merge(unsigned((cut.channels + 31) / 32), unsigned(cut.groups));
    dispatch(a.element, [&](auto zero) {
        using T = typename Device<decltype(zero)>::type;
        const auto addresses = {static_cast<const void*>(a.grad_y), a.y, a.x,
                                static_cast<const void*>(a.grad_x),
                                static_cast<const void*>(a.grad_residual)};
        with_packs<T>(a.shape, addresses, [&](auto width, auto order) {
            constexpr int V = decltype(width)::value;
            constexpr bool L = decltype(order)::value;
            const dim3 grid(unsigned(cut.slices * cut.columns(L, V)), unsigned(cut.groups * cut.units));
            backward_sums<T, V, L><<<grid, kThreads, 0, stream>>>(a, cut, space.parts);
            backward_merge<<<merge, kThreads, 0, stream>>>(cut, space.parts, space.sums);
            backward_apply<T, V, L><<<grid, kThreads, 0, stream>>>(a, cut, space.sums);
        });
    });
    check(kName, cudaGetLastError());
}

}  // namespace dgnet_fast
