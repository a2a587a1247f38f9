#include "layer_norm_act.h"

#include <omp.h>

#include <cmath>
#include <memory>
#include <vector>

#include "padding.h"

// A sample has up to a million elements and a batch may be one sample, so the work is shared within a sample:
// samples follow each other (the second pass over one then finds it in the L3 cache), and each is cut in
// pieces whose size depends on the shape alone. Pieces leave their sums in double, and these are added in
// their order: results do not depend on the number of threads.

namespace dgnet_fast {
namespace {

constexpr int64_t kPiece = 4096;       // values whose mean and squares are taken together, within L1
constexpr int64_t kBands = 64;         // channels_last: bands of picture rows that a sample is cut in
constexpr int64_t kChannelBlock = 32;  // channels_last: channels whose sums stay in registers
constexpr int64_t kRows = 64;          // pixels that one float sums, as in adain_act.cpp

// A standard deviation below this many eps counts as 0, as in dgnet_fast/ops/layer_norm_act.py.
constexpr double kLeastStd = 1e-6;

struct Moments {
    double mean;
    double squares;  // about the mean
};

template <class T>
Moments moments_of(const T* x, int64_t count) {
    const double mean = sum_of(count, [=](int64_t i) { return load(x[i]); }) / count;
    const float centre = static_cast<float>(mean);
    const double squares = sum_of(count, [=](int64_t i) {
        const float centred = load(x[i]) - centre;
        return centred * centred;
    });
    // About `mean` instead of `centre`, from which it differs by rounding.
    return {mean, std::max(squares - count * (centre - mean) * (centre - mean), 0.)};
}

// ---- contiguous: tasks are the planes

template <class T>
void forward_plane(const LayerNormActForward& a, int64_t sample, int64_t channel) {
    const ImageShape& s = a.shape;
    const int64_t plane = sample * s.channels + channel;
    const float mean = a.mean[sample], factor = a.rdenom[sample] * a.gamma[channel], shift = a.beta[channel];
    const float slope = a.slope;
    const bool joined = s.padding == 0;  // then the plane is one row
    const int64_t height = joined ? 1 : s.height, width = joined ? s.pixels : s.width;
    const PaddedPicture<T, 1> y{
        static_cast<T*>(a.y) + plane * s.padded_pixels, height, width, s.padding, 1, 1};
    for (int64_t h = 0; h < height; ++h) {
        const T* in = static_cast<const T*>(a.x) + plane * s.pixels + h * width;
        T* out = y.row(h);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            const float z = (load(in[i]) - mean) * factor + shift;
            out[i] = store<T>(z > 0 ? z : z * slope);
        }
        finish_row(y, h);
    }
}

// What the backward of one sample needs besides a channel's gamma and beta.
struct SampleTerms {
    float mean, rdenom;
    float mean_grad;  // of the gradient of (x - mean) * rdenom, over the sample, times rdenom
    float share;      // of x - mean in grad_x, through std
};

// Calls use(gradient, x offset) for the plane, folded into scratch where padded.
template <class T, class Use>
void with_plane_gradient(const LayerNormActBackward& a, int64_t plane, float* scratch, Use use) {
    const ImageShape& s = a.shape;
    const T* grad_y = static_cast<const T*>(a.grad_y) + plane * s.padded_pixels;
    if (s.padding == 0) return use(grad_y);
    const PaddedPicture<const T, 1> padded{grad_y, s.height, s.width, s.padding, 1, 1};
    for (int64_t h = 0; h < s.height; ++h) fold_row(padded, h, scratch + h * s.width);
    use(static_cast<const float*>(scratch));
}

template <class T>
void sum_plane(const LayerNormActBackward& a, int64_t sample, int64_t channel, float* scratch, double* sums) {
    const int64_t pixels = a.shape.pixels, plane = sample * a.shape.channels + channel;
    const T* x = static_cast<const T*>(a.x) + plane * pixels;
    const float mean = a.mean[sample], factor = a.rdenom[sample] * a.gamma[channel], shift = a.beta[channel];
    const float slope = a.slope;
    with_plane_gradient<T>(a, plane, scratch, [&](const auto* grad_y) {
        sum_pairs(pixels, sums[0], sums[1], [=](int64_t i, float& sum, float& sum_centred) {
            const float centred = load(x[i]) - mean;
            const float g = load(grad_y[i]);
            const float grad_z = centred * factor + shift > 0 ? g : g * slope;
            sum += grad_z;
            sum_centred += grad_z * centred;
        });
    });
}

template <class T>
void backward_plane(const LayerNormActBackward& a, int64_t sample, int64_t channel, SampleTerms terms,
                    float* scratch) {
    const int64_t pixels = a.shape.pixels, plane = sample * a.shape.channels + channel;
    const T* x = static_cast<const T*>(a.x) + plane * pixels;
    T* grad_x = static_cast<T*>(a.grad_x) + plane * pixels;
    const float factor = terms.rdenom * a.gamma[channel], shift = a.beta[channel], slope = a.slope;
    with_plane_gradient<T>(a, plane, scratch, [&](const auto* grad_y) {
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) {
            const float centred = load(x[i]) - terms.mean;
            const float g = load(grad_y[i]);
            const float grad_z = centred * factor + shift > 0 ? g : g * slope;
            grad_x[i] = store<T>(grad_z * factor - terms.mean_grad - centred * terms.share);
        }
    });
}

// ---- channels_last: tasks are bands of picture rows, and within them blocks of channels

struct Band {
    int64_t first_row, last_row;
};

int64_t band_count(const ImageShape& s) {
    return std::min(s.height, kBands);
}

Band band_of(const ImageShape& s, int64_t band) {
    return {s.height * band / band_count(s), s.height * (band + 1) / band_count(s)};
}

// Calls use(first channel, width) for every block, the width an integral_constant where it is kChannelBlock.
template <class Use>
void for_each_block(const ImageShape& s, Use use) {
    int64_t first = 0;
    for (; first + kChannelBlock <= s.channels; first += kChannelBlock)
        use(first, std::integral_constant<int64_t, kChannelBlock>{});
    if (first < s.channels) use(first, s.channels - first);
}

template <class Width>
constexpr int64_t kStatic = 0;
template <int64_t Width>
constexpr int64_t kStatic<std::integral_constant<int64_t, Width>> = Width;

struct Affine {
    float factor[kChannelBlock] = {}, shift[kChannelBlock] = {};
    Affine(const float* gamma, const float* beta, float rdenom, int64_t first, int64_t width) {
        for (int64_t c = 0; c < width; ++c) {
            factor[c] = rdenom * gamma[first + c];
            shift[c] = beta[first + c];
        }
    }
};

template <class T>
void forward_band(const LayerNormActForward& a, int64_t sample, int64_t band) {
    const ImageShape& s = a.shape;
    const int64_t stride = s.channels;
    const float mean = a.mean[sample], slope = a.slope;
    const PaddedPicture<T, 0> y{static_cast<T*>(a.y) + sample * s.padded_pixels * stride,
                                s.height,
                                s.width,
                                s.padding,
                                stride,
                                stride};
    const Band rows = band_of(s, band);
    for (int64_t h = rows.first_row; h < rows.last_row; ++h) {
        for_each_block(s, [&](int64_t first, auto width) {
            const Affine affine(a.gamma, a.beta, a.rdenom[sample], first, width);
            const T* in = static_cast<const T*>(a.x) + (sample * s.pixels + h * s.width) * stride + first;
            T* out = y.row(h) + first;
            for (int64_t w = 0; w < s.width * stride; w += stride) {
#pragma omp simd
                for (int64_t c = 0; c < width; ++c) {
                    const float z = (load(in[w + c]) - mean) * affine.factor[c] + affine.shift[c];
                    out[w + c] = store<T>(z > 0 ? z : z * slope);
                }
            }
        });
        finish_row(y, h);
    }
}

// Calls use(gradient of row h, its pixel stride) for the block, folded into scratch where padded.
template <int64_t V, class T, class Use>
void with_row_gradient(const LayerNormActBackward& a, int64_t sample, int64_t h, int64_t first, int64_t width,
                       float* scratch, Use use) {
    const ImageShape& s = a.shape;
    const T* grad_y = static_cast<const T*>(a.grad_y) + sample * s.padded_pixels * s.channels + first;
    if (s.padding == 0) return use(grad_y + h * s.width * s.channels, s.channels);
    const PaddedPicture<const T, V> padded{grad_y, s.height, s.width, s.padding, s.channels, width};
    fold_row(padded, h, scratch);
    use(static_cast<const float*>(scratch), width);
}

// sums: (2, channels)
template <class T>
void sum_band(const LayerNormActBackward& a, int64_t sample, int64_t band, float* scratch, double* sums) {
    const ImageShape& s = a.shape;
    const int64_t stride = s.channels;
    const float mean = a.mean[sample], slope = a.slope;
    const Band rows = band_of(s, band);
    for_each_block(s, [&](int64_t first, auto width) {
        const Affine affine(a.gamma, a.beta, a.rdenom[sample], first, width);
        double total[kChannelBlock] = {}, total_centred[kChannelBlock] = {};
        for (int64_t h = rows.first_row; h < rows.last_row; ++h) {
            const T* in = static_cast<const T*>(a.x) + (sample * s.pixels + h * s.width) * stride + first;
            const auto sum_row = [&](const auto* grads, int64_t grad_stride) {
                for (int64_t start = 0; start < s.width; start += kRows) {
                    const int64_t stop = std::min(s.width, start + kRows);
                    float run[kChannelBlock] = {}, run_centred[kChannelBlock] = {};
                    for (int64_t w = start; w < stop; ++w) {
#pragma omp simd
                        for (int64_t c = 0; c < width; ++c) {
                            const float centred = load(in[w * stride + c]) - mean;
                            const float g = load(grads[w * grad_stride + c]);
                            const float grad_z =
                                centred * affine.factor[c] + affine.shift[c] > 0 ? g : g * slope;
                            run[c] += grad_z;
                            run_centred[c] += grad_z * centred;
                        }
                    }
                    for (int64_t c = 0; c < width; ++c) {
                        total[c] += run[c];
                        total_centred[c] += run_centred[c];
                    }
                }
            };
            with_row_gradient<kStatic<decltype(width)>, T>(a, sample, h, first, width, scratch, sum_row);
        }
        std::copy_n(total, int64_t(width), sums + first);
        std::copy_n(total_centred, int64_t(width), sums + s.channels + first);
    });
}

template <class T>
void backward_band(const LayerNormActBackward& a, int64_t sample, int64_t band, SampleTerms terms,
                   float* scratch) {
    const ImageShape& s = a.shape;
    const int64_t stride = s.channels;
    const float slope = a.slope;
    const Band rows = band_of(s, band);
    for_each_block(s, [&](int64_t first, auto width) {
        const Affine affine(a.gamma, a.beta, terms.rdenom, first, width);
        for (int64_t h = rows.first_row; h < rows.last_row; ++h) {
            const int64_t offset = (sample * s.pixels + h * s.width) * stride + first;
            const T* in = static_cast<const T*>(a.x) + offset;
            T* out = static_cast<T*>(a.grad_x) + offset;
            const auto write_row = [&](const auto* grads, int64_t grad_stride) {
                for (int64_t w = 0; w < s.width; ++w) {
#pragma omp simd
                    for (int64_t c = 0; c < width; ++c) {
                        const float centred = load(in[w * stride + c]) - terms.mean;
                        const float g = load(grads[w * grad_stride + c]);
                        const float grad_z = centred * affine.factor[c] + affine.shift[c] > 0 ? g : g * slope;
                        out[w * stride + c] =
                            store<T>(grad_z * affine.factor[c] - terms.mean_grad - centred * terms.share);
                    }
                }
            };
            with_row_gradient<kStatic<decltype(width)>, T>(a, sample, h, first, width, scratch, write_row);
        }
    });
}

// ---- both orders

template <class T>
void forward(const LayerNormActForward& a) {
    const ImageShape& s = a.shape;
    const int64_t elements = s.channels * s.pixels, pieces = (elements + kPiece - 1) / kPiece;
    const int64_t tasks = s.channels_last ? band_count(s) : s.channels;
    std::vector<Moments> moments(pieces);
#pragma omp parallel
    for (int64_t sample = 0; sample < s.batch; ++sample) {
        const T* x = static_cast<const T*>(a.x) + sample * elements;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < pieces; ++i)
            moments[i] = moments_of(x + i * kPiece, std::min(kPiece, elements - i * kPiece));
#pragma omp single
        {
            double mean = 0, squares = 0;
            const auto count = [=](int64_t i) { return double(std::min(kPiece, elements - i * kPiece)); };
            for (int64_t i = 0; i < pieces; ++i) mean += moments[i].mean * (count(i) / elements);
            for (int64_t i = 0; i < pieces; ++i) {
                const double difference = moments[i].mean - mean;
                squares += moments[i].squares + count(i) * difference * difference;
            }
            a.mean[sample] = static_cast<float>(mean);
            a.rdenom[sample] = static_cast<float>(1 / (std::sqrt(squares / (elements - 1)) + a.eps));
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tasks; ++i) {
            if (s.channels_last) {
                forward_band<T>(a, sample, i);
            } else {
                forward_plane<T>(a, sample, i);
            }
        }
    }
}

template <class T>
void backward(const LayerNormActBackward& a) {
    const ImageShape& s = a.shape;
    const int64_t elements = s.channels * s.pixels;
    const int64_t tasks = s.channels_last ? band_count(s) : s.channels;
    const int64_t floats = s.channels_last ? s.width * kChannelBlock : s.pixels;
    const int64_t stride = s.padding > 0 ? (floats + 15) / 16 * 16 : 0;
    const std::unique_ptr<float[]> scratch(new float[stride * omp_get_max_threads()]);
    // Per task in NCHW the channel's two sums, in channels_last those of all channels: (2, channels).
    const int64_t length = s.channels_last ? 2 * s.channels : 2;
    std::vector<double> sums(tasks * length), grad_gamma(s.channels), grad_beta(s.channels);
    SampleTerms terms{};
#pragma omp parallel
    for (int64_t sample = 0; sample < s.batch; ++sample) {
        float* own = scratch.get() + stride * omp_get_thread_num();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tasks; ++i) {
            if (s.channels_last) {
                sum_band<T>(a, sample, i, own, &sums[i * length]);
            } else {
                sum_plane<T>(a, sample, i, own, &sums[i * length]);
            }
        }
#pragma omp single
        {
            double grad = 0, grad_centred = 0;
            const double rdenom = a.rdenom[sample];
            for (int64_t c = 0; c < s.channels; ++c) {
                double sum = s.channels_last ? 0 : sums[2 * c],
                       centred = s.channels_last ? 0 : sums[2 * c + 1];
                for (int64_t i = 0; s.channels_last && i < tasks; ++i) {
                    sum += sums[i * length + c];
                    centred += sums[i * length + s.channels + c];
                }
                grad_beta[c] += sum;
                grad_gamma[c] += centred * rdenom;
                grad += a.gamma[c] * sum;
                grad_centred += a.gamma[c] * centred;
            }
            const double std_ = 1 / rdenom - a.eps;
            const double share =
                std_ <= kLeastStd * a.eps ? 0 : grad_centred * rdenom * rdenom / (std_ * (elements - 1));
            terms = {a.mean[sample], a.rdenom[sample], static_cast<float>(grad / elements * rdenom),
                     static_cast<float>(share)};
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tasks; ++i) {
            if (s.channels_last) {
                backward_band<T>(a, sample, i, terms, own);
            } else {
                backward_plane<T>(a, sample, i, terms, own);
            }
        }
    }
    for (int64_t c = 0; c < s.channels; ++c) {
        a.grad_gamma[c] = static_cast<float>(grad_gamma[c]);
        a.grad_beta[c] = static_cast<float>(grad_beta[c]);
    }
}

}  // namespace

void layer_norm_act_forward(const LayerNormActForward& a) {
    dispatch(a.element, [&](auto zero) { forward<decltype(zero)>(a); });
}

void layer_norm_act_backward(const LayerNormActBackward& a) {
    dispatch(a.element, [&](auto zero) { backward<decltype(zero)>(a); });
}

}  // namespace dgnet_fast
