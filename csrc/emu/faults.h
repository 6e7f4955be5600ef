// Kernels with one fault each that the emulator must find, and find nothing where it is mended.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gankernels::emu {

std::vector<std::string> fault_names();

// Null, or what the emulator reports.
const char* run_fault(const std::string& name, bool planted);

// Seconds for blocks x threads that wait at so many barriers.
double speed(int64_t blocks, int threads, int barriers);

}  // namespace gankernels::emu
