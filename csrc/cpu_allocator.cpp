// dgnet_fast._allocator: memory of CPU tensors from malloc instead of posix_memalign. A module of its own,
// because it is the one that knows torch: it is built where torch is installed, and used with that very
// version only.
//
// posix_memalign of glibc before 2.38 cuts the block it took to size and frees the rest, 100 bytes that small
// allocations then take: the freed block is too small for the next tensor of its size, and the heap grows in
// holes.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>
#include <c10/util/Exception.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdlib>
#include <limits>

namespace {

// Before the data stands the address that malloc returned.
constexpr size_t kOverhead = sizeof(void*) + c10::gAlignment - 1;

void release(void* data) {
    if (data == nullptr) {
        return;
    }
    c10::profiledCPUMemoryReporter().Delete(data);
    std::free(static_cast<void**>(data)[-1]);
}

class MallocAllocator final : public c10::Allocator {
  public:
    c10::DataPtr allocate(size_t bytes) override {
        void* data = bytes == 0 ? nullptr : take(bytes);
        return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &release; }

    void copy_data(void* to, const void* from, std::size_t bytes) const override {
        default_copy_data(to, from, bytes);
    }

  private:
    static void* take(size_t bytes) {
        const bool possible = bytes <= std::numeric_limits<size_t>::max() / 2;
        void* block = possible ? std::malloc(bytes + kOverhead) : nullptr;
        if (block == nullptr) {
            c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
            TORCH_CHECK(false, "not enough memory: you tried to allocate ", bytes, " bytes on the CPU");
        }
        const auto first = reinterpret_cast<std::uintptr_t>(block) + sizeof(void*);
        const auto aligned = (first + c10::gAlignment - 1) / c10::gAlignment * c10::gAlignment;
        void* data = reinterpret_cast<void*>(aligned);
        static_cast<void**>(data)[-1] = block;
        c10::profiledCPUMemoryReporter().New(data, bytes);
        return data;
    }
};

// Above torch's own, which is 0. Tensors keep the deleter they were made with, so older ones stay as they
// are.
constexpr uint8_t kPriority = 1;

bool install() {
    static MallocAllocator allocator;
    c10::SetCPUAllocator(&allocator, kPriority);
    return c10::GetCPUAllocator() == &allocator;
}

}  // namespace

PYBIND11_MODULE(_allocator, m) {
    m.doc() = "Memory of CPU tensors from malloc, aligned by hand.";
    m.attr("torch_version") = DGNET_FAST_TORCH_VERSION;
    m.def("install", &install, "All CPU tensors from now on; False where something else holds the place.");
}
