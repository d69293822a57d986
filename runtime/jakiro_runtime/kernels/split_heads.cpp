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

void split_heads(const Call& call) {
  Dim batch{"batch"}, rows{"rows"}, width{"width", 1}, half{"head_dim / 2", 1}, three = fixed(3);
  const float* qkv = call.input(0, batch, rows, width).as<float>();
  const float* cosines = call.input(1, batch, rows, half).as<float>();
  const float* sines = call.input(2, batch, rows, half).as<float>();
  const int64_t dim = 2 * half;
  const int64_t* parts = call.lengths(3, three, 0, width / dim);
  if (width % dim != 0 || parts[0] + parts[1] + parts[2] != width / dim) {
    call.refuse("input qkv has width ", width, ", expected ", parts[0] + parts[1] + parts[2], " heads of ", dim);
  }
  float* to[3];
  for (size_t n = 0; n < 3; ++n) {
    const int64_t dims[4] = {batch, parts[n], rows, dim};
    to[n] = call.output<float>(n, dims, 4);
  }
  over_rows(call, batch * rows, width, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last; ++at) {
      const float *from = qkv + at * width, *c = cosines + at * half, *s = sines + at * half;
      const int64_t sequence = at / rows, row = at % rows;
      for (int n = 0; n < 3; ++n) {
        for (int64_t head = 0; head < parts[n]; ++head, from += dim) {
          float* out = to[n] + ((sequence * parts[n] + head) * rows + row) * dim;
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
}

}  // namespace jakiro
