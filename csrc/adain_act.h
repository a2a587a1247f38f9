// y = pad(act(scale * (x - mean) * rstd + shift) + residual); see dgnet_fast/ops/adain_act.py for the
// definition.
//
// x, y and their gradients are dense in the order of `shape` and hold `element`, y and grad_y with the border
// of shape.padding; scale, shift, mean, rstd and the gradients of scale and shift are float32 (batch,
// channels). residual may be null, and has strides of its own; grad_residual is null where it is not wanted.
// scale and shift may be null together, then they are one and zero. slope is that of LeakyReLU, 1 for no
// activation.
#pragma once

#include "common.h"

namespace dgnet_fast {

// Elements between neighbours. Along W it is 1 in NCHW and `channels` in channels_last.
struct Strides {
    int64_t sample;
    int64_t channel;  // 1 in channels_last
    int64_t row;
};

struct AdainActForward {
    ImageShape shape;
    Element element;
    const void* x;
    const float* scale;
    const float* shift;
    const void* residual;
    Strides residual_strides;
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
    void* grad_residual;
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
