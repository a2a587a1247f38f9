// __half for cuda_runtime.h of this folder.
#pragma once

#include "common.h"

struct __half {
    dgnet_fast::Float16 value;
};

inline float __half2float(__half v) {
    return dgnet_fast::load(v.value);
}
inline __half __float2half_rn(float v) {
    return {dgnet_fast::store<dgnet_fast::Float16>(v)};
}
