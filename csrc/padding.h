// Reflect padding on the CPU: rows of a padded picture, filling of its border, and the adjoint of that.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace dgnet_fast {

// A picture within a padded buffer. A pixel has V neighbouring values (`given_values` where V is 0) and
// pixels are `pixel` elements apart: V and pixel are 1 for an NCHW plane; a block of channels in
// channels_last has V channels out of `pixel`. `data` is the buffer's first value, border included.
template <class T, int64_t V>
struct PaddedPicture {
    T* data;
    int64_t height, width, padding;
    int64_t pixel, given_values;

    int64_t values() const { return V ? V : given_values; }

    // First pixel of row h without its border; rows -padding to height + padding - 1 exist.
    T* row(int64_t h) const { return data + ((h + padding) * (width + 2 * padding) + padding) * pixel; }

    // The rows outside the picture that show row h; each is -h or beyond height - 1, and absent if not so.
    bool shown_above(int64_t h) const { return h >= 1 && h <= padding; }
    int64_t above(int64_t h) const { return -h; }
    bool shown_below(int64_t h) const { return h <= height - 2 && h >= height - 1 - padding; }
    int64_t below(int64_t h) const { return 2 * (height - 1) - h; }
};

namespace detail {

template <class T, int64_t V>
void copy_pixels(const PaddedPicture<T, V>& picture, T* to, const T* from, int64_t count) {
    if (picture.values() == picture.pixel) {
        std::memcpy(to, from, count * picture.pixel * sizeof(T));
        return;
    }
    for (int64_t i = 0; i < count; ++i)
        std::memcpy(to + i * picture.pixel, from + i * picture.pixel, picture.values() * sizeof(T));
}

// out (+)= the picture's values of one row, its border folded in.
template <bool Add, class T, int64_t V>
void fold_columns(const PaddedPicture<const T, V>& picture, const T* row, float* out) {
    const int64_t values = picture.values(), last = picture.width - 1;
    if constexpr (V == 1) {
#pragma omp simd
        for (int64_t w = 0; w <= last; ++w) out[w] = (Add ? out[w] : 0.f) + load(row[w]);
    } else {
        for (int64_t w = 0; w <= last; ++w) {
#pragma omp simd
            for (int64_t c = 0; c < values; ++c)
                out[w * values + c] = (Add ? out[w * values + c] : 0.f) + load(row[w * picture.pixel + c]);
        }
    }
    for (int64_t j = 1; j <= picture.padding; ++j) {
        const T* left = row - j * picture.pixel;
        const T* right = row + (last + j) * picture.pixel;
        for (int64_t c = 0; c < values; ++c) out[j * values + c] += load(left[c]);
        for (int64_t c = 0; c < values; ++c) out[(last - j) * values + c] += load(right[c]);
    }
}

}  // namespace detail

// Fills the border on both sides of row h, once the row is written, and the rows outside that show it.
template <class T, int64_t V>
void finish_row(const PaddedPicture<T, V>& picture, int64_t h) {
    if (picture.padding == 0) return;
    T* row = picture.row(h);
    const int64_t last = picture.width - 1;
    for (int64_t j = 1; j <= picture.padding; ++j) {
        detail::copy_pixels(picture, row - j * picture.pixel, row + j * picture.pixel, 1);
        detail::copy_pixels(picture, row + (last + j) * picture.pixel, row + (last - j) * picture.pixel, 1);
    }
    const int64_t before = picture.padding * picture.pixel, count = picture.width + 2 * picture.padding;
    if (picture.shown_above(h))
        detail::copy_pixels(picture, picture.row(picture.above(h)) - before, row - before, count);
    if (picture.shown_below(h))
        detail::copy_pixels(picture, picture.row(picture.below(h)) - before, row - before, count);
}

// Row h of the gradient without padding, from one with: `out` takes width * values floats.
template <class T, int64_t V>
void fold_row(const PaddedPicture<const T, V>& picture, int64_t h, float* out) {
    detail::fold_columns<false>(picture, picture.row(h), out);
    if (picture.shown_above(h)) detail::fold_columns<true>(picture, picture.row(picture.above(h)), out);
    if (picture.shown_below(h)) detail::fold_columns<true>(picture, picture.row(picture.below(h)), out);
}

// ---- rows of a gradient as the backward loops read them: `row(h)` has pixels `stride` apart.

// Without padding; `width` may span the whole picture as one row.
template <class T, int64_t V>
struct PlainRows {
    const T* data;
    int64_t width, stride;
    const T* row(int64_t h) const { return data + h * width * stride; }
};

// With padding: folded into `scratch` (width * values floats) row by row.
template <class T, int64_t V>
struct FoldedRows {
    PaddedPicture<const T, V> picture;
    float* scratch;
    int64_t stride;
    const float* row(int64_t h) const {
        fold_row(picture, h, scratch);
        return scratch;
    }
};

}  // namespace dgnet_fast
