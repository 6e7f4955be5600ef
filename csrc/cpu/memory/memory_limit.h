// How much memory this process may use.
#pragma once

#include <cstddef>
#include <string>

namespace gankernels {

// The least of the machine's memory and the limits of the control groups that the process is in, of
// either version. `proc` and `cgroup` are where the system describes them.
size_t memory_limit(const std::string& proc = "/proc/self",
                    const std::string& cgroup = "/sys/fs/cgroup");

}  // namespace gankernels
