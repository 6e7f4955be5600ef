#include "cpu/memory/memory_limit.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace gankernels {
namespace {

// The least number in the files called `name` in `path` and in every folder above it, down to `root`.
// Within a container the path is often the host's: what is not there limits nothing.
size_t least_of(const std::string& root, std::string path, const char* name, size_t limit) {
  while (true) {
    std::ifstream file(root + path + "/" + name);
    size_t number;
    if (file >> number) limit = std::min(limit, number);  // "max" is no number
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return limit;
    path.resize(slash);
  }
}

}  // namespace

size_t memory_limit(const std::string& proc, const std::string& cgroup) {
  size_t limit =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::ifstream groups(proc + "/cgroup");
  for (std::string line; std::getline(groups, line);) {  // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers == ",,")
      limit = least_of(cgroup, path, "memory.max", limit);
    else if (controllers.find(",memory,") != std::string::npos)
      limit = least_of(cgroup + "/memory", path, "memory.limit_in_bytes", limit);
  }
  return limit;
}

}  // namespace gankernels
