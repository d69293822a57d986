// Quantization of activations, row by row, into the order in which the GEMM reads them.
//
// Why interleaved: a pass multiplies several rows with each tile of weights, so four entries of each of its rows lie next to each
// other and the inner loop walks through memory once. The quantized entries overwrite the floats of a scratch row that were read
// already.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "hadamard.h"
#include "int4.h"
#include "int8.h"

namespace jakiro {
namespace {

constexpr float kMinAbsMax = 0x1p-100f;  // a row of zeros is divided by this

float reduce_abs_max(const float* x, int64_t count) {
  Floats most = broadcast(kMinAbsMax);
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) most = max(most, abs(load(x + n)));
  float largest = reduce_max(most);
  for (; n < count; ++n) largest = std::max(largest, std::fabs(x[n]));
  return largest;
}

// Entries of one row, four at a time, among those of the `pass_rows` rows of its pass.
template <typename Entry>
void interleave(const Entry* from, int64_t in, int64_t pass_rows, Entry* to) {
  for (int64_t n = 0; n < in; n += 4) std::memcpy(to + n * pass_rows, from + n, 4 * sizeof(Entry));
}

}  // namespace

void Int8::quantize(float* row, int64_t first, int64_t index, int64_t pass_rows, Rows& rows) const {
  for (int64_t start = 0; start < in_; start += rotation_block_) hadamard(row + start, rotation_block_);
  const float largest = reduce_abs_max(row, in_), steps = 127.0f / largest;
  Entry* entries = reinterpret_cast<Entry*>(row);
  Ints sums = zero();
  int64_t n = 0;
  for (; n + kLanes <= in_; n += kLanes) {
    const Ints each = round_to_int(load(row + n) * broadcast(steps));
    sums = sums + each;
    store_entries(entries + n, each);
  }
  uint32_t sum = reduce_add(sums);
  for (; n < in_; n += kQuad) {
    Entry four[kQuad];
    for (int64_t k = 0; k < kQuad; ++k) {
      four[kOrder[k]] = static_cast<Entry>(_mm_cvtss_si32(_mm_set_ss(row[n + k] * steps)));
      sum += four[kOrder[k]];
    }
    std::memcpy(entries + n, four, sizeof four);
  }
  rows.scales[first + index] = largest / 127.0f;
  rows.offsets[first + index] = static_cast<int32_t>(128 * sum);
  interleave(entries, in_, pass_rows, rows.entries.data() + first * in_ + index * kQuad);
}

void Int4::quantize(float* row, int64_t first, int64_t index, int64_t pass_rows, Rows& rows) const {
  Entry* entries = reinterpret_cast<Entry*>(row);
  float* scales = rows.scales.data() + 2 * (first * (in_ / kGroup) + index);
  for (int64_t n = 0; n < in_; n += kGroup, scales += 2 * pass_rows) {
    const Floats a = load(row + n), b = load(row + n + kLanes);
    const float largest = std::max(kMinAbsMax, reduce_max(max(abs(a), abs(b))));
    const Ints first_half = round_to_int(a * broadcast(127.0f / largest)),
               second_half = round_to_int(b * broadcast(127.0f / largest));
    store_bytes(entries + n, first_half);
    store_bytes(entries + n + kLanes, second_half);
    scales[0] = largest / 127.0f;
    scales[1] = scales[0] * static_cast<float>(static_cast<int32_t>(reduce_add(first_half + second_half)));
  }
  interleave(entries, in_, pass_rows, rows.entries.data() + first * in_ + index * kQuad);
}

}  // namespace jakiro
