// SwiGlu: silu(gate) * up of the two halves of a row.
//
//     SwiGlu(both [..., 2 * inner]) -> [..., inner]
//
// Why a kernel: one pass over memory instead of five, with the same exponential as the softmax, 16 lanes at a time.
#include <cmath>
#include <cstring>

#include "operators.h"
#include "over_rows.h"
#include "simd.h"

namespace jakiro {

void swiglu_row(const float* both, int64_t inner, float* out) {
  const float *gate = both, *up = both + inner;
  const Floats one = broadcast(1.0f);
  int64_t n = 0;
  for (; n + kLanes <= inner; n += kLanes) {
    const Floats x = load(gate + n), silu = x / (one + exp(broadcast(0.0f) - x));
    store(out + n, silu * load(up + n));
  }
  for (; n < inner; ++n) out[n] = gate[n] / (1.0f + std::exp(-gate[n])) * up[n];
}

ort::Status* swiglu(const Call& call) {
  const Tensor both = call.input(0);
  const int64_t width = both.dims[both.rank - 1], inner = width / 2, rows = width ? both.count() / width : 0;
  int64_t dims[8];
  std::memcpy(dims, both.dims, sizeof dims);
  dims[both.rank - 1] = inner;
  float* result = static_cast<float*>(call.output(0, dims, both.rank));
  over_rows(call, rows, width, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) swiglu_row(both.as<float>() + row * width, inner, result + row * inner);
  });
  return nullptr;
}

}  // namespace jakiro
