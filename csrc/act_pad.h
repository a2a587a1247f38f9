// y = pad(act(x + bias)), LeakyReLU and reflect padding; see dgnet_fast/ops/act_pad.py for the definition.
//
// x, y and their gradients are dense in the order of `shape` and hold `element`, y and grad_y with the border
// of shape.padding. slope is that of LeakyReLU, 1 for no activation.
#pragma once

#include "common.h"

namespace dgnet_fast {

// With `sides`, a padded picture, it and not x says which branch of the LeakyReLU an element takes.
struct ActPadForward {
    ImageShape shape;
    Element element;
    const void* x;
    const void* sides;  // may be null
    const float* bias;  // of each channel; may be null
    void* y;
    float slope;
};

// `sides` as above: y of the forward pass; may be null if slope is 1.
struct ActPadBackward {
    ImageShape shape;
    Element element;
    const void* grad_y;
    const void* sides;
    void* grad_x;
    float slope;
};

void act_pad_forward(const ActPadForward& arguments);
void act_pad_backward(const ActPadBackward& arguments);

}  // namespace dgnet_fast
