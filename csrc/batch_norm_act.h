// y = act((x - mean) / sqrt(var + eps) * weight + bias + residual), statistics per group of samples and
// channel; see dgnet_fast/ops/batch_norm_act.py for the definition.
//
// x, residual, y and their gradients are dense in the order of `shape` and hold `element`; weight, bias and
// their gradients are float32 (channels,), mean and var (groups, channels). The groups are equal consecutive
// slices of the batch. residual and grad_residual may be null. relu false is no activation.
#pragma once

#include "common.h"

namespace dgnet_fast {

struct BatchNormActForward {
    ImageShape shape;
    Element element;
    int64_t groups;
    const void* x;
    const float* weight;
    const float* bias;
    const void* residual;
    void* y;
    float* mean;
    float* var;
    bool relu;
    double eps;
};

struct BatchNormActBackward {
    ImageShape shape;
    Element element;
    int64_t groups;
    const void* grad_y;
    const void* y;  // read for the activation's sign alone
    const void* x;
    const float* weight;
    const float* mean;
    const float* var;
    void* grad_x;
    float* grad_weight;
    float* grad_bias;
    void* grad_residual;
    bool relu;
    double eps;
};

void batch_norm_act_forward(const BatchNormActForward& arguments);
void batch_norm_act_backward(const BatchNormActBackward& arguments);

#ifdef DGNET_FAST_WITH_CUDA
// `workspace`: float32, as many as batch_norm_act_workspace says; `stream` is a cudaStream_t. They only
// launch.
int64_t batch_norm_act_workspace(const ImageShape& shape, int64_t groups);
void batch_norm_act_forward_cuda(const BatchNormActForward& arguments, float* workspace, int device,
                                 void* stream);
void batch_norm_act_backward_cuda(const BatchNormActBackward& arguments, float* workspace, int device,
                                  void* stream);
#endif

}  // namespace dgnet_fast
