// y = pad(act((x - mean) * rdenom * gamma + beta)), rdenom = 1 / (std + eps), statistics of a whole sample;
// see dgnet_fast/ops/layer_norm_act.py for the definition.
//
// x, y and their gradients are dense in the order of `shape` and hold `element`, y and grad_y with the border
// of shape.padding; gamma, beta and their gradients are float32 (channels,), mean and rdenom (batch,). slope
// is that of LeakyReLU, 1 for no activation.
#pragma once

#include "common.h"

namespace dgnet_fast {

struct LayerNormActForward {
    ImageShape shape;
    Element element;
    const void* x;
    const float* gamma;
    const float* beta;
    void* y;
    float* mean;
    float* rdenom;
    float slope;
    double eps;
};

struct LayerNormActBackward {
    ImageShape shape;
    Element element;
    const void* grad_y;
    const void* x;
    const float* gamma;
    const float* beta;
    const float* mean;
    const float* rdenom;
    void* grad_x;
    float* grad_gamma;
    float* grad_beta;
    float slope;
    double eps;
};

void layer_norm_act_forward(const LayerNormActForward& arguments);
void layer_norm_act_backward(const LayerNormActBackward& arguments);

#ifdef DGNET_FAST_WITH_CUDA
// `workspace`: float32, as many as layer_norm_act_workspace says; `stream` is a cudaStream_t. They only
// launch.
int64_t layer_norm_act_workspace(const ImageShape& shape);
void layer_norm_act_forward_cuda(const LayerNormActForward& arguments, float* workspace, int device,
                                 void* stream);
void layer_norm_act_backward_cuda(const LayerNormActBackward& arguments, float* workspace, int device,
                                  void* stream);
#endif

}  // namespace dgnet_fast
