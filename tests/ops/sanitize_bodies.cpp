// Calls every C++ body over odd sizes, layouts, paddings and element types; `make sanitize` builds it with
// AddressSanitizer and UndefinedBehaviorSanitizer. Every buffer is an allocation of its exact size, so that a
// value read or written beside one is reported. Results start as NaN, and none may stay so; they may not
// depend on the number of threads. The CUDA bodies run on the CPU (cuda_on_cpu/): their results may not
// depend on the order of threads, and are compared with those of C++.
#include <omp.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "act_pad.h"
#include "adain_act.h"
#include "batch_norm_act.h"
#include "conv3x3.h"
#include "cuda_on_cpu/cuda_runtime.h"
#include "layer_norm_act.h"
#include "loss_l1.h"

using namespace dgnet_fast;

// OpenMP keeps its threads until the process ends, which is no leak of ours.
extern "C" const char* __asan_default_options() {
    return "detect_leaks=0";
}

namespace {

using Bytes = std::vector<unsigned char>;

template <class T>
Bytes values(int64_t count, unsigned seed) {
    Bytes bytes(count * sizeof(T));
    for (int64_t i = 0; i < count; ++i) {
        seed = seed * 1664525u + 1013904223u;
        const T value = store<T>(static_cast<float>(seed >> 8) / (1 << 22) - 2.f);
        std::memcpy(&bytes[i * sizeof(T)], &value, sizeof value);
    }
    return bytes;
}

Bytes unwritten(int64_t count, size_t size) {
    return Bytes(count * size, 0xff);  // NaN in every element type
}

template <class T>
void check_written(const char* what, const Bytes& bytes, const ImageShape& s) {
    for (size_t i = 0; i < bytes.size(); i += sizeof(T)) {
        T value;
        std::memcpy(&value, &bytes[i], sizeof value);
        if (load(value) == load(value)) continue;
        std::printf("%s: value %zu is NaN for (%d, %d, %d, %d), padding %d, %s, element of %zu bytes\n", what,
                    i / sizeof(T), int(s.batch), int(s.channels), int(s.height), int(s.width), int(s.padding),
                    s.channels_last ? "channels_last" : "NCHW", sizeof(T));
        std::exit(1);
    }
}

// What a case computes: values of its element type, float32 values, anything else.
struct Results {
    std::vector<Bytes> pictures, sums, others = {};
    bool operator!=(const Results& that) const {
        return pictures != that.pictures || sums != that.sums || others != that.others;
    }
};

template <class T>
Results checked(const char* what, const ImageShape& s, const Results& results) {
    for (const Bytes& picture : results.pictures) check_written<T>(what, picture, s);
    for (const Bytes& sums : results.sums) check_written<float>(what, sums, s);
    return results;
}

float* floats(Bytes& bytes) {
    return reinterpret_cast<float*>(bytes.data());
}

// Whether the cases call the CUDA bodies.
bool on_cuda = false;

// Either body, the CUDA one with a workspace of its exact size.
template <class A>
void call(const A& a, void (*cpp)(const A&), void (*cuda)(const A&, float*, int, void*), int64_t workspace) {
    if (!on_cuda) return cpp(a);
    Bytes space = unwritten(workspace, 4);
    cuda_on_cpu::device = 1;  // the caller's, which a launch on another leaves as it was
    const int wanted = int(workspace % 3);
    cuda(a, floats(space), wanted, nullptr);
    if (cuda_on_cpu::launched != wanted || cuda_on_cpu::device != 1) {
        std::printf("a body for device %d ran on %d and left %d\n", wanted, cuda_on_cpu::launched,
                    cuda_on_cpu::device);
        std::exit(1);
    }
}

void forward(const AdainActForward& a) {
    call(a, adain_act_forward, adain_act_forward_cuda, adain_act_workspace(a.shape));
}
void backward(const AdainActBackward& a) {
    call(a, adain_act_backward, adain_act_backward_cuda, adain_act_workspace(a.shape));
}
void forward(const LayerNormActForward& a) {
    call(a, layer_norm_act_forward, layer_norm_act_forward_cuda, layer_norm_act_workspace(a.shape));
}
void backward(const LayerNormActBackward& a) {
    call(a, layer_norm_act_backward, layer_norm_act_backward_cuda, layer_norm_act_workspace(a.shape));
}
void forward(const BatchNormActForward& a) {
    call(a, batch_norm_act_forward, batch_norm_act_forward_cuda, batch_norm_act_workspace(a.shape, a.groups));
}
void backward(const BatchNormActBackward& a) {
    call(a, batch_norm_act_backward, batch_norm_act_backward_cuda,
         batch_norm_act_workspace(a.shape, a.groups));
}

// `within`: the residual lies within a padded buffer.
template <class T>
Results adain_act(Element element, const ImageShape& s, bool adaptive, bool residual, bool within) {
    const int64_t codes = s.batch * s.channels, elements = codes * s.pixels, padded = codes * s.padded_pixels;
    Bytes x = values<T>(elements, 1), scale = values<float>(codes, 2), shift = values<float>(codes, 3);
    const int64_t border = within ? 2 : 0, row = s.width + border, plane = (s.height + border) * row;
    // As a view's own storage would be: it starts at the picture's first value and ends at its last.
    const int64_t pixel = s.channels_last ? s.channels : 1;
    const Strides strides{s.channels * plane, s.channels_last ? 1 : plane, row * pixel};
    const int64_t extent = (s.batch - 1) * strides.sample + (s.channels - 1) * strides.channel +
                           (s.height - 1) * strides.row + (s.width - 1) * pixel + 1;
    Bytes added = values<T>(extent, 4), grad_y = values<T>(padded, 5);
    Bytes y = unwritten(padded, sizeof(T)), mean = unwritten(codes, 4), rstd = unwritten(codes, 4);
    Bytes grad_x = unwritten(elements, sizeof(T)), grad_scale = unwritten(codes, 4);
    Bytes grad_shift = unwritten(codes, 4);
    Bytes grad_residual = unwritten(residual && s.padding ? elements : 0, sizeof(T));
    const float *scales = adaptive ? floats(scale) : nullptr, *shifts = adaptive ? floats(shift) : nullptr;
    forward(AdainActForward{s, element, x.data(), scales, shifts, residual ? added.data() : nullptr, strides,
                            y.data(), floats(mean), floats(rstd), 0.2f, 1e-5f});
    backward(AdainActBackward{s, element, grad_y.data(), x.data(), scales, shifts, floats(mean), floats(rstd),
                              grad_x.data(), floats(grad_scale), floats(grad_shift),
                              grad_residual.empty() ? nullptr : grad_residual.data(), 0.2f});
    return checked<T>("adain_act", s, {{y, grad_x, grad_residual}, {mean, rstd, grad_scale, grad_shift}});
}

// `branching`: the slope is not 1; forward a second time with the result's sides, as second derivatives need
// it.
template <class T>
Results act_pad(Element element, const ImageShape& s, bool branching) {
    const int64_t elements = s.batch * s.channels * s.pixels, padded = s.batch * s.channels * s.padded_pixels;
    const float slope = branching ? 0.2f : 1.f;
    Bytes x = values<T>(elements, 1), grad_y = values<T>(padded, 5), cotangent = values<T>(elements, 6);
    Bytes y = unwritten(padded, sizeof(T)), again = unwritten(padded, sizeof(T));
    Bytes grad_x = unwritten(elements, sizeof(T));
    const void* sides = branching ? y.data() : nullptr;
    Bytes bias = values<float>(s.channels, 7);
    act_pad_forward({s, element, x.data(), nullptr, branching ? floats(bias) : nullptr, y.data(), slope});
    act_pad_backward({s, element, grad_y.data(), sides, grad_x.data(), slope});
    act_pad_forward({s, element, cotangent.data(), sides, nullptr, again.data(), slope});
    return checked<T>("act_pad", s, {{y, grad_x, again}, {}});
}

template <class T>
Results layer_norm_act(Element element, const ImageShape& s) {
    const int64_t elements = s.batch * s.channels * s.pixels, padded = s.batch * s.channels * s.padded_pixels;
    Bytes x = values<T>(elements, 1), gamma = values<float>(s.channels, 2),
          beta = values<float>(s.channels, 3);
    Bytes grad_y = values<T>(padded, 5), y = unwritten(padded, sizeof(T)),
          grad_x = unwritten(elements, sizeof(T));
    Bytes mean = unwritten(s.batch, 4), rdenom = unwritten(s.batch, 4);
    Bytes grad_gamma = unwritten(s.channels, 4), grad_beta = unwritten(s.channels, 4);
    forward(LayerNormActForward{s, element, x.data(), floats(gamma), floats(beta), y.data(), floats(mean),
                                floats(rdenom), 0.2f, 1e-5});
    backward(LayerNormActBackward{s, element, grad_y.data(), x.data(), floats(gamma), floats(beta),
                                  floats(mean), floats(rdenom), grad_x.data(), floats(grad_gamma),
                                  floats(grad_beta), 0.2f, 1e-5});
    return checked<T>("layer_norm_act", s, {{y, grad_x}, {mean, rdenom, grad_gamma, grad_beta}});
}

template <class T>
Results batch_norm_act(Element element, const ImageShape& s, int64_t groups, bool relu, bool residual) {
    const int64_t elements = s.batch * s.channels * s.pixels, codes = groups * s.channels;
    Bytes x = values<T>(elements, 1), weight = values<float>(s.channels, 2),
          bias = values<float>(s.channels, 3);
    Bytes added = values<T>(elements, 4), grad_y = values<T>(elements, 5), y = unwritten(elements, sizeof(T));
    Bytes grad_x = unwritten(elements, sizeof(T)),
          grad_residual = unwritten(residual ? elements : 0, sizeof(T));
    Bytes mean = unwritten(codes, 4), var = unwritten(codes, 4);
    Bytes grad_weight = unwritten(s.channels, 4), grad_bias = unwritten(s.channels, 4);
    forward(BatchNormActForward{s, element, groups, x.data(), floats(weight), floats(bias),
                                residual ? added.data() : nullptr, y.data(), floats(mean), floats(var), relu,
                                1e-5});
    backward(BatchNormActBackward{s, element, groups, grad_y.data(), y.data(), x.data(), floats(weight),
                                  floats(mean), floats(var), grad_x.data(), floats(grad_weight),
                                  floats(grad_bias), residual ? grad_residual.data() : nullptr, relu, 1e-5});
    return checked<T>("batch_norm_act", s, {{y, grad_x, grad_residual}, {mean, var, grad_weight, grad_bias}});
}

// A batch as one stream a sample; the target's element and order differ from the prediction's.
template <class P, class T>
Results loss_l1(Element element, Element target_element, const ImageShape& s, Crossing crossing) {
    const int64_t elements = s.channels * s.pixels, count = s.batch * elements;
    const int64_t blocks = (elements + kSignBlock - 1) / kSignBlock;
    Bytes x = values<P>(count, 1), target = values<T>(count, 2), grad = values<float>(s.batch, 3);
    Bytes means = unwritten(s.batch, 4), signs = unwritten(s.batch * blocks * kSignBytes, 1);
    Bytes grad_x = unwritten(count, sizeof(P));
    loss_l1_forward({s.batch, elements, s.channels, s.pixels, crossing, element, target_element, x.data(),
                     target.data(), floats(means), signs.data()});
    loss_l1_backward({s.batch, elements, element, floats(grad), signs.data(), grad_x.data()});
    for (unsigned char byte : signs)
        if (byte == 0xff) {  // both signs at once
            std::printf("loss_l1: signs of (%d, %d, %d, %d) are not written\n", int(s.batch), int(s.channels),
                        int(s.height), int(s.width));
            std::exit(1);
        }
    return checked<P>("loss_l1", s, {{grad_x}, {means}, {signs}});
}

template <class T>
Results convolution(Element element, const Conv3x3Shape& s) {
    const int64_t pixels = s.batch * s.height * s.width, kernel = 9 * s.in_channels * s.out_channels;
    const int64_t out_pixels = s.batch * (s.height + 2 * s.padding - 2) * (s.width + 2 * s.padding - 2);
    Bytes x = values<T>(pixels * s.in_channels, 1), taps = values<float>(kernel, 2);
    Bytes bias = values<float>(s.out_channels, 3), grad_y = values<T>(out_pixels * s.out_channels, 4);
    Bytes y = unwritten(out_pixels * s.out_channels, sizeof(T)), grad_taps = unwritten(kernel, 4);
    conv3x3({s, element, x.data(), floats(taps), false, floats(bias), y.data()});
    conv3x3_taps_gradient({s, element, x.data(), grad_y.data(), floats(grad_taps)});
    const ImageShape named{s.batch, s.in_channels, s.height, s.width, s.padding, true, 0, 0};
    return checked<T>("conv3x3", named, {{y}, {grad_taps}});
}

template <class Run>
void on_threads(int& cases, Run run) {
    omp_set_num_threads(1);
    const auto one = run();
    omp_set_num_threads(3);
    if (one != run()) {
        std::printf("case %d depends on the number of threads\n", cases);
        std::exit(1);
    }
    ++cases;
}

// The largest difference of two tensors, as a share of the largest value.
template <class T>
double difference(const Bytes& ours, const Bytes& expected) {
    double most = 0, largest = 1e-30;
    for (size_t i = 0; i < expected.size(); i += sizeof(T)) {
        T a, b;
        std::memcpy(&a, &ours[i], sizeof a);
        std::memcpy(&b, &expected[i], sizeof b);
        most = std::max(most, std::fabs(double(load(a)) - load(b)));
        largest = std::max(largest, std::fabs(double(load(b))));
    }
    return most / largest;
}

// The CUDA bodies of a case against the C++ ones: equal but for the order of sums and, in `T`, one rounding.
template <class T, class Run>
void on_cuda_as_in_cpp(int& cases, Run run) {
    const Results expected = run();
    on_cuda = true;
    const Results ours = run();
    cuda_on_cpu::backwards = true;
    if (std::is_same_v<T, float> && ours != run()) {  // other elements change nothing of the order
        std::printf("CUDA case %d depends on the order of threads\n", cases);
        std::exit(1);
    }
    on_cuda = cuda_on_cpu::backwards = false;
    const double epsilon = sizeof(T) == 4 ? 0 : std::is_same_v<T, BFloat16> ? 0x1p-8 : 0x1p-11;
    const auto compare = [&](const char* what, size_t i, double apart, double allowed) {
        if (apart <= allowed) return;
        std::printf("CUDA case %d: %s %zu is %.3g of its largest value from C++'s, allowed %.3g\n", cases,
                    what, i, apart, allowed);
        std::exit(1);
    };
    for (size_t i = 0; i < expected.pictures.size(); ++i)
        compare("picture", i, difference<T>(ours.pictures[i], expected.pictures[i]), 2e-6 + 2 * epsilon);
    for (size_t i = 0; i < expected.sums.size(); ++i)
        compare("sum", i, difference<float>(ours.sums[i], expected.sums[i]), 1e-5);
    ++cases;
}

struct Size {
    int64_t batch, channels, height, width;
};

ImageShape shape_of(const Size& size, int64_t padding, bool channels_last) {
    return {size.batch,
            size.channels,
            size.height,
            size.width,
            padding,
            channels_last,
            size.height * size.width,
            (size.height + 2 * padding) * (size.width + 2 * padding)};
}

int cuda_cases() {
    // Several slices of a plane and of a group, several blocks of channels, packs of 16 bytes, less than a
    // warp.
    const Size sizes[] = {{2, 5, 7, 3},  {1, 1, 1, 9},   {1, 33, 10, 12},
                          {3, 70, 5, 6}, {1, 2, 70, 64}, {4, 64, 16, 9}};
    int cases = 0;
    for (const Size& size : sizes)
        for (int64_t padding : {0, 1, 4})
            for (bool channels_last : {false, true})
                for (Element element : {Element::float32, Element::bfloat16, Element::float16}) {
                    if (padding >= size.height || padding >= size.width) continue;
                    if (element == Element::float16 && padding) continue;  // as bfloat16 but for conversions
                    const ImageShape shape = shape_of(size, padding, channels_last);
                    dispatch(element, [&](auto zero) {
                        using T = decltype(zero);
                        const auto compare = [&](auto run) { on_cuda_as_in_cpp<T>(cases, run); };
                        compare([&] { return adain_act<T>(element, shape, true, true, padding == 1); });
                        compare([&] { return layer_norm_act<T>(element, shape); });
                        if (padding) return;
                        compare([&] { return adain_act<T>(element, shape, false, false, false); });
                        compare([&] { return batch_norm_act<T>(element, shape, 1, true, true); });
                        compare([&] { return batch_norm_act<T>(element, shape, size.batch, false, false); });
                    });
                }
    return cases;
}

}  // namespace

int main() {
    const Size sizes[] = {{2, 5, 7, 3},    {1, 33, 10, 12}, {1, 1, 1, 9},   {3, 70, 5, 6},  {1, 32, 20, 70},
                          {2, 64, 11, 10}, {2, 3, 2, 2},    {1, 2, 40, 61}, {1, 3, 67, 13}, {2, 31, 10, 65}};
    int cases = 0;
    for (const Size& size : sizes)
        for (int64_t padding : {0, 1, 2, 3, 6, 9})
            for (bool channels_last : {false, true})
                for (Element element : {Element::float32, Element::bfloat16, Element::float16}) {
                    if (padding >= size.height || padding >= size.width) continue;
                    const ImageShape shape = shape_of(size, padding, channels_last);
                    dispatch(element, [&](auto zero) {
                        using T = decltype(zero);
                        for (bool branching : {false, true})
                            on_threads(cases, [&] { return act_pad<T>(element, shape, branching); });
                        on_threads(cases, [&] { return adain_act<T>(element, shape, true, true, false); });
                        on_threads(cases, [&] { return adain_act<T>(element, shape, true, true, true); });
                        on_threads(cases, [&] { return adain_act<T>(element, shape, false, false, false); });
                        on_threads(cases, [&] { return layer_norm_act<T>(element, shape); });
                        if (padding) return;
                        if (!channels_last)
                            for (int crossing : {0, 1, 2})
                                on_threads(cases, [&] {
                                    return loss_l1<T, BFloat16>(element, Element::bfloat16, shape,
                                                                static_cast<Crossing>(crossing));
                                });
                        const int64_t groups = size.batch;
                        on_threads(cases, [&] { return batch_norm_act<T>(element, shape, 1, true, true); });
                        on_threads(cases,
                                   [&] { return batch_norm_act<T>(element, shape, groups, false, false); });
                    });
                }
    const Conv3x3Shape convolutions[] = {{2, 16, 24, 9, 7, 0},   {1, 8, 8, 3, 3, 0},  {2, 40, 16, 1, 1, 1},
                                         {3, 32, 32, 16, 8, 1},  {2, 8, 16, 5, 6, 2}, {1, 24, 56, 33, 9, 1},
                                         {1, 256, 264, 5, 3, 1}, {4, 8, 8, 40, 30, 1}};
    for (const Conv3x3Shape& shape : convolutions) {
        on_threads(cases, [&] { return convolution<float>(Element::float32, shape); });
        on_threads(cases, [&] { return convolution<BFloat16>(Element::bfloat16, shape); });
    }
    std::printf("%d cases of the C++ bodies clean\n", cases);
    std::printf("%d cases of the CUDA bodies clean\n", cuda_cases());
}
