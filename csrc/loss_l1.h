// Mean of |prediction - target| per stream and the signs of the differences; see dgnet_fast/ops/loss_l1.py
// for the definition and the arrangement of the signs.
//
// prediction and its gradient are dense, (streams, elements) in their own order. target is dense in that
// order, or, where a `Crossing` says so, in the other one of pictures: there a stream is so many pictures of
// (channels, pixels) or (pixels, channels). `means` is float32 (streams,).
#pragma once

#include "common.h"

namespace dgnet_fast {

constexpr int64_t kSignBlock = 1024;            // values whose signs are stored together
constexpr int64_t kSignBytes = kSignBlock / 4;  // two bits each

enum class Crossing : int { none = 0, target_planes = 1, target_pixels = 2 };

struct LossL1Forward {
    int64_t streams;
    int64_t elements;  // of a stream
    int64_t channels;
    int64_t pixels;
    Crossing crossing;
    Element prediction_element;
    Element target_element;
    const void* prediction;
    const void* target;
    float* means;
    uint8_t* signs;
};

struct LossL1Backward {
    int64_t streams;
    int64_t elements;
    Element element;
    const float* grad;  // (streams,), of the means
    const uint8_t* signs;
    void* grad_prediction;
};

void loss_l1_forward(const LossL1Forward& arguments);
void loss_l1_backward(const LossL1Backward& arguments);

}  // namespace dgnet_fast
