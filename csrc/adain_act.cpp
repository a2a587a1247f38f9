#include "adain_act.h"

#include <algorithm>
#include <cmath>

// One task is one (sample, channel) plane in NCHW, or one sample's block of 32 channels in channels_last. The
// three passes over a task (mean, variance, result) then find it in the L2 cache: at DG-Net's sizes a plane
// is at most 32 KiB and a block of channels 256 KiB to 1 MiB in float32. Tasks never share a sum, so results
// do not depend on the number of threads.

namespace dgnet_fast {
namespace {

// Sums run in float over at most this many terms and then move to double, so planes of any size keep float's
// accuracy. Neighbouring pixels share a run of kRun over the lanes of a vector register; in channels_last
// each channel has its own, of kRows terms (with 1024 the sums erred nine times as much as PyTorch's).
constexpr int64_t kRun = 1024;
constexpr int64_t kRows = 64;
constexpr int64_t kChannelBlock = 32;

// ---- contiguous: a plane is `pixels` neighbours

template <class Term>
double plane_sum(int64_t pixels, Term term) {
    double total = 0;
    for (int64_t start = 0; start < pixels; start += kRun) {
        const int64_t stop = std::min(pixels, start + kRun);
        float run = 0;
#pragma omp simd reduction(+ : run)
        for (int64_t i = start; i < stop; ++i) run += term(i);
        total += run;
    }
    return total;
}

template <class T>
void forward_plane(const AdainActForward& a, int64_t plane) {
    const int64_t pixels = a.shape.pixels;
    const T* x = static_cast<const T*>(a.x) + plane * pixels;
    T* y = static_cast<T*>(a.y) + plane * pixels;
    const float mean = static_cast<float>(plane_sum(pixels, [=](int64_t i) { return load(x[i]); }) / pixels);
    const double squares = plane_sum(pixels, [=](int64_t i) {
        const float centred = load(x[i]) - mean;
        return centred * centred;
    });
    const float rstd = static_cast<float>(1 / std::sqrt(squares / pixels + a.eps));
    a.mean[plane] = mean;
    a.rstd[plane] = rstd;

    const float factor = a.scale ? a.scale[plane] * rstd : rstd;
    const float shift = a.shift ? a.shift[plane] : 0.f;
    const float slope = a.slope;
    if (a.residual) {
        const T* residual = static_cast<const T*>(a.residual) + plane * pixels;
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) {
            const float z = (load(x[i]) - mean) * factor + shift;
            y[i] = store<T>((z > 0 ? z : z * slope) + load(residual[i]));
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) {
            const float z = (load(x[i]) - mean) * factor + shift;
            y[i] = store<T>(z > 0 ? z : z * slope);
        }
    }
}

template <class T>
void backward_plane(const AdainActBackward& a, int64_t plane) {
    const int64_t pixels = a.shape.pixels;
    const T* x = static_cast<const T*>(a.x) + plane * pixels;
    const T* grad_y = static_cast<const T*>(a.grad_y) + plane * pixels;
    T* grad_x = static_cast<T*>(a.grad_x) + plane * pixels;
    const float mean = a.mean[plane], rstd = a.rstd[plane], slope = a.slope;
    const float scale = a.scale ? a.scale[plane] : 1.f;
    const float factor = scale * rstd;
    const float shift = a.shift ? a.shift[plane] : 0.f;

    double total = 0, total_centred = 0;
    for (int64_t start = 0; start < pixels; start += kRun) {
        const int64_t stop = std::min(pixels, start + kRun);
        float sum = 0, sum_centred = 0;
#pragma omp simd reduction(+ : sum, sum_centred)
        for (int64_t i = start; i < stop; ++i) {
            const float centred = load(x[i]) - mean;
            const float g = load(grad_y[i]);
            const float grad_z = centred * factor + shift > 0 ? g : g * slope;
            sum += grad_z;
            sum_centred += grad_z * centred;
        }
        total += sum;
        total_centred += sum_centred;
    }
    a.grad_shift[plane] = static_cast<float>(total);
    a.grad_scale[plane] = static_cast<float>(total_centred * rstd);

    const float mean_grad = static_cast<float>(total / pixels);
    const float slope_grad = static_cast<float>(total_centred / pixels * rstd * rstd);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
        const float centred = load(x[i]) - mean;
        const float g = load(grad_y[i]);
        const float grad_z = centred * factor + shift > 0 ? g : g * slope;
        grad_x[i] = store<T>((grad_z - mean_grad - centred * slope_grad) * factor);
    }
}

// ---- channels_last: a block of `width` channels, rows `channels` apart. Width is kChannelBlock at compile
// time (the accumulators then stay in registers), or 0 for the last, narrower block.

template <int64_t Width>
struct Block {
    int64_t first_channel;
    int64_t given_width;
    int64_t width() const { return Width ? Width : given_width; }
};

template <class T, int64_t Width>
void forward_block(const AdainActForward& a, int64_t sample, Block<Width> block) {
    const int64_t pixels = a.shape.pixels, stride = a.shape.channels, width = block.width();
    const int64_t offset = sample * pixels * stride + block.first_channel;
    const int64_t code = sample * stride + block.first_channel;
    const T* x = static_cast<const T*>(a.x) + offset;
    T* y = static_cast<T*>(a.y) + offset;

    double total[kChannelBlock] = {};
    float mean[kChannelBlock] = {}, factor[kChannelBlock] = {}, shift[kChannelBlock] = {};
    for (int64_t start = 0; start < pixels; start += kRows) {
        const int64_t stop = std::min(pixels, start + kRows);
        float run[kChannelBlock] = {};
        for (int64_t i = start; i < stop; ++i) {
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) run[c] += load(x[i * stride + c]);
        }
        for (int64_t c = 0; c < width; ++c) total[c] += run[c];
    }
    for (int64_t c = 0; c < width; ++c) mean[c] = static_cast<float>(total[c] / pixels);

    double squares[kChannelBlock] = {};
    for (int64_t start = 0; start < pixels; start += kRows) {
        const int64_t stop = std::min(pixels, start + kRows);
        float run[kChannelBlock] = {};
        for (int64_t i = start; i < stop; ++i) {
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                const float centred = load(x[i * stride + c]) - mean[c];
                run[c] += centred * centred;
            }
        }
        for (int64_t c = 0; c < width; ++c) squares[c] += run[c];
    }
    for (int64_t c = 0; c < width; ++c) {
        const float rstd = static_cast<float>(1 / std::sqrt(squares[c] / pixels + a.eps));
        a.mean[code + c] = mean[c];
        a.rstd[code + c] = rstd;
        factor[c] = a.scale ? a.scale[code + c] * rstd : rstd;
        shift[c] = a.shift ? a.shift[code + c] : 0.f;
    }

    const float slope = a.slope;
    const T* residual = a.residual ? static_cast<const T*>(a.residual) + offset : nullptr;
    for (int64_t i = 0; i < pixels; ++i) {
        const T* row = x + i * stride;
        T* out = y + i * stride;
        if (residual) {
            const T* added = residual + i * stride;
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                const float z = (load(row[c]) - mean[c]) * factor[c] + shift[c];
                out[c] = store<T>((z > 0 ? z : z * slope) + load(added[c]));
            }
        } else {
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                const float z = (load(row[c]) - mean[c]) * factor[c] + shift[c];
                out[c] = store<T>(z > 0 ? z : z * slope);
            }
        }
    }
}

template <class T, int64_t Width>
void backward_block(const AdainActBackward& a, int64_t sample, Block<Width> block) {
    const int64_t pixels = a.shape.pixels, stride = a.shape.channels, width = block.width();
    const int64_t offset = sample * pixels * stride + block.first_channel;
    const int64_t code = sample * stride + block.first_channel;
    const T* x = static_cast<const T*>(a.x) + offset;
    const T* grad_y = static_cast<const T*>(a.grad_y) + offset;
    T* grad_x = static_cast<T*>(a.grad_x) + offset;
    const float slope = a.slope;

    float mean[kChannelBlock] = {}, factor[kChannelBlock] = {}, shift[kChannelBlock] = {};
    for (int64_t c = 0; c < width; ++c) {
        mean[c] = a.mean[code + c];
        factor[c] = (a.scale ? a.scale[code + c] : 1.f) * a.rstd[code + c];
        shift[c] = a.shift ? a.shift[code + c] : 0.f;
    }

    double total[kChannelBlock] = {}, total_centred[kChannelBlock] = {};
    for (int64_t start = 0; start < pixels; start += kRows) {
        const int64_t stop = std::min(pixels, start + kRows);
        float run[kChannelBlock] = {}, run_centred[kChannelBlock] = {};
        for (int64_t i = start; i < stop; ++i) {
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                const float centred = load(x[i * stride + c]) - mean[c];
                const float g = load(grad_y[i * stride + c]);
                const float grad_z = centred * factor[c] + shift[c] > 0 ? g : g * slope;
                run[c] += grad_z;
                run_centred[c] += grad_z * centred;
            }
        }
        for (int64_t c = 0; c < width; ++c) {
            total[c] += run[c];
            total_centred[c] += run_centred[c];
        }
    }

    float mean_grad[kChannelBlock] = {}, slope_grad[kChannelBlock] = {};
    for (int64_t c = 0; c < width; ++c) {
        const float rstd = a.rstd[code + c];
        a.grad_shift[code + c] = static_cast<float>(total[c]);
        a.grad_scale[code + c] = static_cast<float>(total_centred[c] * rstd);
        mean_grad[c] = static_cast<float>(total[c] / pixels);
        slope_grad[c] = static_cast<float>(total_centred[c] / pixels * rstd * rstd);
    }
    for (int64_t i = 0; i < pixels; ++i) {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
            const float centred = load(x[i * stride + c]) - mean[c];
            const float g = load(grad_y[i * stride + c]);
            const float grad_z = centred * factor[c] + shift[c] > 0 ? g : g * slope;
            grad_x[i * stride + c] = store<T>((grad_z - mean_grad[c] - centred * slope_grad[c]) * factor[c]);
        }
    }
}

// Calls plane(index) or block(sample, Block) for every task of `shape`, in parallel.
template <class PlaneTask, class BlockTask>
void for_each_task(const ImageShape& shape, PlaneTask plane, BlockTask block) {
    if (!shape.channels_last) {
        const int64_t planes = shape.batch * shape.channels;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < planes; ++i) plane(i);
        return;
    }
    const int64_t blocks = (shape.channels + kChannelBlock - 1) / kChannelBlock;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < shape.batch * blocks; ++i) {
        const int64_t sample = i / blocks, first = i % blocks * kChannelBlock;
        const int64_t width = std::min(kChannelBlock, shape.channels - first);
        if (width == kChannelBlock) {
            block(sample, Block<kChannelBlock>{first, width});
        } else {
            block(sample, Block<0>{first, width});
        }
    }
}

}  // namespace

void adain_act_forward(const AdainActForward& a) {
    dispatch(a.element, [&](auto zero) {
        using T = decltype(zero);
        for_each_task(
            a.shape, [&](int64_t plane) { forward_plane<T>(a, plane); },
            [&](int64_t sample, auto block) { forward_block<T>(a, sample, block); });
    });
}

void adain_act_backward(const AdainActBackward& a) {
    dispatch(a.element, [&](auto zero) {
        using T = decltype(zero);
        for_each_task(
            a.shape, [&](int64_t plane) { backward_plane<T>(a, plane); },
            [&](int64_t sample, auto block) { backward_block<T>(a, sample, block); });
    });
}

}  // namespace dgnet_fast
