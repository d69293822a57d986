// The C entry points of ExpertDispatch: sizes are checked here, once, for every caller. Each activation
// type's kernels are compiled in a file of their own (dispatch_*.cu).
#include <algorithm>
#include <cstdint>
#include <limits>

#include "expert_dispatch.cuh"

namespace jakiro {
extern template cudaError_t dispatch<float>(JakiroExpertDispatch, cudaStream_t);
extern template cudaError_t dispatch<half>(JakiroExpertDispatch, cudaStream_t);
extern template cudaError_t dispatch<bfloat16>(JakiroExpertDispatch, cudaStream_t);
}  // namespace jakiro

size_t jakiro_expert_dispatch_workspace(JakiroType type, int64_t rows, int64_t hidden, int64_t inner, int32_t experts) {
  (void)rows;  // the parts have room for 128 rows whatever the call's number is
  return jakiro::Workspace(type == JAKIRO_FLOAT ? 4 : 2, hidden, inner, experts).bytes;
}

cudaError_t jakiro_expert_dispatch(const JakiroExpertDispatch* arguments, cudaStream_t stream) {
  const JakiroExpertDispatch& p = *arguments;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
  if (p.rows < 0 || p.hidden < 1 || p.inner < 1 || p.hidden > kMost || p.inner > kMost || p.experts < 2 || p.experts > 65535 ||
      p.top_k < 1 || p.top_k > p.experts)
    return cudaErrorInvalidValue;
  switch (p.type) {
    case JAKIRO_FLOAT:
      return jakiro::dispatch<float>(p, stream);
    case JAKIRO_HALF:
      return jakiro::dispatch<jakiro::half>(p, stream);
    case JAKIRO_BFLOAT16:
      return jakiro::dispatch<jakiro::bfloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}
