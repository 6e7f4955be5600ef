// Kernels with one fault each that the emulator must find, and find nothing where it is mended.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gankernels::emu {

std::vector<std::string> fault_names();

// Null, or what the emulator reports.
const char* run_fault(const std::string& name, bool planted);

// A warp's lanes read and write vectors of 1, 2, 4 or 8 words of shared memory that lie so many words
// apart; of 0 words: half of the lanes come once more.
void run_strided(int stride, int words);

// Seconds for blocks x threads that wait at so many barriers.
double speed(int64_t blocks, int threads, int barriers);

}  // namespace gankernels::emu
