// The control panel of the emulator for Python: the order of threads, and what was counted.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emu/engine.h"
#include "emu/faults.h"

namespace py = pybind11;
namespace emu = gankernels::emu;

namespace {

// Rows of numbers with a name each, as {name: int64 array}.
template <class Rows, class F>
py::dict table(const Rows& rows, F&& numbers) {
  py::dict result;
  for (const auto& row : rows) {
    const auto [name, values] = numbers(row);
    result[py::str(name)] =
        py::array_t<int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
  }
  return result;
}

using Row = std::pair<std::string, std::vector<int64_t>>;

py::dict counters() {
  const emu::Counters c = emu::counters();
  py::dict result;
  result["launches"] = c.launches;
  result["blocks"] = c.blocks;
  result["shared"] = c.shared;
  result["threads"] = c.threads;
  result["barriers"] = c.barriers;
  result["buffers"] = table(
      c.buffers, [](const auto& b) { return Row{b.first, {b.second.read, b.second.written}}; });
  result["sites"] = table(
      c.sites, [](const emu::Site& s) { return Row{s.where, {s.accesses, s.bytes, s.sectors}}; });
  std::map<std::string, py::dict> banks;
  for (const emu::BankSite& s : c.banks)
    banks[s.kernel][py::str(s.where)] = py::make_tuple(s.accesses, s.mean_ways, s.max_ways);
  result["banks"] = banks;
  return result;
}

}  // namespace

PYBIND11_MODULE(gankernels_emu, m) {
  m.doc() =
      "Controls the emulator of the CUDA kernels; importing it registers them for CPU tensors.";
  py::enum_<emu::Order>(m, "Order")
      .value("ascending", emu::Order::kAscending)
      .value("descending", emu::Order::kDescending)
      .value("random", emu::Order::kRandom)
      .value("switching", emu::Order::kSwitching);
  m.def("set_order", &emu::set_order, py::arg("order"), py::arg("seed") = 1,
        "The order of threads and blocks.");
  m.def("set_profiling", &emu::set_profiling, py::arg("on"),
        "Count 32-byte sectors and bank conflicts; slow.");
  m.def("set_executing", &emu::set_executing, py::arg("on"),
        "Off: launches are counted, and nothing runs.");
  m.def("counters", &counters,
        "launches and shared: {kernel: number}; blocks: {kernel: those of every launch}; buffers: "
        "{name: bytes read, bytes written}; sites: "
        "{place in the source: accesses of warps, bytes, sectors} and banks: {kernel: {place: "
        "accesses "
        "of warps to shared memory, mean and most turns that they take}}, while profiling.");
  m.def("reset_counters", &emu::reset_counters);
  m.def("faults", &emu::fault_names, "The kernels with a planted fault.");
  m.def(
      "run_fault",
      [](const std::string& name, bool planted) -> py::object {
        const char* error = emu::run_fault(name, planted);
        return error ? py::object(py::str(error)) : py::none();
      },
      py::arg("name"), py::arg("planted"),
      "Runs such a kernel, with its fault or without; returns what the emulator found, or None.");
  m.def("run_strided", &emu::run_strided, py::arg("stride"), py::arg("words"),
        "A warp's accesses to shared memory: vectors of so many words, so many words apart.");
  m.def("speed", &emu::speed, py::arg("blocks"), py::arg("threads"), py::arg("barriers"),
        "Seconds that a kernel takes that does nothing but wait at barriers.");
}
