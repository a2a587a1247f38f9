#include "malloc_thresholds.h"

#include <climits>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace dgnet_fast {

bool keep_large_blocks() {
#if defined(__GLIBC__)
    // mallopt takes an int, so 2 GiB - 1 is the largest size it can name: larger blocks are still mapped one
    // by one. -1 is its documented spelling of "never give the top of the heap back".
    const bool mapped = mallopt(M_MMAP_THRESHOLD, INT_MAX) == 1;
    const bool trimmed = mallopt(M_TRIM_THRESHOLD, -1) == 1;
    return mapped && trimmed;
#else
    return false;
#endif
}

}  // namespace dgnet_fast
