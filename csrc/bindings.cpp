// The one Python module of csrc/. Tensors arrive as addresses, the CUDA stream as an integer;
// dgnet_fast/ops/native.py and the ops' modules check and allocate before they call.
#include <omp.h>
#include <pybind11/pybind11.h>

#include "adain_act.h"
#include "malloc_thresholds.h"

namespace py = pybind11;
using namespace dgnet_fast;

namespace {

// (batch, channels, pixels, channels_last, element type)
using Layout = std::tuple<int64_t, int64_t, int64_t, bool, int>;

ImageShape shape_of(const Layout& layout) {
    return {std::get<0>(layout), std::get<1>(layout), std::get<2>(layout), std::get<3>(layout)};
}

Element element_of(const Layout& layout) {
    return static_cast<Element>(std::get<4>(layout));
}

AdainActForward forward_arguments(const Layout& layout, uintptr_t x, uintptr_t scale, uintptr_t shift,
                                  uintptr_t residual, uintptr_t y, uintptr_t mean, uintptr_t rstd,
                                  float slope, float eps) {
    return {shape_of(layout),
            element_of(layout),
            pointer<void>(x),
            pointer<float>(scale),
            pointer<float>(shift),
            pointer<void>(residual),
            pointer<void>(y),
            pointer<float>(mean),
            pointer<float>(rstd),
            slope,
            eps};
}

AdainActBackward backward_arguments(const Layout& layout, uintptr_t grad_y, uintptr_t x, uintptr_t scale,
                                    uintptr_t shift, uintptr_t mean, uintptr_t rstd, uintptr_t grad_x,
                                    uintptr_t grad_scale, uintptr_t grad_shift, float slope) {
    return {shape_of(layout),           element_of(layout),         pointer<void>(grad_y),
            pointer<void>(x),           pointer<float>(scale),      pointer<float>(shift),
            pointer<float>(mean),       pointer<float>(rstd),       pointer<void>(grad_x),
            pointer<float>(grad_scale), pointer<float>(grad_shift), slope};
}

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

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
#ifdef DGNET_FAST_WITH_NATIVE
    build["native"] = true;
#else
    build["native"] = false;
#endif
#ifdef DGNET_FAST_WITH_CUDA
    build["cuda"] = true;
#else
    build["cuda"] = false;
#endif
    m.attr("build") = build;

    m.def(
        "adain_act_forward",
        [](const Layout& layout, uintptr_t x, uintptr_t scale, uintptr_t shift, uintptr_t residual,
           uintptr_t y, uintptr_t mean, uintptr_t rstd, float slope, float eps) {
            adain_act_forward(
                forward_arguments(layout, x, scale, shift, residual, y, mean, rstd, slope, eps));
        },
        ReleaseGil());
    m.def(
        "adain_act_backward",
        [](const Layout& layout, uintptr_t grad_y, uintptr_t x, uintptr_t scale, uintptr_t shift,
           uintptr_t mean, uintptr_t rstd, uintptr_t grad_x, uintptr_t grad_scale, uintptr_t grad_shift,
           float slope) {
            adain_act_backward(backward_arguments(layout, grad_y, x, scale, shift, mean, rstd, grad_x,
                                                  grad_scale, grad_shift, slope));
        },
        ReleaseGil());

#ifdef DGNET_FAST_WITH_CUDA
    m.def("adain_act_workspace", [](const Layout& layout) { return adain_act_workspace(shape_of(layout)); });
    m.def(
        "adain_act_forward_cuda",
        [](const Layout& layout, uintptr_t x, uintptr_t scale, uintptr_t shift, uintptr_t residual,
           uintptr_t y, uintptr_t mean, uintptr_t rstd, float slope, float eps, uintptr_t workspace,
           int device, uintptr_t stream) {
            adain_act_forward_cuda(
                forward_arguments(layout, x, scale, shift, residual, y, mean, rstd, slope, eps),
                pointer<float>(workspace), device, pointer<void>(stream));
        },
        ReleaseGil());
    m.def(
        "adain_act_backward_cuda",
        [](const Layout& layout, uintptr_t grad_y, uintptr_t x, uintptr_t scale, uintptr_t shift,
           uintptr_t mean, uintptr_t rstd, uintptr_t grad_x, uintptr_t grad_scale, uintptr_t grad_shift,
           float slope, uintptr_t workspace, int device, uintptr_t stream) {
            adain_act_backward_cuda(backward_arguments(layout, grad_y, x, scale, shift, mean, rstd, grad_x,
                                                       grad_scale, grad_shift, slope),
                                    pointer<float>(workspace), device, pointer<void>(stream));
        },
        ReleaseGil());
#endif
}
