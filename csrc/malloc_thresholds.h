#pragma once

namespace dgnet_fast {

// Tells glibc to keep large blocks instead of mapping and unmapping each: on a CPU the page faults of fresh
// maps are about a quarter of a training step. Returns true if both settings were accepted, false where they
// were refused or the C library is not glibc.
bool keep_large_blocks();

}  // namespace dgnet_fast
