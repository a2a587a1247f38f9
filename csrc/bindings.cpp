// The one Python module of csrc/. Tensors arrive as addresses, the CUDA stream as an integer;
// the modules of dgnet_fast/ops check and allocate before they call. dgnet_fast/_C.pyi has the signatures.
#include <omp.h>
#include <pybind11/pybind11.h>

#include <array>
#include <tuple>

#include "act_pad.h"
#include "adain_act.h"
#include "batch_norm_act.h"
#include "conv3x3.h"
#include "conv3x3_amx.h"
#include "layer_norm_act.h"
#include "loss_l1.h"
#include "malloc_thresholds.h"

namespace py = pybind11;
using namespace dgnet_fast;

namespace {

// (batch, channels, height, width, padding of the result, channels_last, element type)
using Layout = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool, int>;

ImageShape shape_of(const Layout& layout) {
    const auto [batch, channels, height, width, padding, channels_last, element] = layout;
    return {batch,   channels,      height,         width,
            padding, channels_last, height * width, (height + 2 * padding) * (width + 2 * padding)};
}

Element element_of(const Layout& layout) {
    return static_cast<Element>(std::get<6>(layout));
}

ActPadForward act_pad_forward_arguments(const Layout& layout, uintptr_t x, uintptr_t sides, uintptr_t bias,
                                        uintptr_t y, float slope) {
    return {shape_of(layout),
            element_of(layout),
            pointer<void>(x),
            pointer<void>(sides),
            pointer<float>(bias),
            pointer<void>(y),
            slope};
}
constexpr std::array act_pad_forward_names{"layout", "x", "sides", "bias", "y", "slope"};

ActPadBackward act_pad_backward_arguments(const Layout& layout, uintptr_t grad_y, uintptr_t sides,
                                          uintptr_t grad_x, float slope) {
    return {shape_of(layout),     element_of(layout),    pointer<void>(grad_y),
            pointer<void>(sides), pointer<void>(grad_x), slope};
}
constexpr std::array act_pad_backward_names{"layout", "grad_y", "sides", "grad_x", "slope"};

AdainActForward adain_act_forward_arguments(const Layout& layout, uintptr_t x, uintptr_t scale,
                                            uintptr_t shift, uintptr_t residual,
                                            std::tuple<int64_t, int64_t, int64_t> residual_strides,
                                            uintptr_t y, uintptr_t mean, uintptr_t rstd, float slope,
                                            float eps) {
    const auto [sample, channel, row] = residual_strides;
    return {shape_of(layout),
            element_of(layout),
            pointer<void>(x),
            pointer<float>(scale),
            pointer<float>(shift),
            pointer<void>(residual),
            {sample, channel, row},
            pointer<void>(y),
            pointer<float>(mean),
            pointer<float>(rstd),
            slope,
            eps};
}
constexpr std::array adain_act_forward_names{
    "layout", "x", "scale", "shift", "residual", "residual_strides", "y", "mean", "rstd", "slope", "eps"};

AdainActBackward adain_act_backward_arguments(const Layout& layout, uintptr_t grad_y, uintptr_t x,
                                              uintptr_t scale, uintptr_t shift, uintptr_t mean,
                                              uintptr_t rstd, uintptr_t grad_x, uintptr_t grad_scale,
                                              uintptr_t grad_shift, uintptr_t grad_residual, float slope) {
    return {shape_of(layout),
            element_of(layout),
            pointer<void>(grad_y),
            pointer<void>(x),
            pointer<float>(scale),
            pointer<float>(shift),
            pointer<float>(mean),
            pointer<float>(rstd),
            pointer<void>(grad_x),
            pointer<float>(grad_scale),
            pointer<float>(grad_shift),
            pointer<void>(grad_residual),
            slope};
}
constexpr std::array adain_act_backward_names{"layout",        "grad_y", "x",      "scale",      "shift",
                                              "mean",          "rstd",   "grad_x", "grad_scale", "grad_shift",
                                              "grad_residual", "slope"};

BatchNormActForward batch_norm_act_forward_arguments(const Layout& layout, int64_t groups, uintptr_t x,
                                                     uintptr_t weight, uintptr_t bias, uintptr_t residual,
                                                     uintptr_t y, uintptr_t mean, uintptr_t var, bool relu,
                                                     double eps) {
    return {shape_of(layout),
            element_of(layout),
            groups,
            pointer<void>(x),
            pointer<float>(weight),
            pointer<float>(bias),
            pointer<void>(residual),
            pointer<void>(y),
            pointer<float>(mean),
            pointer<float>(var),
            relu,
            eps};
}
constexpr std::array batch_norm_act_forward_names{"layout", "groups", "x",   "weight", "bias", "residual",
                                                  "y",      "mean",   "var", "relu",   "eps"};

BatchNormActBackward batch_norm_act_backward_arguments(const Layout& layout, int64_t groups, uintptr_t grad_y,
                                                       uintptr_t y, uintptr_t x, uintptr_t weight,
                                                       uintptr_t mean, uintptr_t var, uintptr_t grad_x,
                                                       uintptr_t grad_weight, uintptr_t grad_bias,
                                                       uintptr_t grad_residual, bool relu, double eps) {
    return {shape_of(layout),
            element_of(layout),
            groups,
            pointer<void>(grad_y),
            pointer<void>(y),
            pointer<void>(x),
            pointer<float>(weight),
            pointer<float>(mean),
            pointer<float>(var),
            pointer<void>(grad_x),
            pointer<float>(grad_weight),
            pointer<float>(grad_bias),
            pointer<void>(grad_residual),
            relu,
            eps};
}
constexpr std::array batch_norm_act_backward_names{
    "layout",      "groups",    "grad_y",        "y",    "x",  "weight", "mean", "var", "grad_x",
    "grad_weight", "grad_bias", "grad_residual", "relu", "eps"};

LayerNormActForward layer_norm_act_forward_arguments(const Layout& layout, uintptr_t x, uintptr_t gamma,
                                                     uintptr_t beta, uintptr_t y, uintptr_t mean,
                                                     uintptr_t rdenom, float slope, double eps) {
    return {shape_of(layout),
            element_of(layout),
            pointer<void>(x),
            pointer<float>(gamma),
            pointer<float>(beta),
            pointer<void>(y),
            pointer<float>(mean),
            pointer<float>(rdenom),
            slope,
            eps};
}
constexpr std::array layer_norm_act_forward_names{"layout", "x",      "gamma", "beta", "y",
                                                  "mean",   "rdenom", "slope", "eps"};

LayerNormActBackward layer_norm_act_backward_arguments(const Layout& layout, uintptr_t grad_y, uintptr_t x,
                                                       uintptr_t gamma, uintptr_t beta, uintptr_t mean,
                                                       uintptr_t rdenom, uintptr_t grad_x,
                                                       uintptr_t grad_gamma, uintptr_t grad_beta, float slope,
                                                       double eps) {
    return {shape_of(layout),
            element_of(layout),
            pointer<void>(grad_y),
            pointer<void>(x),
            pointer<float>(gamma),
            pointer<float>(beta),
            pointer<float>(mean),
            pointer<float>(rdenom),
            pointer<void>(grad_x),
            pointer<float>(grad_gamma),
            pointer<float>(grad_beta),
            slope,
            eps};
}
constexpr std::array layer_norm_act_backward_names{"layout",     "grad_y",    "x",      "gamma",
                                                   "beta",       "mean",      "rdenom", "grad_x",
                                                   "grad_gamma", "grad_beta", "slope",  "eps"};

// (batch, in_channels, out_channels, height, width, padding, element type)
using Conv3x3Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int>;

Conv3x3Shape conv3x3_shape(const Conv3x3Sizes& sizes) {
    const auto [batch, in_channels, out_channels, height, width, padding, element] = sizes;
    return {batch, in_channels, out_channels, height, width, padding};
}

Conv3x3 conv3x3_arguments(const Conv3x3Sizes& sizes, uintptr_t x, uintptr_t taps, bool flipped,
                          uintptr_t bias, uintptr_t y) {
    return {conv3x3_shape(sizes),
            static_cast<Element>(std::get<6>(sizes)),
            pointer<void>(x),
            pointer<float>(taps),
            flipped,
            pointer<float>(bias),
            pointer<void>(y)};
}
constexpr std::array conv3x3_names{"sizes", "x", "taps", "flipped", "bias", "y"};

Conv3x3TapsGradient conv3x3_taps_gradient_arguments(const Conv3x3Sizes& sizes, uintptr_t x, uintptr_t grad_y,
                                                    uintptr_t grad_taps) {
    return {conv3x3_shape(sizes), static_cast<Element>(std::get<6>(sizes)), pointer<void>(x),
            pointer<void>(grad_y), pointer<float>(grad_taps)};
}
constexpr std::array conv3x3_taps_gradient_names{"sizes", "x", "grad_y", "grad_taps"};

Conv3x3WeightGradient conv3x3_weight_gradient_arguments(const Conv3x3Sizes& sizes, uintptr_t x,
                                                        uintptr_t grad_y, uintptr_t grad_weight) {
    return {conv3x3_shape(sizes), pointer<BFloat16>(x), pointer<BFloat16>(grad_y),
            pointer<BFloat16>(grad_weight)};
}
constexpr std::array conv3x3_weight_gradient_names{"sizes", "x", "grad_y", "grad_weight"};

// `sizes`: streams, elements of a stream, channels, pixels, Crossing, element types of prediction and target
LossL1Forward loss_l1_forward_arguments(
    const std::tuple<int64_t, int64_t, int64_t, int64_t, int, int, int>& sizes, uintptr_t prediction,
    uintptr_t target, uintptr_t means, uintptr_t signs) {
    const auto [streams, elements, channels, pixels, crossing, prediction_element, target_element] = sizes;
    return {streams,
            elements,
            channels,
            pixels,
            static_cast<Crossing>(crossing),
            static_cast<Element>(prediction_element),
            static_cast<Element>(target_element),
            pointer<void>(prediction),
            pointer<void>(target),
            pointer<float>(means),
            pointer<uint8_t>(signs)};
}
constexpr std::array loss_l1_forward_names{"sizes", "prediction", "target", "means", "signs"};

LossL1Backward loss_l1_backward_arguments(int64_t streams, int64_t elements, int element, uintptr_t grad,
                                          uintptr_t signs, uintptr_t grad_prediction) {
    return {streams,
            elements,
            static_cast<Element>(element),
            pointer<float>(grad),
            pointer<uint8_t>(signs),
            pointer<void>(grad_prediction)};
}
constexpr std::array loss_l1_backward_names{"streams", "elements", "element",
                                            "grad",    "signs",    "grad_prediction"};

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

// m.name(*, what `arguments` takes): builds the body's arguments and calls it. Every argument is passed by
// its name, for nothing else would tell one address from another.
template <class Body, class Structure, class... Given, size_t Count>
void define(py::module_& m, const char* name, Body* body, Structure (*arguments)(Given...),
            const std::array<const char*, Count>& names) {
    static_assert(Count == sizeof...(Given), "a name for every argument");
    const auto call = [=](Given... given) { body(arguments(given...)); };
    std::apply([&](auto... each) { m.def(name, call, py::kw_only(), py::arg(each)..., ReleaseGil()); },
               names);
}

#ifdef DGNET_FAST_WITH_CUDA
// The same, with the workspace's address, the device's index and the stream's address after what `arguments`
// takes.
template <class Body, class Structure, class... Given, size_t Count>
void define_cuda(py::module_& m, const char* name, Body* body, Structure (*arguments)(Given...),
                 const std::array<const char*, Count>& names) {
    static_assert(Count == sizeof...(Given), "a name for every argument");
    const auto call = [=](Given... given, uintptr_t workspace, int device, uintptr_t stream) {
        body(arguments(given...), pointer<float>(workspace), device, pointer<void>(stream));
    };
    std::apply(
        [&](auto... each) {
            m.def(name, call, py::kw_only(), py::arg(each)..., py::arg("workspace"), py::arg("device"),
                  py::arg("stream"), ReleaseGil());
        },
        names);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "C++ and CUDA bodies of dgnet_fast's ops: addresses in, nothing checked";

    m.def("keep_large_blocks", &keep_large_blocks,
          "Raise glibc malloc's thresholds; True if they were accepted.");
    m.def("openmp_threads", &omp_get_max_threads, "Threads that a C++ body called here would use.");

    py::dict build;
    build["cxx_compiler"] = DGNET_FAST_CXX_COMPILER;
    build["cuda_compiler"] = DGNET_FAST_CUDA_COMPILER;
    build["pybind11"] =
        PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
#ifdef DGNET_FAST_WITH_CUDA
    build["cuda"] = true;
#else
    build["cuda"] = false;
#endif
    m.attr("build") = build;

    define(m, "act_pad_forward", act_pad_forward, act_pad_forward_arguments, act_pad_forward_names);
    define(m, "act_pad_backward", act_pad_backward, act_pad_backward_arguments, act_pad_backward_names);
    define(m, "adain_act_forward", adain_act_forward, adain_act_forward_arguments, adain_act_forward_names);
    define(m, "adain_act_backward", adain_act_backward, adain_act_backward_arguments,
           adain_act_backward_names);
    define(m, "batch_norm_act_forward", batch_norm_act_forward, batch_norm_act_forward_arguments,
           batch_norm_act_forward_names);
    define(m, "batch_norm_act_backward", batch_norm_act_backward, batch_norm_act_backward_arguments,
           batch_norm_act_backward_names);
    m.def("conv3x3_lanes", &conv3x3_lanes, "Values that conv3x3 multiplies and adds in one instruction.");
    define(m, "conv3x3", conv3x3, conv3x3_arguments, conv3x3_names);
    define(m, "conv3x3_taps_gradient", conv3x3_taps_gradient, conv3x3_taps_gradient_arguments,
           conv3x3_taps_gradient_names);
    m.def("conv3x3_amx", &conv3x3_amx, "Whether conv3x3_weight_gradient, by AMX, may be called here.");
    define(m, "conv3x3_weight_gradient", conv3x3_weight_gradient, conv3x3_weight_gradient_arguments,
           conv3x3_weight_gradient_names);
    define(m, "layer_norm_act_forward", layer_norm_act_forward, layer_norm_act_forward_arguments,
           layer_norm_act_forward_names);
    define(m, "layer_norm_act_backward", layer_norm_act_backward, layer_norm_act_backward_arguments,
           layer_norm_act_backward_names);
    define(m, "loss_l1_forward", loss_l1_forward, loss_l1_forward_arguments, loss_l1_forward_names);
    define(m, "loss_l1_backward", loss_l1_backward, loss_l1_backward_arguments, loss_l1_backward_names);

#ifdef DGNET_FAST_WITH_CUDA
    m.def(
        "adain_act_workspace", [](const Layout& layout) { return adain_act_workspace(shape_of(layout)); },
        py::kw_only(), py::arg("layout"));
    define_cuda(m, "adain_act_forward_cuda", adain_act_forward_cuda, adain_act_forward_arguments,
                adain_act_forward_names);
    define_cuda(m, "adain_act_backward_cuda", adain_act_backward_cuda, adain_act_backward_arguments,
                adain_act_backward_names);
    m.def(
        "batch_norm_act_workspace",
        [](const Layout& layout, int64_t groups) {
            return batch_norm_act_workspace(shape_of(layout), groups);
        },
        py::kw_only(), py::arg("layout"), py::arg("groups"));
    define_cuda(m, "batch_norm_act_forward_cuda", batch_norm_act_forward_cuda,
                batch_norm_act_forward_arguments, batch_norm_act_forward_names);
    define_cuda(m, "batch_norm_act_backward_cuda", batch_norm_act_backward_cuda,
                batch_norm_act_backward_arguments, batch_norm_act_backward_names);
    m.def(
        "layer_norm_act_workspace",
        [](const Layout& layout) { return layer_norm_act_workspace(shape_of(layout)); }, py::kw_only(),
        py::arg("layout"));
    define_cuda(m, "layer_norm_act_forward_cuda", layer_norm_act_forward_cuda,
                layer_norm_act_forward_arguments, layer_norm_act_forward_names);
    define_cuda(m, "layer_norm_act_backward_cuda", layer_norm_act_backward_cuda,
                layer_norm_act_backward_arguments, layer_norm_act_backward_names);
#endif
}
