// What the Python module, and other drivers, may ask of the runtime.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

enum class Order { kAscending, kDescending, kRandom };

struct Launched {
  int64_t launches = 0, blocks = 0, barriers = 0, shared = 0;
};

void set_order(Order order, uint64_t seed);
std::map<std::string, Launched> launched();  // by the kernel's mangled name
void reset_launched();
// Warps' executions of every block of instructions, by kernel.
std::map<std::string, std::vector<uint64_t>> issued();
std::vector<std::string> kernel_names();
// Adds to the file $PTX_COVERAGE a line for every block of instructions. At exit, too, which processes
// that are ended at once do not come to.
void write_coverage();
void* last_stream();                                 // of a launch or a fill
std::string short_name(const std::string& mangled);  // "products"
std::string full_name(const std::string& mangled);

}  // namespace ptx
