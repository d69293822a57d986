// What stands between a layer's products, each in one pass over its rows. All of it works entry by entry.
#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd.h"

namespace jakiro {
namespace {

constexpr int64_t kAlone = 1 << 16;  // entries below which handing out work costs more than it gives

// Runs work(first, last) over all rows, in parts where there are many entries.
template <typename Work>
void over_rows(const Call& call, int64_t rows, int64_t width, Work work) {
  const int64_t parts = std::clamp<int64_t>(rows * width / kAlone, 1, 16), each = (rows + parts - 1) / parts;
  auto some = [&](size_t part) { work(part * each, std::min<int64_t>(rows, (part + 1) * each)); };
  call.parallel(parts, some);
}

}  // namespace

// SplitHeads(qkv [batch, rows, (sum of parts) * head_dim], cos, sin [batch, rows, head_dim / 2], parts [3])
//     -> query, key, value [batch, parts[n], rows, head_dim], query and key rotated by halves
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

void swiglu_row(const float* both, int64_t inner, float* out) {
  const float *gate = both, *up = both + inner;
  const Floats one = all(1.0f);
  int64_t n = 0;
  for (; n + kLanes <= inner; n += kLanes) {
    const Floats x = load(gate + n), silu = x / (one + exponential(all(0.0f) - x));
    store(out + n, silu * load(up + n));
  }
  for (; n < inner; ++n) out[n] = gate[n] / (1.0f + std::exp(-gate[n])) * up[n];
}

// BestToken(logits [..., vocab]) -> int64 [...], the first of the largest
ort::Status* best_token(const Call& call) {
  const Tensor logits = call.input(0);
  const int64_t vocab = logits.dims[logits.rank - 1], rows = vocab ? logits.count() / vocab : 0;
  int64_t* best = static_cast<int64_t*>(call.output(0, logits.dims, logits.rank - 1));
  auto work = [&](size_t row) {
    const float* x = logits.as<float>() + row * vocab;
    Floats most = all(x[0]);
    int64_t n = 0;
    for (; n + kLanes <= vocab; n += kLanes) most = larger(most, load(x + n));
    float largest = largest_of(most);
    for (; n < vocab; ++n) largest = std::max(largest, x[n]);
    const Floats wanted = all(largest);
    for (n = 0; n + kLanes <= vocab; n += kLanes) {
      if (const uint32_t found = equal(load(x + n), wanted)) {
        n += __builtin_ctz(found);
        break;
      }
    }
    while (n < vocab && x[n] != largest) ++n;
    best[row] = n < vocab ? n : 0;  // no number at all: as good as any
  };
  if (rows) call.parallel(rows, work);
  return nullptr;
}

// SwiGlu(both [..., 2 * inner]) -> [..., inner]: silu of the first half times the second
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
