// The gradient of tap (i, j) is a matrix product over all pixels of the batch: Σ grad_y[pixel][k] x[pixel
// moved by the tap][c]. Pixels are numbered along one line, in which every row of a picture is followed by
// `padding` zeros and every picture by `padding` rows of zeros: a tap then moves every pixel by the same
// number of places. grad_y has zeros where the line has no pixel of it.
//
// A tile of the left factor holds 16 channels of grad_y at 32 places, so grad_y is transposed. A tile of the
// right factor holds 16 channels of x at 32 places in pairs of places, as the instruction wants them. There
// are two copies of x, one with the pairs that begin at even places and one with the others: whatever a tap
// moves, every row of a tile then begins at a cache line (a row that crosses one is read twice: about 0.8
// of the speed).
//
// The line is cut into parts that fit the L2 cache. Part n adds to sum n modulo the number of sums, which
// depends on the shape alone, and the sums are added in order: equal bits for any number of threads.
#include "conv3x3_amx.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)

#include <cpuid.h>
#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "buffer.h"

namespace dgnet_fast {
namespace {

constexpr int64_t kTile = 16;                               // rows of a tile, and its float32 columns
constexpr int64_t kPlaces = 32;                             // places that one product sums over
constexpr int64_t kPart = 2048;                             // places of a part, about
constexpr int64_t kMostSums = 8;                            // that parts are added to
constexpr int64_t kSumBytes = 2 << 20;                      // of all sums, if there is more than one
constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA

// The calling thread's tiles, all of 16 rows of 64 bytes, while this lives.
class Tiles {
  public:
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int tile = 0; tile < 8; ++tile) {
            shape.bytes[tile] = 64;
            shape.rows[tile] = kTile;
        }
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// Pictures (batch, height, width, channels) along the line.
struct Line {
    const BFloat16* values;
    int64_t batch, height, width, channels;
    int64_t pitch, rows;      // places from row to row, rows from picture to picture
    const BFloat16* nothing;  // zeros, for places without a pixel

    // Addresses of the pixels at `count` places from `first` on.
    void find(int64_t first, int64_t count, const BFloat16** pixels) const {
        for (int64_t n = 0; n < count;) {
            const int64_t at = first + n, line = at / pitch, column = at % pitch, row = line % rows;
            const bool before = at < 0, beyond = line >= batch * rows;
            const bool inside = !before && !beyond && row < height && column < width;
            int64_t end = n + (inside ? width - column : before ? -at : pitch - column);
            end = beyond ? count : std::min(end, count);
            const BFloat16* pixel =
                inside ? values + ((line / rows * height + row) * width + column) * channels : nothing;
            for (; n < end; ++n, pixel += inside ? channels : 0) pixels[n] = pixel;
        }
    }
};

// Two vectors of 32 channels, at neighbouring places, as pairs: those of the first and of the last 16
// channels.
struct Pairs {
    __m512i first, last;
};
Pairs pairs_of(__m512i a, __m512i b) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                         38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    return {_mm512_permutex2var_epi16(a, low, b), _mm512_permutex2var_epi16(a, high, b)};
}

// Transposes 16 × 16 pairs and stores row i at to + i * stride.
void store_transposed(const __m512i in[16], BFloat16* to, int64_t stride) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    // b[4 * n + i] holds in its quarter q column 4 * q + i of the rows 4 * n to 4 * n + 3
    for (int i = 0; i < 16; ++i) {
        const __m512i* const from = b + i / 8 * 8 + i % 4;
        a[i] = i / 4 % 2 ? _mm512_shuffle_i32x4(from[0], from[4], 0xdd)
                         : _mm512_shuffle_i32x4(from[0], from[4], 0x88);
    }
    for (int i = 0; i < 8; ++i) {
        _mm512_storeu_si512(to + i * stride, _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 8) * stride, _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd));
    }
}

// kPlaces places of x from `first` on, as pairs that begin at even and at odd places; channels 16 * n and on
// lie at result + n * block.
struct PairedRooms {
    BFloat16 *even, *odd;
    int64_t block;
};
void pair_up(const Line& x, int64_t first, const PairedRooms& to) {
    const BFloat16* pixels[kPlaces + 1];
    x.find(first, kPlaces + 1, pixels);
    for (int64_t c = 0; c < x.channels; c += 2 * kTile) {
        BFloat16 *const even = to.even + c / kTile * to.block, *const odd = to.odd + c / kTile * to.block;
        __m512i a = _mm512_loadu_si512(pixels[0] + c);
        for (int64_t n = 0; n < kPlaces; n += 2) {
            const __m512i b = _mm512_loadu_si512(pixels[n + 1] + c);
            const __m512i next = _mm512_loadu_si512(pixels[n + 2] + c);
            const Pairs here = pairs_of(a, b), there = pairs_of(b, next);
            _mm512_storeu_si512(even + n * kTile, here.first);
            _mm512_storeu_si512(even + to.block + n * kTile, here.last);
            _mm512_storeu_si512(odd + n * kTile, there.first);
            _mm512_storeu_si512(odd + to.block + n * kTile, there.last);
            a = next;
        }
    }
}

// kPlaces places of grad_y from `first` on, transposed: channel k at result + k * stride.
void transpose(const Line& grad_y, int64_t first, BFloat16* result, int64_t stride) {
    const BFloat16* pixels[kPlaces];
    grad_y.find(first, kPlaces, pixels);
    for (int64_t k = 0; k < grad_y.channels; k += 2 * kTile) {
        __m512i upper[16], lower[16];
        for (int i = 0; i < 16; ++i) {
            const Pairs pairs =
                pairs_of(_mm512_loadu_si512(pixels[2 * i] + k), _mm512_loadu_si512(pixels[2 * i + 1] + k));
            upper[i] = pairs.first;
            lower[i] = pairs.last;
        }
        store_transposed(upper, result + k * stride, stride);
        store_transposed(lower, result + (k + kTile) * stride, stride);
    }
}

// Sums over `places` for 32 channels of grad_y, 16 of x and the three taps of one row:
// sum[k * sum_row + tap * channels + c].
void multiply(int64_t places, const BFloat16* grad_y, int64_t stride, const BFloat16* const x[3], float* sum,
              int64_t channels, bool add) {
    const int64_t row = 9 * channels, bytes = row * int64_t{sizeof(float)};
    float *const upper = sum, *const lower = sum + kTile * row;
    if (add) {
        _tile_loadd(0, upper, bytes);
        _tile_loadd(1, upper + channels, bytes);
        _tile_loadd(2, upper + 2 * channels, bytes);
        _tile_loadd(3, lower, bytes);
        _tile_loadd(4, lower + channels, bytes);
        _tile_loadd(5, lower + 2 * channels, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_zero(4);
        _tile_zero(5);
    }
    const int64_t left_bytes = stride * int64_t{sizeof(BFloat16)};
    for (int64_t n = 0; n < places; n += kPlaces) {
        _tile_loadd(6, grad_y + n, left_bytes);
        _tile_loadd(7, x[0] + n * kTile, 64);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(7, x[2] + n * kTile, 64);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(7, x[1] + n * kTile, 64);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(6, grad_y + kTile * stride + n, left_bytes);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, x[0] + n * kTile, 64);
        _tile_dpbf16ps(3, 6, 7);
        _tile_loadd(7, x[2] + n * kTile, 64);
        _tile_dpbf16ps(5, 6, 7);
    }
    _tile_stored(0, upper, bytes);
    _tile_stored(1, upper + channels, bytes);
    _tile_stored(2, upper + 2 * channels, bytes);
    _tile_stored(3, lower, bytes);
    _tile_stored(4, lower + channels, bytes);
    _tile_stored(5, lower + 2 * channels, bytes);
}

}  // namespace

bool conv3x3_amx() {
    static const bool usable = [] {
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
        return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & bf16) && (edx & tile) &&
               syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return usable;
}

void conv3x3_weight_gradient(const Conv3x3WeightGradient& a) {
    const Conv3x3Shape& s = a.shape;
    const int64_t in = s.in_channels, out = s.out_channels;
    const int64_t pitch = s.width + s.padding, rows = s.height + s.padding;
    const int64_t out_height = s.height + 2 * s.padding - 2, out_width = s.width + 2 * s.padding - 2;
    const std::vector<BFloat16> nothing(std::max(in, out));
    const Line x{a.x, s.batch, s.height, s.width, in, pitch, rows, nothing.data()};
    const Line grad_y{a.grad_y, s.batch, out_height, out_width, out, pitch, rows, nothing.data()};

    const int64_t count = ((s.batch - 1) * rows + out_height - 1) * pitch + out_width;
    const int64_t parts = (count + kPart - 1) / kPart;
    const auto whole = [](int64_t places) { return (places + kPlaces - 1) / kPlaces * kPlaces; };
    const int64_t places = whole((count + parts - 1) / parts);  // of a part
    const int64_t moved = whole(places + 2 * pitch + 3);        // of x, which the taps move
    // an odd number of cache lines, so that the rows of a tile do not fall on the same lines of the L1 cache
    const int64_t stride = places / kPlaces % 2 ? places : places + kPlaces;

    const int64_t weight = 9 * in * out, blocks = in / kTile, tasks = out / (2 * kTile) * blocks * 3;
    const int64_t sums =
        std::min({parts, kMostSums, std::max<int64_t>(1, kSumBytes / (weight * int64_t{sizeof(float)}))});
    // of parts at a time: some tasks for every thread, if there can be
    const int64_t together = std::min(sums, (4 * int64_t{omp_get_max_threads()} + tasks - 1) / tasks);
    const int64_t block = moved * kTile, paired = 2 * blocks * block, transposed = stride * out;
    const Buffer<BFloat16> pairs(together * paired), lines(together * transposed);
    const Buffer<float> sum(sums * weight);

#pragma omp parallel
    {
        const Tiles tiles;
        for (int64_t first = 0; first < parts; first += together) {
            const int64_t now = std::min(together, parts - first);
#pragma omp for schedule(static) collapse(2) nowait
            for (int64_t n = 0; n < now; ++n)
                for (int64_t at = 0; at < moved; at += kPlaces) {
                    BFloat16* const to = pairs.get() + n * paired + at * kTile;
                    const int64_t begin = (first + n) * places - s.padding * (pitch + 1);
                    pair_up(x, begin + at, {to, to + block, 2 * block});
                }
#pragma omp for schedule(static) collapse(2)
            for (int64_t n = 0; n < now; ++n)
                for (int64_t at = 0; at < places; at += kPlaces)
                    transpose(grad_y, (first + n) * places + at, lines.get() + n * transposed + at, stride);
#pragma omp for schedule(static) collapse(4)
            for (int64_t n = 0; n < now; ++n)
                for (int64_t k = 0; k < out; k += 2 * kTile)
                    for (int64_t c = 0; c < in; c += kTile)
                        for (int64_t i = 0; i < 3; ++i) {
                            const BFloat16* const even = pairs.get() + n * paired + c / kTile * 2 * block;
                            const BFloat16* moved_x[3];
                            for (int64_t j = 0; j < 3; ++j) {
                                const int64_t by = i * pitch + j;
                                moved_x[j] = even + by % 2 * block + by / 2 * 2 * kTile;
                            }
                            const int64_t part = first + n;
                            float* const to = sum.get() + part % sums * weight + k * 9 * in + i * 3 * in + c;
                            multiply(places, lines.get() + n * transposed + k * stride, stride, moved_x, to,
                                     in, part >= sums);
                        }
        }
#pragma omp for schedule(static)
        for (int64_t k = 0; k < out; ++k)
            for (int64_t n = k * 9 * in; n < (k + 1) * 9 * in; ++n) {
                float total = sum[n];
                for (int64_t other = 1; other < sums; ++other) total += sum[other * weight + n];
                a.grad_weight[n] = store<BFloat16>(total);
            }
    }
}

}  // namespace dgnet_fast

#else

namespace dgnet_fast {

bool conv3x3_amx() {
    return false;
}
void conv3x3_weight_gradient(const Conv3x3WeightGradient&) {
    throw std::logic_error("conv3x3_weight_gradient: built without AMX");
}

}  // namespace dgnet_fast

#endif
