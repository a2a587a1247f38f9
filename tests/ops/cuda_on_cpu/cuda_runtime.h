// Enough of CUDA to run the kernels of csrc/*.cu on a CPU, one block after the other, each thread of a block
// on a stack of its own. It shows what a compiler cannot: wrong indices (AddressSanitizer sees every address
// of global memory), wrong sums, misaligned packs, threads that wait in different places, impossible grids.
// `make sanitize` turns the launches `kernel<<<...>>>(...)` into calls of cuda_on_cpu::launch. Not shown:
// speed, races between blocks, shared memory that no thread of this block wrote.
//
// A warp runs on until all of its lanes wait for the block or are done, before the next warp begins: a value
// of shared memory that is read without a barrier between is then missing for one warp, and in the opposite
// order of warps and lanes (`backwards`) for another, so results differ between the two orders.
#pragma once

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
using cudaStream_t = void*;

namespace cuda_on_cpu {

inline bool backwards = false;
inline int device = 0;    // the current one
inline int launched = 0;  // that of the last launch
inline cudaError_t error = cudaSuccess;

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 64 << 10;

enum class State { ready, at_barrier, at_shuffle, done };

using Jump = void* [5];  // what __builtin_setjmp wants

struct Thread {
    std::vector<char> stack = std::vector<char>(kStack);
    Jump at;
    void* fake_stack;  // AddressSanitizer's
    State state;
    bool started = false;
    unsigned shuffles = 0;
    uint64_t shuffled[2];  // a lane is at most one shuffle ahead of another that still has to read
};

struct Block {
    std::vector<Thread> threads = std::vector<Thread>(kMostThreads);
    std::function<void()> body;
    int current;
    Jump scheduler;
    void* scheduler_fake_stack;
    const void* scheduler_stack;
    size_t scheduler_size;
};

inline Block block;

[[noreturn]] inline void fail(const char* what) {
    std::printf("CUDA on CPU: %s, in block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
    std::exit(1);
}

// The builtin, because AddressSanitizer makes two system calls of each longjmp.
[[noreturn]] inline __attribute__((noinline, no_sanitize("address"))) void jump(Jump& to) {
    __builtin_longjmp(to, 1);
}

// From a thread to the scheduler, and back when the scheduler runs the thread again.
inline __attribute__((noinline, no_sanitize("address"))) void wait(State state) {
    Thread& thread = block.threads[block.current];
    thread.state = state;
    if (!__builtin_setjmp(thread.at)) {
        __sanitizer_start_switch_fiber(&thread.fake_stack, block.scheduler_stack, block.scheduler_size);
        jump(block.scheduler);
    }
    __sanitizer_finish_switch_fiber(block.threads[block.current].fake_stack, nullptr, nullptr);
}

inline void run_thread() {
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_size);
    for (;;) {
        block.body();
        wait(State::done);
    }
}

// From the scheduler to a thread, until that waits.
inline __attribute__((noinline, no_sanitize("address"))) void resume(int index) {
    block.current = index;
    threadIdx = dim3(index);
    if (!__builtin_setjmp(block.scheduler)) {
        Thread& thread = block.threads[index];
        __sanitizer_start_switch_fiber(&block.scheduler_fake_stack, thread.stack.data(), kStack);
        if (thread.started) jump(thread.at);
        thread.started = true;
        ucontext_t start;
        getcontext(&start);
        start.uc_stack.ss_sp = thread.stack.data();
        start.uc_stack.ss_size = kStack;
        makecontext(&start, run_thread, 0);
        setcontext(&start);
    }
    __sanitizer_finish_switch_fiber(block.scheduler_fake_stack, nullptr, nullptr);
}

// Runs a warp until none of its lanes can go on.
inline void run_warp(int warp) {
    Thread* lanes = &block.threads[warp * kWarp];
    for (;;) {
        for (int i = 0; i < kWarp; ++i) {
            const int lane = backwards ? kWarp - 1 - i : i;
            if (lanes[lane].state == State::ready) resume(warp * kWarp + lane);
        }
        const auto shuffling = [](const Thread& t) { return t.state == State::at_shuffle; };
        if (std::none_of(lanes, lanes + kWarp, shuffling)) return;
        if (!std::all_of(lanes, lanes + kWarp, shuffling)) fail("a shuffle lacks lanes of its warp");
        for (int lane = 0; lane < kWarp; ++lane) lanes[lane].state = State::ready;
    }
}

inline void run_block(int threads) {
    for (int i = 0; i < threads; ++i) block.threads[i].state = State::ready;
    const auto all = [threads](State state) {
        return std::all_of(block.threads.begin(), block.threads.begin() + threads,
                           [state](const Thread& t) { return t.state == state; });
    };
    while (!all(State::done)) {
        for (int i = 0; i < threads / kWarp; ++i) run_warp(backwards ? threads / kWarp - 1 - i : i);
        if (all(State::done)) return;
        if (!all(State::at_barrier)) fail("__syncthreads lacks threads of its block");
        for (int i = 0; i < threads; ++i) block.threads[i].state = State::ready;
    }
}

template <class Body>
void launch(dim3 grid, int threads, size_t shared, cudaStream_t, Body body) {
    if (threads % kWarp || threads > kMostThreads || shared)
        fail("a launch that this emulation does not know");
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        error = cudaErrorInvalidConfiguration;
        return;
    }
    gridDim = grid;
    launched = device;
    block.body = body;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(threads);
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
    cuda_on_cpu::wait(cuda_on_cpu::State::at_barrier);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    using namespace cuda_on_cpu;
    static_assert(sizeof(T) <= sizeof(uint64_t));
    if (mask != 0xffffffffu) fail("a shuffle of a part of a warp");
    const int self = block.current;
    Thread& thread = block.threads[self];
    const unsigned turn = thread.shuffles++ % 2;
    std::memcpy(&thread.shuffled[turn], &value, sizeof value);
    wait(State::at_shuffle);
    std::memcpy(&value, &block.threads[self ^ lanes].shuffled[turn], sizeof value);
    return value;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned(uint64_t{a} * b >> 32);
}
inline float rsqrtf(float value) {
    return 1 / std::sqrt(value);
}
using std::max;
using std::min;

inline cudaError_t cudaGetDevice(int* device) {
    *device = cuda_on_cpu::device;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    cuda_on_cpu::device = device;
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
    return std::exchange(cuda_on_cpu::error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t) {
    return "invalid configuration argument";
}
