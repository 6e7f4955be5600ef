// The kernels behind the bindings, which are compiled up to three times:
//
//   (nothing)               the CPU kernels, for CPU tensors, in gankernels
//   -DGANKERNELS_CUDA       the CUDA kernels, for CUDA tensors, in gankernels
//   -DGANKERNELS_EMULATE    the CUDA kernels emulated, for CPU tensors, in gankernels_emu (tests only)
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "cpu/memory/pool.h"

#if defined(GANKERNELS_CUDA) || defined(GANKERNELS_EMULATE)
#define GANKERNELS_GPU 1
#endif

#if defined(GANKERNELS_CUDA)
#define GANKERNELS_IMPLEMENTATIONS(m) STABLE_TORCH_LIBRARY_IMPL(gankernels, CUDA, m)
#elif defined(GANKERNELS_EMULATE)
#define GANKERNELS_IMPLEMENTATIONS(m) STABLE_TORCH_LIBRARY_IMPL(gankernels_emu, CPU, m)
#else
#define GANKERNELS_IMPLEMENTATIONS(m) STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m)
#endif

namespace gankernels::bindings {

using torch::stable::Tensor;

// Where this module's kernels can reach a tensor, before its device is compared with the others'.
#if defined(GANKERNELS_CUDA)
constexpr const char* kPlace = "a CUDA device";
inline bool is_here(const Tensor& x) {
  return x.is_cuda();
}
#else
constexpr const char* kPlace = "the CPU";
inline bool is_here(const Tensor& x) {
  return x.is_cpu();
}
#endif

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() &&
         a.get_device_index() == b.get_device_index();
}

// An uninitialized tensor of memory for results: large ones on the CPU come from the pool.
inline Tensor dense_like(const Tensor& like) {
#if !defined(GANKERNELS_GPU)
  const size_t bytes = like.numel() * like.element_size();
  if (void* memory = bytes < pool::kMinimum ? nullptr : pool::take(bytes))
    return torch::stable::from_blob(memory, like.sizes(), like.strides(), like.device(),
                                    like.scalar_type(), &pool::give);
#endif
  return torch::stable::empty_like(like);
}

#if defined(GANKERNELS_GPU)
// For the length of a launcher's call: the device of `like` is current, its current stream and scratch
// memory are at hand. The allocator gives that memory to later work of the same stream only.
class GpuCall {
 public:
  GpuCall(const Tensor& like, int64_t bytes)
      : like_(like),
#if defined(GANKERNELS_CUDA)
        guard_(like.get_device_index()),
#endif
        memory_(torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte)) {
  }
  void* workspace() const { return memory_.data_ptr(); }
  void* stream() const {
    void* stream = nullptr;
#if defined(GANKERNELS_CUDA)
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like_.get_device_index(), &stream));
#endif
    return stream;
  }

 private:
  const Tensor& like_;
#if defined(GANKERNELS_CUDA)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  Tensor memory_;
};
#endif

inline void check_status(const char* op, const char* status) {
  STD_TORCH_CHECK(status == nullptr, op, ": ", status);
}

// How many threads a CPU kernel may use.
inline int threads() {
  return static_cast<int>(torch::stable::get_num_threads());
}

}  // namespace gankernels::bindings

// Hands `args` to the launcher of this module's kernels; `ns` is the op's namespace.
#if defined(GANKERNELS_GPU)
#define RUN(op, ns, pass, like, args)                                      \
  {                                                                        \
    const GpuCall gpu(like, ns::cuda::workspace(args));                    \
    check_status(op, ns::cuda::pass(args, gpu.workspace(), gpu.stream())); \
  }
#else
#define RUN(op, ns, pass, like, args) check_status(op, ns::cpu::pass(args))
#endif
