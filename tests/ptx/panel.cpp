// The Python module gankernels_emu, with nvcc's PTX in place of the emulated kernels: as much of the
// emulator's control panel as a test of an operator asks for.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "runtime.h"

namespace py = pybind11;

namespace {

enum class Order { ascending, descending, random, switching };

void set_order(Order order, uint64_t seed) {
  ptx::set_order(order == Order::ascending    ? ptx::Order::kAscending
                 : order == Order::descending ? ptx::Order::kDescending
                                              : ptx::Order::kRandom,
                 seed);
}

// By the names that the launchers use; "buffers" and "sites" are known to the emulator only.
py::dict counters() {
  std::map<std::string, int64_t> launches, shared;
  int64_t barriers = 0;
  for (const auto& [mangled, n] : ptx::launched()) {
    const std::string name = ptx::short_name(mangled);
    launches[name] += n.launches;
    shared[name] = std::max(shared[name], n.shared);
    barriers += n.barriers;
  }
  py::dict result;
  result["launches"] = launches;
  result["shared"] = shared;
  result["barriers"] = barriers;
  return result;
}

// {kernel: launches}, with 0 for those that never ran.
std::map<std::string, int64_t> coverage() {
  std::map<std::string, int64_t> result;
  const auto launched = ptx::launched();
  for (const std::string& name : ptx::kernel_names()) {
    const auto found = launched.find(name);
    result[ptx::full_name(name)] = found == launched.end() ? 0 : found->second.launches;
  }
  return result;
}

[[noreturn]] void absent() {
  throw std::runtime_error("only the emulator has this");
}

}  // namespace

PYBIND11_MODULE(gankernels_ptx, m) {
  py::enum_<Order>(m, "Order")
      .value("ascending", Order::ascending)
      .value("descending", Order::descending)
      .value("random", Order::random)
      .value("switching", Order::switching);
  m.def("set_order", &set_order, py::arg("order"), py::arg("seed") = 1);
  m.def("set_profiling", [](bool) {}, py::arg("on"));
  m.def("counters", &counters);
  m.def("reset_counters", &ptx::reset_launched);
  m.def("coverage", &coverage);
  m.def("issued", &ptx::issued);
  m.def("write_coverage", &ptx::write_coverage);
  m.def("faults", [] { return std::vector<std::string>(); });
  m.def(
      "run_fault", [](const std::string&, bool) { absent(); }, py::arg("name"), py::arg("planted"));
  m.def(
      "speed", [](int64_t, int, int) { absent(); }, py::arg("blocks"), py::arg("threads"),
      py::arg("barriers"));
}
