// Winograd F(4×4, 3×3), in three stages: the 6×6 patches of x become 36 matrices (patches, channels), each is
// multiplied with that of the taps, and every 36 sums become a 4×4 patch of the result. So many patches go
// through all three together that their matrices stay in the cache.
//
// The interpolation points are 0, 1, -1, 1/2, -2 and infinity: over 128 channels the root mean square error
// is 2.4 times that of the direct form, with the usual 0, ±1, ±2 it is 3.7 times (Barabasz et al. 2018, arXiv
// 1803.10986, on the choice of points).
#include "conv3x3.h"

#include <omp.h>

#include <array>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "eight.h"

namespace dgnet_fast {
namespace {

constexpr int64_t kOut = 4;             // rows and columns of a patch of the result
constexpr int64_t kIn = kOut + 2;       // of a patch of x
constexpr int64_t kPoints = kIn * kIn;  // matrices
constexpr int64_t kPanel = 16;          // columns of a product that stay in registers
constexpr int64_t kRows = 6;            // rows of a product that stay in registers
constexpr int64_t kBlock = 4 * kRows;   // patches that go through all stages together, their matrices in L2
constexpr int64_t kPrivateTaps =
    8 << 20;  // bytes of the taps' matrices that each thread may read for every block
constexpr int64_t kSharedBytes = 16 << 20;  // of matrices that all threads work on: they stay in the L3 cache
constexpr int64_t kLongestChunk = 256;      // patches: a panel of that many fills half of the L1 cache

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kWidth)));
constexpr int64_t kVectors = kPanel / kWidth;

int64_t up_to_panel(int64_t channels) {
    return (channels + kPanel - 1) / kPanel * kPanel;
}

// ---- transforms along one dimension. The matrices are those of the interpolation at 0, 1, -1, 1/2, -2, ∞.

template <class T>
using Line = std::array<T, 6>;

// Bᵀ: six values of x
template <class T>
Line<T> of_input(const Line<T>& d) {
    const T d31 = d[3] - d[1], d42 = d[4] - d[2];
    return {2 * (d[0] - d[2] + d42) + 3 * d31,
            d[2] + 2 * (d[4] - d[1]) + 5 * d[3],
            5 * d[2] - 2 * (d[1] + d[4]) - d[3],
            -2 * d31 - d42,
            2 * d42 - d31,
            2 * (d[1] + d[5]) + 3 * d42 - 4 * d[3]};
}

// G: three taps
template <class T>
Line<T> of_taps(T g0, T g1, T g2) {
    const T even = (g0 + g2) * (1.f / 6), odd = g1 * (1.f / 6);
    return {g0 * .5f,
            even + odd,
            even - odd,
            (4 * g0 + 2 * g1 + g2) * (4.f / 15),
            (g0 - 2 * g1 + 4 * g2) * (1.f / 30),
            g2 * .5f};
}

// Gᵀ: back to three taps
template <class T>
std::array<T, 3> to_taps(const Line<T>& u) {
    const T even = (u[1] + u[2]) * (1.f / 6), odd = (u[1] - u[2]) * (1.f / 6);
    return {u[0] * .5f + even + u[3] * (16.f / 15) + u[4] * (1.f / 30),
            odd + u[3] * (8.f / 15) - u[4] * (1.f / 15),
            even + u[3] * (4.f / 15) + u[4] * (2.f / 15) + u[5] * .5f};
}

// Aᵀ: to four values of y
template <class T>
std::array<T, 4> to_output(const Line<T>& m) {
    const T even = m[1] + m[2], odd = m[1] - m[2];
    return {m[0] + even + m[3] + m[4], odd + .5f * m[3] - 2 * m[4], even + .25f * m[3] + 4 * m[4],
            odd + .125f * m[3] - 8 * m[4] + m[5]};
}

// A: four values of y's gradient
template <class T>
Line<T> of_output(T y0, T y1, T y2, T y3) {
    const T even = y0 + y2, odd = y1 + y3;
    return {y0, even + odd, even - odd, y0 + .5f * y1 + .25f * y2 + .125f * y3, y0 - 2 * y1 + 4 * y2 - 8 * y3,
            y3};
}

// ---- patches

// Patches of a batch in the order sample, row, column.
struct Patches {
    explicit Patches(const Conv3x3Shape& s)
        : shape(s),
          out_height(s.height + 2 * s.padding - 2),
          out_width(s.width + 2 * s.padding - 2),
          down((out_height + kOut - 1) / kOut),
          across((out_width + kOut - 1) / kOut),
          count(s.batch * down * across) {}

    struct Place {
        int64_t sample, row, column;  // of the patch's first pixel in the result
    };
    Place place(int64_t patch) const {
        const int64_t within = patch % (down * across);
        return {patch / (down * across), within / across * kOut, within % across * kOut};
    }

    const Conv3x3Shape& shape;
    int64_t out_height, out_width, down, across, count;
};

// Addresses of the `side`² pixels from (row, column) on of a picture; `zeros` for those outside.
template <int64_t side, class T>
void pixels_of(const T* picture, int64_t height, int64_t width, int64_t channels, int64_t row, int64_t column,
               const T* zeros, const T** pixels) {
    for (int64_t i = 0; i < side; ++i)
        for (int64_t j = 0; j < side; ++j) {
            const int64_t y = row + i, x = column + j;
            const bool inside = y >= 0 && y < height && x >= 0 && x < width;
            pixels[i * side + j] = inside ? picture + (y * width + x) * channels : zeros;
        }
}

// Bᵀ d B of one patch of x, for each channel. Point p of channel c goes to result[p * point + offset(c)].
template <class T, class Offset>
void transform_input(const Patches& patches, const T* x, int64_t patch, const T* zeros, float* result,
                     int64_t point, Offset offset) {
    const Conv3x3Shape& s = patches.shape;
    const auto [sample, row, column] = patches.place(patch);
    const T* pixels[kPoints];
    pixels_of<kIn>(x + sample * s.height * s.width * s.in_channels, s.height, s.width, s.in_channels,
                   row - s.padding, column - s.padding, zeros, pixels);
    for (int64_t c = 0; c < s.in_channels; c += 8) {
        Line<Eight> columns[kIn];
        for (int64_t j = 0; j < kIn; ++j) {
            Line<Eight> d;
            for (int64_t i = 0; i < kIn; ++i) d[i] = load_eight(pixels[i * kIn + j] + c);
            columns[j] = of_input(d);
        }
        float* const to = result + offset(c);
        for (int64_t i = 0; i < kIn; ++i) {
            Line<Eight> d;
            for (int64_t j = 0; j < kIn; ++j) d[j] = columns[j][i];
            const Line<Eight> v = of_input(d);
            for (int64_t j = 0; j < kIn; ++j) store(to + (i * kIn + j) * point, v[j]);
        }
    }
}

// A dy Aᵀ of one patch of y's gradient, likewise.
template <class T, class Offset>
void transform_gradient(const Patches& patches, const T* grad_y, int64_t patch, const T* zeros, float* result,
                        int64_t point, Offset offset) {
    const int64_t channels = patches.shape.out_channels;
    const auto [sample, row, column] = patches.place(patch);
    const T* pixels[kOut * kOut];
    pixels_of<kOut>(grad_y + sample * patches.out_height * patches.out_width * channels, patches.out_height,
                    patches.out_width, channels, row, column, zeros, pixels);
    for (int64_t k = 0; k < channels; k += 8) {
        Line<Eight> columns[kOut];
        for (int64_t j = 0; j < kOut; ++j) {
            std::array<Eight, kOut> d;
            for (int64_t i = 0; i < kOut; ++i) d[i] = load_eight(pixels[i * kOut + j] + k);
            columns[j] = of_output(d[0], d[1], d[2], d[3]);
        }
        float* const to = result + offset(k);
        for (int64_t i = 0; i < kIn; ++i) {
            const Line<Eight> v = of_output(columns[0][i], columns[1][i], columns[2][i], columns[3][i]);
            for (int64_t j = 0; j < kIn; ++j) store(to + (i * kIn + j) * point, v[j]);
        }
    }
}

// Aᵀ m A of one patch, plus the bias: the patch of y. Point p of the patch is at m[p * point].
template <class T>
void transform_output(const Patches& patches, const float* m, int64_t point, int64_t patch, const float* bias,
                      T* y) {
    const int64_t channels = patches.shape.out_channels;
    const auto [sample, row, column] = patches.place(patch);
    const int64_t rows = std::min(kOut, patches.out_height - row);
    const int64_t across = std::min(kOut, patches.out_width - column);
    T* const first = y + ((sample * patches.out_height + row) * patches.out_width + column) * channels;
    for (int64_t k = 0; k < channels; k += 8) {
        std::array<Eight, kOut> columns[kIn];
        for (int64_t j = 0; j < kIn; ++j) {
            Line<Eight> d;
            for (int64_t i = 0; i < kIn; ++i) d[i] = load<Eight>(m + (i * kIn + j) * point + k);
            columns[j] = to_output(d);
        }
        const Eight offset = bias ? load<Eight>(bias + k) : Eight{};
        for (int64_t i = 0; i < rows; ++i) {
            Line<Eight> d;
            for (int64_t j = 0; j < kIn; ++j) d[j] = columns[j][i];
            const std::array<Eight, kOut> values = to_output(d);
            for (int64_t j = 0; j < across; ++j)
                store_eight(first + (i * patches.out_width + j) * channels + k, values[j] + offset);
        }
    }
}

// ---- products

// `rows` × kPanel sums over `terms`: sum[r][k] = Σ left[r * left_row + t * left_term] right[t * kPanel + k].
template <int rows>
void multiply(int64_t terms, const float* left, int64_t left_row, int64_t left_term, const float* right,
              float* sum, int64_t sum_row, bool add) {
    Vector total[rows][kVectors] = {};
    for (int64_t t = 0; t < terms; ++t) {
        Vector r[kVectors];
        for (int64_t v = 0; v < kVectors; ++v) r[v] = load<Vector>(right + t * kPanel + v * kWidth);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t v = 0; v < kVectors; ++v) total[i][v] += left[i * left_row + t * left_term] * r[v];
    }
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t v = 0; v < kVectors; ++v) {
            float* const to = sum + i * sum_row + v * kWidth;
            store(to, add ? load<Vector>(to) + total[i][v] : total[i][v]);
        }
}

// The same for 1 to kRows rows.
void multiply_rows(int64_t rows, int64_t terms, const float* left, int64_t left_row, int64_t left_term,
                   const float* right, float* sum, int64_t sum_row, bool add) {
    static constexpr decltype(&multiply<1>) kernels[kRows] = {multiply<1>, multiply<2>, multiply<3>,
                                                              multiply<4>, multiply<5>, multiply<6>};
    kernels[rows - 1](terms, left, left_row, left_term, right, sum, sum_row, add);
}

// Patches a part when `count` are cut into equal parts of at most `limit`, as many as are whole rounds of the
// threads if that makes no part small; in whole kRows.
int64_t parts_of(int64_t count, int64_t limit, int64_t threads) {
    int64_t parts = (count + limit - 1) / limit;
    parts = (parts + threads - 1) / threads * threads;
    const int64_t size = (count + parts - 1) / parts;
    return (size + kRows - 1) / kRows * kRows;
}

// The same for parts that all threads work on, whose matrices have `channels` columns in all.
int64_t patches_together(int64_t count, int64_t channels, int64_t threads) {
    const int64_t limit = kSharedBytes / (kPoints * channels * int64_t{sizeof(float)});
    return parts_of(count, std::max(limit / kRows * kRows, kBlock), threads);
}

// G g Gᵀ of all taps, in panels: point p of (c, k) at [p][k / kPanel][c][k % kPanel], zero beyond the
// channels.
Buffer<float> transform_taps(const Conv3x3& a) {
    const int64_t in = a.shape.in_channels, out = a.shape.out_channels, padded = up_to_panel(out);
    Buffer<float> result(kPoints * in * padded);
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < padded; panel += kPanel)
        for (int64_t n = 0; n < 2 * in;
             ++n) {  // both halves of a channel's part of the panel: one cache line
            const int64_t c = n / 2, k = panel + n % 2 * 8;
            float* const to = &result[(k / kPanel * in + c) * kPanel + k % kPanel];
            Line<Eight> columns[3];
            for (int64_t j = 0; j < 3; ++j) {
                Eight g[3] = {};
                if (k < out)
                    for (int64_t i = 0; i < 3; ++i) {
                        const int64_t tap = i * 3 + j;
                        g[i] = load<Eight>(a.taps + ((a.flipped ? 8 - tap : tap) * in + c) * out + k);
                    }
                columns[j] = of_taps(g[0], g[1], g[2]);
            }
            for (int64_t i = 0; i < kIn; ++i) {
                const Line<Eight> u = of_taps(columns[0][i], columns[1][i], columns[2][i]);
                for (int64_t j = 0; j < kIn; ++j) store(to + (i * kIn + j) * in * padded, u[j]);
            }
        }
    return result;
}

template <class T>
void convolve(const Conv3x3& a) {
    const Patches patches(a.shape);
    const int64_t in = a.shape.in_channels, out = a.shape.out_channels, padded = up_to_panel(out);
    const Buffer<float> taps = transform_taps(a);
    const std::vector<T> zeros(in);
    const T* const x = static_cast<const T*>(a.x);
    T* const y = static_cast<T*>(a.y);
    const bool shared = kPoints * in * padded * int64_t{sizeof(float)} > kPrivateTaps;
    const int64_t threads = omp_get_max_threads();
    const int64_t size =
        shared ? patches_together(patches.count, in + padded, 1) : parts_of(patches.count, kBlock, threads);
    const int64_t part = kPoints * size * (in + padded);
    const Buffer<float> work((shared ? 1 : threads) * part);
    const int64_t parts = (patches.count + size - 1) / size;
    // Matrices of x, (points, size, in), and of y, (points, size, padded), of the patches from `first` on
    const auto input = [&](float* v, int64_t first, int64_t i) {
        transform_input(patches, x, first + i, zeros.data(), v + i * in, size * in,
                        [](int64_t c) { return c; });
    };
    const auto product = [&](const float* v, float* m, int64_t rows, int64_t p, int64_t k) {
        for (int64_t i = 0; i < rows; i += kRows)
            multiply_rows(std::min(kRows, rows - i), in, v + (p * size + i) * in, in, 1,
                          &taps[(p * padded + k) * in], m + (p * size + i) * padded + k, padded, false);
    };
    const auto output = [&](const float* m, int64_t first, int64_t i) {
        transform_output(patches, m + i * padded, size * padded, first + i, a.bias, y);
    };
    if (shared) {
        float *const v = work.get(), *const m = v + kPoints * size * in;
        for (int64_t first = 0; first < patches.count; first += size) {
            const int64_t rows = std::min(size, patches.count - first);
#pragma omp parallel
            {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < rows; ++i) input(v, first, i);
#pragma omp for schedule(static) collapse(2)
                for (int64_t p = 0; p < kPoints; ++p)
                    for (int64_t k = 0; k < padded; k += kPanel) product(v, m, rows, p, k);
#pragma omp for schedule(static)
                for (int64_t i = 0; i < rows; ++i) output(m, first, i);
            }
        }
        return;
    }
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < parts; ++n) {
        float* const v = &work[omp_get_thread_num() * part];
        float* const m = v + kPoints * size * in;
        const int64_t first = n * size, rows = std::min(size, patches.count - first);
        for (int64_t i = 0; i < rows; ++i) input(v, first, i);
        for (int64_t p = 0; p < kPoints; ++p)
            for (int64_t k = 0; k < padded; k += kPanel) product(v, m, rows, p, k);
        for (int64_t i = 0; i < rows; ++i) output(m, first, i);
    }
}

// The sum over patches is cut into chunks whose matrices stay in the cache; the 36 sums of products lie in
// memory and each belongs to one thread, so that the result does not depend on the number of threads.
template <class T>
void differentiate(const Conv3x3TapsGradient& a) {
    const Patches patches(a.shape);
    const int64_t in = a.shape.in_channels, out = a.shape.out_channels;
    const int64_t left_channels = up_to_panel(in), right_channels = up_to_panel(out);
    const int64_t chunk =
        std::min(patches_together(patches.count, left_channels + right_channels, 1), kLongestChunk);
    // (points, channels / kPanel, chunk, kPanel) both; beyond the channels `right` is zero and `left` is
    // never read
    const Buffer<float> left(kPoints * left_channels * chunk);
    const Buffer<float> right(kPoints * right_channels * chunk);
    const Buffer<float> sums(kPoints * left_channels * right_channels);
    const std::vector<T> zeros(std::max(in, out));
    const T *const x = static_cast<const T*>(a.x), *const grad_y = static_cast<const T*>(a.grad_y);
    if (out < right_channels) std::fill_n(right.get(), kPoints * right_channels * chunk, 0.f);
    for (int64_t first = 0; first < patches.count; first += chunk) {
        const int64_t terms = std::min(chunk, patches.count - first);
        const auto offset = [=](int64_t c) { return c / kPanel * chunk * kPanel + c % kPanel; };
#pragma omp parallel
        {
#pragma omp for schedule(static)
            for (int64_t t = 0; t < terms; ++t) {
                transform_input(patches, x, first + t, zeros.data(), &left[t * kPanel], left_channels * chunk,
                                offset);
                transform_gradient(patches, grad_y, first + t, zeros.data(), &right[t * kPanel],
                                   right_channels * chunk, offset);
            }
#pragma omp for schedule(static) collapse(2)
            for (int64_t p = 0; p < kPoints; ++p)
                for (int64_t c = 0; c < left_channels; c += kPanel) {
                    const int64_t channels = std::min(kPanel, in - c);
                    for (int64_t k = 0; k < right_channels; k += kPanel)
                        for (int64_t i = 0; i < channels; i += kRows)
                            multiply_rows(std::min(kRows, channels - i), terms,
                                          &left[(p * left_channels + c) * chunk + i], 1, kPanel,
                                          &right[(p * right_channels + k) * chunk],
                                          &sums[(p * left_channels + c + i) * right_channels + k],
                                          right_channels, first > 0);
                }
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < in; ++c)
        for (int64_t k = 0; k < out; k += 8) {
            const float* const from = &sums[c * right_channels + k];
            std::array<Eight, 3> columns[kIn];
            for (int64_t j = 0; j < kIn; ++j) {
                Line<Eight> u;
                for (int64_t i = 0; i < kIn; ++i)
                    u[i] = load<Eight>(from + (i * kIn + j) * left_channels * right_channels);
                columns[j] = to_taps(u);
            }
            for (int64_t i = 0; i < 3; ++i) {
                Line<Eight> u;
                for (int64_t j = 0; j < kIn; ++j) u[j] = columns[j][i];
                const std::array<Eight, 3> g = to_taps(u);
                for (int64_t j = 0; j < 3; ++j) store(a.grad_taps + ((i * 3 + j) * in + c) * out + k, g[j]);
            }
        }
}

}  // namespace

int conv3x3_lanes() {
#if defined(__FMA__)
    return kWidth;
#else
    return 1;
#endif
}

void conv3x3(const Conv3x3& a) {
    if (a.element == Element::bfloat16)
        convolve<BFloat16>(a);
    else
        convolve<float>(a);
}

void conv3x3_taps_gradient(const Conv3x3TapsGradient& a) {
    if (a.element == Element::bfloat16)
        differentiate<BFloat16>(a);
    else
        differentiate<float>(a);
}

}  // namespace dgnet_fast
