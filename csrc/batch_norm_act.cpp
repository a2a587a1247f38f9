#include "batch_norm_act.h"

#include <algorithm>
#include <cmath>
#include <vector>

// Both orders of memory are a table of rows: channels_last has one row a pixel over all channels, contiguous
// one row a (sample, channel) plane. Rows are cut into chunks that stay in the L2 cache between the two looks
// that a chunk's statistics take (its mean, then squares about it); chunks are merged in double and in order,
// so results do not depend on the number of threads.

namespace dgnet_fast {
namespace {

constexpr int64_t kChunkValues = 1 << 15;  // 128 KiB of float32
constexpr int64_t kSumRows = 64;           // terms of a float sum before it moves to double
constexpr int64_t kBlock = 64;             // channels whose sums stay in registers and L1

struct Moments {
    double mean;     // of x; of the gradient in the backward
    double product;  // sum of squares about the mean; of gradient times centred x in the backward
};

// ---- channels_last: rows of `channels` neighbours

struct Rows {
    int64_t channels, group_rows, chunk_rows, chunks;

    explicit Rows(const ImageShape& shape, int64_t groups)
        : channels(shape.channels), group_rows(shape.batch / groups * shape.pixels) {
        chunk_rows = std::max<int64_t>(1, std::min(group_rows, kChunkValues / channels));
        chunks = (group_rows + chunk_rows - 1) / chunk_rows;
    }
    int64_t first(int64_t chunk) const { return chunk * chunk_rows; }
    int64_t last(int64_t chunk) const { return std::min(group_rows, (chunk + 1) * chunk_rows); }
};

// Calls column(channel, width) for blocks of at most kBlock channels.
template <class Column>
void for_blocks(int64_t channels, Column column) {
    for (int64_t c = 0; c < channels; c += kBlock) column(c, std::min(kBlock, channels - c));
}

// Adds term(row, channel) over rows [first, last) to sums[0..width), for channels c..c+width.
template <class Term>
void sum_rows(int64_t first, int64_t last, int64_t c, int64_t width, double* sums, Term term) {
    for (int64_t start = first; start < last; start += kSumRows) {
        const int64_t stop = std::min(last, start + kSumRows);
        float run[kBlock] = {};
        for (int64_t row = start; row < stop; ++row) {
#pragma omp simd
            for (int64_t k = 0; k < width; ++k) run[k] += term(row, c + k);
        }
        for (int64_t k = 0; k < width; ++k) sums[k] += run[k];
    }
}

template <class T>
void forward_rows(const BatchNormActForward& a) {
    const Rows rows(a.shape, a.groups);
    const int64_t channels = rows.channels, tasks = a.groups * rows.chunks;
    std::vector<Moments> parts(tasks * channels);
    const T* all = static_cast<const T*>(a.x);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t chunk = task % rows.chunks;
        const T* x = all + task / rows.chunks * rows.group_rows * channels;
        const int64_t first = rows.first(chunk), last = rows.last(chunk);
        for_blocks(channels, [&](int64_t c, int64_t width) {
            double sums[kBlock] = {}, squares[kBlock] = {};
            float mean[kBlock];
            sum_rows(first, last, c, width, sums,
                     [=](int64_t row, int64_t k) { return load(x[row * channels + k]); });
            for (int64_t k = 0; k < width; ++k) mean[k] = static_cast<float>(sums[k] / (last - first));
            const float* centre = mean;
            sum_rows(first, last, c, width, squares, [=](int64_t row, int64_t k) {
                const float centred = load(x[row * channels + k]) - centre[k - c];
                return centred * centred;
            });
            // the squares are about the rounded mean: merged as such
            for (int64_t k = 0; k < width; ++k) parts[task * channels + c + k] = {mean[k], squares[k]};
        });
    }
    std::vector<float> factor(a.groups * channels), offset(a.groups * channels);
#pragma omp parallel for schedule(static)
    for (int64_t index = 0; index < a.groups * channels; ++index) {
        const int64_t group = index / channels, c = index % channels;
        const Moments* part = parts.data() + group * rows.chunks * channels + c;
        double mean = 0, squares = 0;
        for (int64_t k = 0; k < rows.chunks; ++k) {
            mean += part[k * channels].mean * (rows.last(k) - rows.first(k));
        }
        mean /= rows.group_rows;
        for (int64_t k = 0; k < rows.chunks; ++k) {
            const double apart = part[k * channels].mean - mean;
            squares += part[k * channels].product + apart * apart * (rows.last(k) - rows.first(k));
        }
        const double var = squares / rows.group_rows;
        a.mean[index] = static_cast<float>(mean);
        a.var[index] = static_cast<float>(var);
        factor[index] = static_cast<float>(a.weight[c] / std::sqrt(var + a.eps));
        offset[index] = a.bias[c];
    }
    const float floor = a.relu ? 0.f : -INFINITY;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t group = task / rows.chunks, chunk = task % rows.chunks;
        const float *mean = a.mean + group * channels, *scale = factor.data() + group * channels,
                    *shift = offset.data() + group * channels;
        for (int64_t row = rows.first(chunk); row < rows.last(chunk); ++row) {
            const int64_t at = (group * rows.group_rows + row) * channels;
            const T* x = all + at;
            T* y = static_cast<T*>(a.y) + at;
            if (a.residual) {
                const T* added = static_cast<const T*>(a.residual) + at;
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const float z = (load(x[c]) - mean[c]) * scale[c] + shift[c] + load(added[c]);
                    y[c] = store<T>(z < floor ? floor : z);
                }
            } else {
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const float z = (load(x[c]) - mean[c]) * scale[c] + shift[c];
                    y[c] = store<T>(z < floor ? floor : z);
                }
            }
        }
    }
}

template <class T, bool Relu>
inline float grad_z(T grad_y, T y) {
    // Times the ReLU's slope, 0 or 1; NaN passes, as in PyTorch. Of a choice between the gradient and 0 the
    // compiler makes a branch, and then does not vectorise (14 ns a value, not 1).
    const float slope = Relu && load(y) <= 0 ? 0.f : 1.f;
    return load(grad_y) * slope;
}

// What the backward of one (group, channel) needs, from the sums of its gradient and gradient times centred
// x.
struct GradFactors {
    float mean, scale, mean_grad, slope_grad;
};

template <class T, bool Relu>
void backward_rows(const BatchNormActBackward& a) {
    const Rows rows(a.shape, a.groups);
    const int64_t channels = rows.channels, tasks = a.groups * rows.chunks;
    std::vector<Moments> parts(tasks * channels);
    const T *all_x = static_cast<const T*>(a.x), *all_grad = static_cast<const T*>(a.grad_y),
            *all_y = static_cast<const T*>(a.y);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t group = task / rows.chunks, chunk = task % rows.chunks;
        const int64_t base = group * rows.group_rows * channels;
        const T *x = all_x + base, *grad = all_grad + base, *y = all_y + base;
        const float* mean = a.mean + group * channels;
        for_blocks(channels, [&](int64_t c, int64_t width) {
            double sums[kBlock] = {}, products[kBlock] = {};
            const int64_t first = rows.first(chunk), last = rows.last(chunk);
            for (int64_t start = first; start < last; start += kSumRows) {
                const int64_t stop = std::min(last, start + kSumRows);
                float run[kBlock] = {}, run_product[kBlock] = {};
                for (int64_t row = start; row < stop; ++row) {
                    const int64_t at = row * channels + c;
#pragma omp simd
                    for (int64_t k = 0; k < width; ++k) {
                        const float g = grad_z<T, Relu>(grad[at + k], y[at + k]);
                        run[k] += g;
                        run_product[k] += g * (load(x[at + k]) - mean[c + k]);
                    }
                }
                for (int64_t k = 0; k < width; ++k) {
                    sums[k] += run[k];
                    products[k] += run_product[k];
                }
            }
            for (int64_t k = 0; k < width; ++k) parts[task * channels + c + k] = {sums[k], products[k]};
        });
    }
    std::vector<float> scale(a.groups * channels), mean_grad(scale.size()), slope_grad(scale.size());
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < channels; ++c) {
        double weight = 0, bias = 0;
        for (int64_t group = 0; group < a.groups; ++group) {
            double sum = 0, product = 0;
            for (int64_t k = 0; k < rows.chunks; ++k) {
                const Moments& part = parts[(group * rows.chunks + k) * channels + c];
                sum += part.mean;
                product += part.product;
            }
            const int64_t index = group * channels + c;
            const double rstd = 1 / std::sqrt(static_cast<double>(a.var[index]) + a.eps);
            bias += sum;
            weight += product * rstd;
            scale[index] = static_cast<float>(a.weight[c] * rstd);
            mean_grad[index] = static_cast<float>(sum / rows.group_rows);
            slope_grad[index] = static_cast<float>(product / rows.group_rows * rstd * rstd);
        }
        a.grad_weight[c] = static_cast<float>(weight);
        a.grad_bias[c] = static_cast<float>(bias);
    }
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t group = task / rows.chunks, chunk = task % rows.chunks, code = group * channels;
        const float *mean = a.mean + code, *factor = scale.data() + code, *level = mean_grad.data() + code,
                    *slope = slope_grad.data() + code;
        for (int64_t row = rows.first(chunk); row < rows.last(chunk); ++row) {
            const int64_t at = (group * rows.group_rows + row) * channels;
            const T *x = all_x + at, *grad = all_grad + at, *y = all_y + at;
            T* out = static_cast<T*>(a.grad_x) + at;
            if (a.grad_residual) {
                T* passed = static_cast<T*>(a.grad_residual) + at;
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const float g = grad_z<T, Relu>(grad[c], y[c]);
                    passed[c] = store<T>(g);
                    out[c] = store<T>((g - level[c] - (load(x[c]) - mean[c]) * slope[c]) * factor[c]);
                }
            } else {
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    const float g = grad_z<T, Relu>(grad[c], y[c]);
                    out[c] = store<T>((g - level[c] - (load(x[c]) - mean[c]) * slope[c]) * factor[c]);
                }
            }
        }
    }
}

// ---- contiguous: one task is a (group, channel); its planes are `channels` planes apart

template <class T>
void forward_planes(const BatchNormActForward& a) {
    const int64_t channels = a.shape.channels, pixels = a.shape.pixels, samples = a.shape.batch / a.groups;
    const double count = static_cast<double>(samples) * pixels;
    const float floor = a.relu ? 0.f : -INFINITY;
#pragma omp parallel for schedule(static)
    for (int64_t index = 0; index < a.groups * channels; ++index) {
        const int64_t group = index / channels, c = index % channels;
        const auto offset = [=](int64_t sample) {
            return ((group * samples + sample) * channels + c) * pixels;
        };
        double sum = 0, squares = 0;
        for (int64_t sample = 0; sample < samples; ++sample) {
            const T* x = static_cast<const T*>(a.x) + offset(sample);
            sum += sum_of(pixels, [=](int64_t i) { return load(x[i]); });
        }
        const float mean = static_cast<float>(sum / count);
        for (int64_t sample = 0; sample < samples; ++sample) {
            const T* x = static_cast<const T*>(a.x) + offset(sample);
            squares += sum_of(pixels, [=](int64_t i) {
                const float centred = load(x[i]) - mean;
                return centred * centred;
            });
        }
        const double var = squares / count;
        a.mean[index] = mean;
        a.var[index] = static_cast<float>(var);
        const float scale = static_cast<float>(a.weight[c] / std::sqrt(var + a.eps)), shift = a.bias[c];
        for (int64_t sample = 0; sample < samples; ++sample) {
            const T* x = static_cast<const T*>(a.x) + offset(sample);
            T* y = static_cast<T*>(a.y) + offset(sample);
            const T* added = a.residual ? static_cast<const T*>(a.residual) + offset(sample) : nullptr;
            if (added) {
#pragma omp simd
                for (int64_t i = 0; i < pixels; ++i) {
                    const float z = (load(x[i]) - mean) * scale + shift + load(added[i]);
                    y[i] = store<T>(z < floor ? floor : z);
                }
            } else {
#pragma omp simd
                for (int64_t i = 0; i < pixels; ++i) {
                    const float z = (load(x[i]) - mean) * scale + shift;
                    y[i] = store<T>(z < floor ? floor : z);
                }
            }
        }
    }
}

template <class T, bool Relu>
void backward_planes(const BatchNormActBackward& a) {
    const int64_t channels = a.shape.channels, pixels = a.shape.pixels, samples = a.shape.batch / a.groups;
    const double count = static_cast<double>(samples) * pixels;
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < channels; ++c) {
        double weight = 0, bias = 0;
        for (int64_t group = 0; group < a.groups; ++group) {
            const auto offset = [=](int64_t sample) {
                return ((group * samples + sample) * channels + c) * pixels;
            };
            const int64_t index = group * channels + c;
            const float mean = a.mean[index];
            const double rstd = 1 / std::sqrt(static_cast<double>(a.var[index]) + a.eps);
            double sum = 0, product = 0;
            for (int64_t sample = 0; sample < samples; ++sample) {
                const T *x = static_cast<const T*>(a.x) + offset(sample),
                        *grad = static_cast<const T*>(a.grad_y) + offset(sample),
                        *y = static_cast<const T*>(a.y) + offset(sample);
                sum += sum_of(pixels, [=](int64_t i) { return grad_z<T, Relu>(grad[i], y[i]); });
                product += sum_of(
                    pixels, [=](int64_t i) { return grad_z<T, Relu>(grad[i], y[i]) * (load(x[i]) - mean); });
            }
            bias += sum;
            weight += product * rstd;
            const GradFactors f = {mean, static_cast<float>(a.weight[c] * rstd),
                                   static_cast<float>(sum / count),
                                   static_cast<float>(product / count * rstd * rstd)};
            for (int64_t sample = 0; sample < samples; ++sample) {
                const T *x = static_cast<const T*>(a.x) + offset(sample),
                        *grad = static_cast<const T*>(a.grad_y) + offset(sample),
                        *y = static_cast<const T*>(a.y) + offset(sample);
                T* out = static_cast<T*>(a.grad_x) + offset(sample);
                T* passed = a.grad_residual ? static_cast<T*>(a.grad_residual) + offset(sample) : nullptr;
                if (passed) {
#pragma omp simd
                    for (int64_t i = 0; i < pixels; ++i) passed[i] = store<T>(grad_z<T, Relu>(grad[i], y[i]));
                }
#pragma omp simd
                for (int64_t i = 0; i < pixels; ++i) {
                    const float g = grad_z<T, Relu>(grad[i], y[i]);
                    out[i] = store<T>((g - f.mean_grad - (load(x[i]) - f.mean) * f.slope_grad) * f.scale);
                }
            }
        }
        a.grad_weight[c] = static_cast<float>(weight);
        a.grad_bias[c] = static_cast<float>(bias);
    }
}

}  // namespace

void batch_norm_act_forward(const BatchNormActForward& a) {
    dispatch(a.element, [&](auto zero) {
        using T = decltype(zero);
        a.shape.channels_last ? forward_rows<T>(a) : forward_planes<T>(a);
    });
}

void batch_norm_act_backward(const BatchNormActBackward& a) {
    dispatch(a.element, [&](auto zero) {
        using T = decltype(zero);
        if (a.relu) {
            a.shape.channels_last ? backward_rows<T, true>(a) : backward_planes<T, true>(a);
        } else {
            a.shape.channels_last ? backward_rows<T, false>(a) : backward_planes<T, false>(a);
        }
    });
}

}  // namespace dgnet_fast
