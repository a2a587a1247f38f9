// What bodies share: element types, their conversion to float, sums, and the layout of an image batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace dgnet_fast {

// Element types as Python names them; keep in step with ELEMENT_TYPES in dgnet_fast/ops/launch.py.
enum class Element : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// (batch, channels, height, width), dense in one of two orders; `padding` is that of the result alone.
struct ImageShape {
    int64_t batch;
    int64_t channels;
    int64_t height;
    int64_t width;
    int64_t padding;
    bool channels_last;     // memory order (batch, height, width, channels)
    int64_t pixels;         // height * width
    int64_t padded_pixels;  // the same of the padded picture
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
// By a mask: of the ?: operator the compiler may make a branch, and then does not vectorise (4 ns a value,
// not 1).
inline uint32_t select(bool condition, uint32_t yes, uint32_t no) {
    const uint32_t mask = 0u - static_cast<uint32_t>(condition);
    return (yes & mask) | (no & ~mask);
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
    uint32_t half = detail::select(magnitude < 0x38800000u, subnormal, normal);
    half = detail::select(magnitude >= 0x477ff000u, 0x7c00u, half);  // rounds to 65536 or more
    half = detail::select(magnitude > 0x7f800000u, 0x7e00u, half);   // NaN
    return {static_cast<uint16_t>(half | sign)};
}

// Sum of term(i) over [0, count): in float over runs of kRun terms, spread over kLanes sums that do not wait
// for each other, then in double, so that planes of any size keep float's accuracy.
constexpr int64_t kRun = 1024;
constexpr int64_t kLanes = 32;

//
// ahead(i) is called before every kLanes terms, to ask for what will be needed next.
struct Nothing {
    void operator()(int64_t) const {}
};

template <class Term, class Ahead = Nothing>
double sum_of(int64_t count, Term term, Ahead ahead = {}) {
    double total = 0;
    for (int64_t start = 0; start < count; start += kRun) {
        const int64_t stop = std::min(count, start + kRun), whole = stop - (stop - start) % kLanes;
        float lanes[kLanes] = {};
        for (int64_t i = start; i < whole; i += kLanes) {
            ahead(i);
#pragma omp simd
            for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
        }
        for (int64_t i = whole; i < stop; ++i) lanes[i - whole] += term(i);
        float run = 0;
        for (int64_t lane = 0; lane < kLanes; ++lane) run += lanes[lane];
        total += run;
    }
    return total;
}

// As sum_of, for two sums at once: add(i, first, second) adds term i to both.
template <class Add, class Ahead = Nothing>
void sum_pairs(int64_t count, double& first_total, double& second_total, Add add, Ahead ahead = {}) {
    first_total = second_total = 0;
    for (int64_t start = 0; start < count; start += kRun) {
        const int64_t stop = std::min(count, start + kRun), whole = stop - (stop - start) % kLanes;
        float first[kLanes] = {}, second[kLanes] = {};
        for (int64_t i = start; i < whole; i += kLanes) {
            ahead(i);
#pragma omp simd
            for (int64_t lane = 0; lane < kLanes; ++lane) add(i + lane, first[lane], second[lane]);
        }
        for (int64_t i = whole; i < stop; ++i) add(i, first[i - whole], second[i - whole]);
        float first_run = 0, second_run = 0;
        for (int64_t lane = 0; lane < kLanes; ++lane) first_run += first[lane];
        for (int64_t lane = 0; lane < kLanes; ++lane) second_run += second[lane];
        first_total += first_run;
        second_total += second_run;
    }
}

// Asks the memory for kLanes values that will be read (or written) soon. The address may lie beyond the
// allocation: nothing is read from it.
template <class T>
void prefetch(const T* values, int64_t offset) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(values) + offset * sizeof(T);
    for (size_t byte = 0; byte < kLanes * sizeof(T); byte += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(start + byte));
}
template <class T>
void prefetch_write(T* values, int64_t offset) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(values) + offset * sizeof(T);
    for (size_t byte = 0; byte < kLanes * sizeof(T); byte += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(start + byte), 1);
}

// Calls part(start, length) for parts of kLanes and a last one, the length of the former known at compile
// time.
template <class Part>
void for_parts(int64_t count, Part part) {
    int64_t start = 0;
    for (; start + kLanes <= count; start += kLanes) part(start, std::integral_constant<int64_t, kLanes>{});
    if (start < count) part(start, count - start);
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
