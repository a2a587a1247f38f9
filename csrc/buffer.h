// Memory that a body works in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace dgnet_fast {

// Memory that begins at a cache line. Aligned by hand: glibc's aligned_alloc cuts its block out of a larger
// one, and the heap grows in holes (cpu_allocator.cpp).
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t count) : block_(std::malloc(count * sizeof(T) + kLine)) {
        if (!block_) throw std::bad_alloc();
        const auto first = reinterpret_cast<std::uintptr_t>(block_.get());
        data_ = reinterpret_cast<T*>((first + kLine - 1) / kLine * kLine);
    }
    T* get() const { return data_; }
    T& operator[](int64_t k) const { return data_[k]; }

  private:
    static constexpr std::uintptr_t kLine = 64;
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> block_;
    T* data_;
};

}  // namespace dgnet_fast
