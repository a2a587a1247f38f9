// CPU bodies of act_pad. Rows of pictures go to the threads; a row's task also writes, or folds in, the rows
// of the border that show it. Memory bounds both: x in, y out, and grad_y and y in, grad_x out.
#include "act_pad.h"

#include <omp.h>

#include <memory>

#include "padding.h"

namespace dgnet_fast {

namespace {

// A batch as `count` pictures of pixels with `values` each: in NCHW every plane is a picture.
struct Pictures {
    int64_t count, values;

    explicit Pictures(const ImageShape& s)
        : count(s.channels_last ? s.batch : s.batch * s.channels), values(s.channels_last ? s.channels : 1) {}
};

template <class T, int64_t V>
PaddedPicture<T, V> padded(T* data, const ImageShape& s, const Pictures& pictures, int64_t picture) {
    return {data + picture * s.padded_pixels * pictures.values,
            s.height,
            s.width,
            s.padding,
            pictures.values,
            pictures.values};
}

// to[i] = value(i), times slope where side(i) is not positive.
template <class T, class Value, class Side>
void activate(T* to, int64_t count, float slope, Value value, Side side) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const float v = value(i);
        to[i] = store<T>(side(i) > 0 ? v : v * slope);
    }
}

// Calls use(value) with the function that gives the values from x on, of one pixel in channels_last or one
// plane.
template <class T, class Use>
void with_bias(const float* bias, const ImageShape& s, int64_t picture, const T* x, Use use) {
    if (!bias) {
        use([=](int64_t i) { return load(x[i]); });
    } else if (s.channels_last) {
        use([=](int64_t i) { return load(x[i]) + bias[i]; });
    } else {
        const float added = bias[picture % s.channels];
        use([=](int64_t i) { return load(x[i]) + added; });
    }
}

template <class T, int64_t V>
void forward(const ActPadForward& a) {
    const ImageShape& s = a.shape;
    const Pictures pictures(s);
    const int64_t length = s.width * pictures.values;
    // each value's bias is that of its place in the pixel, or in NCHW the plane's
    const int64_t run = a.bias && s.channels_last ? s.channels : length;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < pictures.count * s.height; ++task) {
        const int64_t picture = task / s.height, h = task % s.height;
        const auto y = padded<T, V>(static_cast<T*>(a.y), s, pictures, picture);
        const T* x = static_cast<const T*>(a.x) + task * length;
        const T* sides = a.sides
                             ? padded<const T, V>(static_cast<const T*>(a.sides), s, pictures, picture).row(h)
                             : nullptr;
        for (int64_t at = 0; at < length; at += run)
            with_bias(a.bias, s, picture, x + at, [&](auto value) {
                if (sides)
                    activate(y.row(h) + at, run, a.slope, value,
                             [=](int64_t i) { return load(sides[at + i]); });
                else
                    activate(y.row(h) + at, run, a.slope, value, value);
            });
        finish_row(y, h);
    }
}

template <class T, int64_t V>
void backward(const ActPadBackward& a) {
    const ImageShape& s = a.shape;
    const Pictures pictures(s);
    const int64_t length = s.width * pictures.values;
    const std::unique_ptr<float[]> scratch(new float[omp_get_max_threads() * length]);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < pictures.count * s.height; ++task) {
        const int64_t picture = task / s.height, h = task % s.height;
        float* folded = scratch.get() + omp_get_thread_num() * length;
        fold_row(padded<const T, V>(static_cast<const T*>(a.grad_y), s, pictures, picture), h, folded);
        T* grad_x = static_cast<T*>(a.grad_x) + task * length;
        const auto value = [=](int64_t i) { return folded[i]; };
        if (a.sides) {
            const T* sides = padded<const T, V>(static_cast<const T*>(a.sides), s, pictures, picture).row(h);
            activate(grad_x, length, a.slope, value, [=](int64_t i) { return load(sides[i]); });
        } else {
            for (int64_t i = 0; i < length; ++i) grad_x[i] = store<T>(folded[i]);
        }
    }
}

}  // namespace

void act_pad_forward(const ActPadForward& a) {
    dispatch(a.element, [&](auto zero) {
        using T = decltype(zero);
        a.shape.channels_last ? forward<T, 0>(a) : forward<T, 1>(a);
    });
}

void act_pad_backward(const ActPadBackward& a) {
    dispatch(a.element, [&](auto zero) {
        using T = decltype(zero);
        a.shape.channels_last ? backward<T, 0>(a) : backward<T, 1>(a);
    });
}

}  // namespace dgnet_fast
