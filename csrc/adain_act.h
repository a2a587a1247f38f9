// y = act(scale * (x - mean) * rstd + shift) + residual; see dgnet_fast/ops/adain_act.py for the definition.
//
// x, residual, y and their gradients are dense in the order of `shape` and hold `element`; scale, shift,
// mean, rstd and the gradients of scale and shift are float32 (batch, channels). residual may be null; scale
// and shift may be null together, then they are one and zero. slope is that of LeakyReLU, 1 for no
// activation.
#pragma once

#include "common.h"

namespace dgnet_fast {

struct AdainActForward {
    ImageShape shape;
    Element element;
    const void* x;
    const float* scale;
    const float* shift;
    const void* residual;
    void* y;
    float* mean;
    float* rstd;
    float slope;
    float eps;
};

struct AdainActBackward {
    ImageShape shape;
    Element element;
    const void* grad_y;
    const void* x;
    const float* scale;
    const float* shift;
    const float* mean;
    const float* rstd;
    void* grad_x;
    float* grad_scale;
    float* grad_shift;
    float slope;
};

void adain_act_forward(const AdainActForward& arguments);
void adain_act_backward(const AdainActBackward& arguments);

#ifdef DGNET_FAST_WITH_CUDA
// `workspace`: float32, as many as adain_act_workspace says; `stream` is a cudaStream_t. They only launch.
int64_t adain_act_workspace(const ImageShape& shape);
void adain_act_forward_cuda(const AdainActForward& arguments, float* workspace, int device, void* stream);
void adain_act_backward_cuda(const AdainActBackward& arguments, float* workspace, int device, void* stream);
#endif

}  // namespace dgnet_fast
