// dgnet_fast._allocator: memory of CPU tensors from malloc instead of posix_memalign. A module of its own,
// because it is the one that knows torch: it is built where torch is installed, and used with that very
// version only.
//
// glibc's posix_memalign (all but 2.38.0; measured with 2.36) takes a larger block, cuts it to size and frees
// the rest, 100 bytes that small allocations then take: once freed, the block is too small for the next
// tensor of its size, and the heap grows in holes.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <gnu/libc-version.h>
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
    // oneDNN's tensors made before `install` come here too: their memory is posix_memalign's, before which
    // glibc keeps a size, no address nearby.
    void* block = static_cast<void**>(data)[-1];
    const auto before = reinterpret_cast<std::uintptr_t>(data) - reinterpret_cast<std::uintptr_t>(block);
    if (before > kOverhead) {
        c10::free_cpu(data);
        return;
    }
    c10::profiledCPUMemoryReporter().Delete(data);
    std::free(block);
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
            // torch's own words, which tools that look for a fitting batch size know
            TORCH_CHECK(false, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes,
                        " bytes");
        }
        const auto first = reinterpret_cast<std::uintptr_t>(block) + sizeof(void*);
        const auto aligned = (first + c10::gAlignment - 1) / c10::gAlignment * c10::gAlignment;
        void* data = reinterpret_cast<void*>(aligned);
        static_cast<void**>(data)[-1] = block;
        c10::profiledCPUMemoryReporter().New(data, bytes);
        return data;
    }
};

constexpr uint8_t kPriority = 1;  // torch's own has 0

// Another malloc (jemalloc, tcmalloc) has size classes that the overhead would overstep, and aligns well by
// itself.
bool malloc_is_glibcs() {
    Dl_info of_malloc, of_libc;
    return dladdr(dlsym(RTLD_DEFAULT, "malloc"), &of_malloc) != 0 &&
           dladdr(reinterpret_cast<void*>(&gnu_get_libc_version), &of_libc) != 0 &&
           of_malloc.dli_fbase == of_libc.dli_fbase;
}

bool install() {
    static auto* const allocator = new MallocAllocator;  // never destroyed: tensors may outlive everything
    if (!malloc_is_glibcs()) {
        return false;
    }
    c10::SetCPUAllocator(allocator, kPriority);
    return c10::GetCPUAllocator() == allocator;
}

}  // namespace

PYBIND11_MODULE(_allocator, m) {
    m.doc() = "Memory of CPU tensors from malloc, aligned by hand.";
    m.attr("torch_version") = DGNET_FAST_TORCH_VERSION;
    m.def(
        "install", &install,
        "All CPU tensors from now on; False where malloc is not glibc's or something else holds the place.");
}
