// Launches the kernel of the controller of p.
#include "cuda/ada_control.cuh"

namespace gankernels::ada_control::cuda {

int64_t workspace(const Update&) {
  return 0;
}

const char* update(const Update& args, void* /*workspace*/, void* stream) {
  Buffers buffers;
  buffers.out("state", args.state, kState, sizeof(double));
  if (args.p) buffers.out("p", args.p, 1, sizeof(float));
  if (args.sums) buffers.in("sums", args.sums, kSums, sizeof(double));
  for (int64_t i = 0; i < args.count; ++i)
    buffers.in("scores", args.scores[i].data, args.scores[i].count,
               item_size(args.scores[i].dtype));
  return launch<control>("ada_control", 1, kThreads, stream, args);
}

}  // namespace gankernels::ada_control::cuda
