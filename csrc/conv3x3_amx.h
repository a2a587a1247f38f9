// The gradient of a 3×3 convolution's weight in bfloat16 by AMX, the matrix unit of Intel's server CPUs since
// 2023: a product of 16 × 32 and 32 × 16 bfloat16 values an instruction, summed in float32.
//
// Pictures are dense in (batch, height, width, channels) order, the weight's gradient is (out_channels, 3, 3,
// in_channels). Both channel counts are multiples of 32, padding is at most 2.
#pragma once

#include "conv3x3.h"

namespace dgnet_fast {

// Whether this build has the body, this CPU the instructions, and the system lets this process use them: it
// is asked at the first call, as Linux demands. Nothing below may be called otherwise.
bool conv3x3_amx();

struct Conv3x3WeightGradient {
    Conv3x3Shape shape;
    const BFloat16* x;
    const BFloat16* grad_y;
    BFloat16* grad_weight;
};

void conv3x3_weight_gradient(const Conv3x3WeightGradient& arguments);

}  // namespace dgnet_fast
