// SplitHeads: the output of a fused QKV matmul, split into heads and rotated by RoPE.
//
//     SplitHeads(qkv [batch, rows, sum(parts) * head_dim], cos, sin [batch, rows, head_dim / 2], parts [3])
//         -> query, key, value [batch, parts[n], rows, head_dim]; query and key rotated by halves
//
// Why one kernel: as standard operators this is Split, Transpose and some ten elementwise operators, each a pass over memory and
// a start of its own; here every entry is read and written once.
#include <cstring>

#include "operators.h"
#include "over_rows.h"

namespace jakiro {

ort::Status* split_heads(const Call& call) {
  const Tensor qkv = call.input(0), cosines = call.input(1), sines = call.input(2), parts = call.input(3);
  const int64_t batch = qkv.dims[0], rows = qkv.dims[1], width = qkv.dims[2], half = cosines.dims[2], dim = 2 * half;
  const int64_t* counts = parts.as<int64_t>();
  if ((counts[0] + counts[1] + counts[2]) * dim != width || cosines.dims[0] != batch || cosines.dims[1] != rows) {
    return call.fail("SplitHeads: heads and angles do not fit the rows");
  }
  float* to[3];
  for (size_t n = 0; n < 3; ++n) {
    const int64_t dims[4] = {batch, counts[n], rows, dim};
    to[n] = static_cast<float*>(call.output(n, dims, 4));
  }
  over_rows(call, batch * rows, width, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last; ++at) {
      const float *from = qkv.as<float>() + at * width, *c = cosines.as<float>() + at * half, *s = sines.as<float>() + at * half;
      const int64_t sequence = at / rows, row = at % rows;
      for (int n = 0; n < 3; ++n) {
        for (int64_t head = 0; head < counts[n]; ++head, from += dim) {
          float* out = to[n] + ((sequence * counts[n] + head) * rows + row) * dim;
          if (n == 2) {
            std::memcpy(out, from, dim * sizeof(float));
            continue;
          }
          for (int64_t d = 0; d < half; ++d) {
            out[d] = from[d] * c[d] - from[d + half] * s[d];
            out[d + half] = from[d + half] * c[d] + from[d] * s[d];
          }
        }
      }
    }
  });
  return nullptr;
}

}  // namespace jakiro
