// __nv_bfloat16 for cuda_runtime.h of this folder.
#pragma once

#include "common.h"

struct __nv_bfloat16 {
    dgnet_fast::BFloat16 value;
};

inline float __bfloat162float(__nv_bfloat16 v) {
    return dgnet_fast::load(v.value);
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
    return {dgnet_fast::store<dgnet_fast::BFloat16>(v)};
}
