// 3×3 convolution of stride 1 by Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray 2015, arXiv
// 1509.09308): a 4×4 patch of the result costs 36 multiplications where the direct form takes 144. All
// arithmetic is in float32; pictures hold `element`, float32 or bfloat16, and taps and bias float32.
//
// Pictures are dense in (batch, height, width, channels) order. `taps` is (3, 3, in_channels, out_channels).
// Both channel counts are multiples of 8.
#pragma once

#include "common.h"

namespace dgnet_fast {

// Values that this build multiplies and adds in one instruction; below 8 the direct form is faster.
int conv3x3_lanes();

struct Conv3x3Shape {
    int64_t batch;
    int64_t in_channels;
    int64_t out_channels;
    int64_t height;   // of x
    int64_t width;    // of x
    int64_t padding;  // zeros around x, 0, 1 or 2; the result is (height + 2 * padding - 2) × ...
};

struct Conv3x3 {
    Conv3x3Shape shape;
    Element element;
    const void* x;
    const float* taps;
    bool flipped;       // the taps are those of the forward, turned by 180°: the gradient to its x
    const float* bias;  // (out_channels,) or null
    void* y;
};

struct Conv3x3TapsGradient {
    Conv3x3Shape shape;
    Element element;
    const void* x;
    const void* grad_y;
    float* grad_taps;  // (3, 3, in_channels, out_channels)
};

void conv3x3(const Conv3x3& arguments);
void conv3x3_taps_gradient(const Conv3x3TapsGradient& arguments);

}  // namespace dgnet_fast
