// What bodies share: element types, their conversion to float, and the layout of an image batch.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace dgnet_fast {

// Element types as Python names them; keep in step with ELEMENT_TYPES in dgnet_fast/ops/native.py.
enum class Element : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// (batch, channels, pixels), dense in one of two orders.
struct ImageShape {
    int64_t batch;
    int64_t channels;
    int64_t pixels;      // height * width
    bool channels_last;  // memory order (batch, pixels, channels) instead of (batch, channels, pixels)
};

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

namespace detail {
inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
}  // namespace detail

// The conversions are integer arithmetic without branches, because compilers vectorise that where they do not
// vectorise calls of hardware conversions. Rounding is to nearest, ties to even; NaN stays NaN.

inline float load(float value) {
    return value;
}

inline float load(BFloat16 value) {
    return detail::as_float(static_cast<uint32_t>(value.bits) << 16);
}

inline float load(Float16 value) {
    const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    // The exponent is re-biased by a multiplication (exact, and right for subnormals too); infinity and NaN
    // get the float's top exponent.
    const uint32_t scaled = detail::as_bits(detail::as_float(magnitude) * 0x1p112f);
    const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    return detail::as_float(scaled | special | sign);
}

template <class T>
T store(float value);

template <>
inline float store<float>(float value) {
    return value;
}

template <>
inline BFloat16 store<BFloat16>(float value) {
    const uint32_t bits = detail::as_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}

template <>
inline Float16 store<Float16>(float value) {
    const uint32_t bits = detail::as_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Normal results: re-bias and round in integers. 0x38000000 is 112 << 23, the difference of the biases.
    const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal results: adding 0.5 lets the float adder round at half's smallest step, 2^-24.
    const uint32_t subnormal = detail::as_bits(detail::as_float(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // rounds to 65536 or more
    half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
    return {static_cast<uint16_t>(half | sign)};
}

// Calls function(T{}) with the C++ type of `element`.
template <class Function>
void dispatch(Element element, Function&& function) {
    switch (element) {
        case Element::float32:
            return function(float{});
        case Element::bfloat16:
            return function(BFloat16{});
        case Element::float16:
            return function(Float16{});
    }
    throw std::invalid_argument("unknown element type " + std::to_string(static_cast<int>(element)));
}

}  // namespace dgnet_fast
