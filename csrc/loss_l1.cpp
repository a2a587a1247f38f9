#include "loss_l1.h"

#include <cmath>
#include <vector>

// One task is some blocks of a stream. Sums are float over a block, double over blocks and tasks, and merged
// in order, so results do not depend on the number of threads.

namespace dgnet_fast {
namespace {

constexpr int64_t kTaskBlocks = 32;

int64_t blocks_of(int64_t elements) {
    return (elements + kSignBlock - 1) / kSignBlock;
}

int64_t tasks_of(int64_t elements) {
    return (blocks_of(elements) + kTaskBlocks - 1) / kTaskBlocks;
}

// The target's values for the prediction's elements [first, first + count) of a stream, as floats in
// `values`, where the orders of the two cross.
template <class T>
void gather(const LossL1Forward& a, const T* target, int64_t first, int64_t count, float* values) {
    const int64_t channels = a.channels, pixels = a.pixels, picture = channels * pixels;
    // (rows, columns) is how the prediction sees a picture; the target has it transposed.
    const bool planes = a.crossing == Crossing::target_planes;
    const int64_t rows = planes ? pixels : channels, columns = planes ? channels : pixels;
    int64_t index = first % picture, row = index / columns, column = index % columns;
    const T* shown = target + first / picture * picture;
    for (int64_t k = 0; k < count;) {
        if (column == 0 && columns == 3) {  // whole pixels of colour pictures: three runs side by side
            const int64_t whole = std::min((count - k) / 3, rows - row);
            const T *red = shown + row, *green = red + rows, *blue = green + rows;
            float* to = values + k;
            for (int64_t i = 0; i < whole; ++i) {
                to[3 * i] = load(red[i]);
                to[3 * i + 1] = load(green[i]);
                to[3 * i + 2] = load(blue[i]);
            }
            k += 3 * whole;
            row += whole;
            if (k == count) return;
        }
        if (row < rows) {
            const int64_t run = std::min(columns - column, count - k);
            for (int64_t i = 0; i < run; ++i) values[k + i] = load(shown[(column + i) * rows + row]);
            k += run;
            column += run;
            if (column < columns) return;
            column = 0;
            ++row;
        }
        if (row == rows) {
            row = 0;
            shown += picture;
        }
    }
}

// Differences of a block, 0 after its end, and the sum of their magnitudes.
template <class P, class T>
float subtract(const P* prediction, const T* target, int64_t count, float* difference) {
    float lanes[kLanes] = {};
    const int64_t whole = count - count % kLanes;
    for (int64_t k = 0; k < whole; k += kLanes) {
#pragma omp simd
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const float value = load(prediction[k + lane]) - load(target[k + lane]);
            difference[k + lane] = value;
            lanes[lane] += std::fabs(value);
        }
    }
    for (int64_t k = whole; k < kSignBlock; ++k) {
        difference[k] = k < count ? load(prediction[k]) - load(target[k]) : 0.f;
        lanes[(k - whole) % kLanes] += std::fabs(difference[k]);
    }
    float sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
}

// In two loops: of one the compiler would narrow every comparison by itself (0.40 ns an element, not 0.25).
void store_signs(const float* difference, uint8_t* bytes) {
    int32_t codes[kSignBytes];
    const float *second = difference + kSignBytes, *third = second + kSignBytes, *fourth = third + kSignBytes;
#pragma omp simd
    for (int64_t k = 0; k < kSignBytes; ++k) {
        int32_t code = difference[k] > 0 ? 1 : 0;
        code |= difference[k] < 0 ? 2 : 0;
        code |= second[k] > 0 ? 4 : 0;
        code |= second[k] < 0 ? 8 : 0;
        code |= third[k] > 0 ? 16 : 0;
        code |= third[k] < 0 ? 32 : 0;
        code |= fourth[k] > 0 ? 64 : 0;
        code |= fourth[k] < 0 ? 128 : 0;
        codes[k] = code;
    }
    for (int64_t k = 0; k < kSignBytes; ++k) bytes[k] = static_cast<uint8_t>(codes[k]);
}

template <class P, class T>
void forward(const LossL1Forward& a) {
    const int64_t tasks = tasks_of(a.elements), blocks = blocks_of(a.elements);
    std::vector<double> parts(a.streams * tasks);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < a.streams * tasks; ++task) {
        const int64_t stream = task / tasks, begin = task % tasks * kTaskBlocks;
        const P* prediction = static_cast<const P*>(a.prediction) + stream * a.elements;
        const T* target = static_cast<const T*>(a.target) + stream * a.elements;
        uint8_t* signs = a.signs + stream * blocks * kSignBytes;
        double total = 0;
        for (int64_t block = begin; block < std::min(blocks, begin + kTaskBlocks); ++block) {
            const int64_t first = block * kSignBlock, count = std::min(kSignBlock, a.elements - first);
            float difference[kSignBlock], gathered[kSignBlock];
            if (a.crossing == Crossing::none) {
                total += subtract(prediction + first, target + first, count, difference);
            } else {
                gather(a, target, first, count, gathered);
                total += subtract(prediction + first, gathered, count, difference);
            }
            store_signs(difference, signs + block * kSignBytes);
        }
        parts[task] = total;
    }
    for (int64_t stream = 0; stream < a.streams; ++stream) {
        double total = 0;
        for (int64_t task = 0; task < tasks; ++task) total += parts[stream * tasks + task];
        a.means[stream] = static_cast<float>(total / a.elements);
    }
}

// A gradient has one of three values, so it is chosen as bits, of the unsigned integer as wide as P.
template <class P, class Bits>
void backward(const LossL1Backward& a) {
    static_assert(sizeof(P) == sizeof(Bits));
    const int64_t tasks = tasks_of(a.elements), blocks = blocks_of(a.elements);
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < a.streams * tasks; ++task) {
        const int64_t stream = task / tasks, begin = task % tasks * kTaskBlocks;
        const uint8_t* signs = a.signs + stream * blocks * kSignBytes;
        Bits* grad = static_cast<Bits*>(a.grad_prediction) + stream * a.elements;
        const float scale = a.grad[stream] / static_cast<float>(a.elements);
        const auto bits = [](float value) {
            const P stored = store<P>(value);
            Bits result;
            std::memcpy(&result, &stored, sizeof result);
            return result;
        };
        // 0 times an infinite or NaN scale is NaN, as in PyTorch
        const Bits positive = bits(scale), negative = bits(-scale), zero = bits(scale * 0);
        const Bits to_positive = positive ^ zero, to_negative = negative ^ zero;
        for (int64_t block = begin; block < std::min(blocks, begin + kTaskBlocks); ++block) {
            const uint8_t* bytes = signs + block * kSignBytes;
            const int64_t first = block * kSignBlock, count = std::min(kSignBlock, a.elements - first);
            Bits whole[kSignBlock];  // of a last block that is cut
            Bits* first_part = count == kSignBlock ? grad + first : whole;
            Bits *second = first_part + kSignBytes, *third = second + kSignBytes,
                 *fourth = third + kSignBytes;
            const auto chosen = [=](Bits code, int part) {
                const Bits above = code & 1 << 2 * part ? to_positive : 0;
                const Bits below = code & 2 << 2 * part ? to_negative : 0;
                return static_cast<Bits>(zero ^ above ^ below);
            };
#pragma omp simd
            for (int64_t k = 0; k < kSignBytes; ++k) {
                const Bits code = bytes[k];
                first_part[k] = chosen(code, 0);
                second[k] = chosen(code, 1);
                third[k] = chosen(code, 2);
                fourth[k] = chosen(code, 3);
            }
            if (count < kSignBlock) std::copy(whole, whole + count, grad + first);
        }
    }
}

}  // namespace

void loss_l1_forward(const LossL1Forward& arguments) {
    dispatch(arguments.prediction_element, [&](auto prediction) {
        dispatch(arguments.target_element,
                 [&](auto target) { forward<decltype(prediction), decltype(target)>(arguments); });
    });
}

void loss_l1_backward(const LossL1Backward& arguments) {
    dispatch(arguments.element, [&](auto zero) {
        using P = decltype(zero);
        backward<P, std::conditional_t<sizeof(P) == 4, uint32_t, uint16_t>>(arguments);
    });
}

}  // namespace dgnet_fast
