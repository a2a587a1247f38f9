// Vectors of floats that are read and written at any address, and eight values of a picture as one of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace dgnet_fast {

// Reading and writing at any address
template <class V>
inline V load(const float* p) {
    V values;
    std::memcpy(&values, p, sizeof values);
    return values;
}
template <class V>
inline void store(float* p, V values) {
    std::memcpy(p, &values, sizeof values);
}

typedef float Eight __attribute__((vector_size(32)));

// Eight values of a picture, as floats and back: bfloat16 is the upper half of a float, and rounding is to
// nearest, ties to even. A value that is not finite stays so.
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(32)));

inline Eight load_eight(const float* p) {
    return load<Eight>(p);
}
inline Eight load_eight(const BFloat16* p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    return (Eight)(__builtin_convertvector(halves, Bits) << 16);
}
inline void store_eight(float* p, Eight values) {
    store(p, values);
}
inline void store_eight(BFloat16* p, Eight values) {
    const Bits bits = (Bits)values, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Bits is_nan = (Bits)(values != values);
    const Halves halves = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0u & is_nan), Halves);
    std::memcpy(p, &halves, sizeof halves);
}

}  // namespace dgnet_fast
