// TreeAttention: rows that see a cache and some of the rows beside them.
//
//     TreeAttention(query [batch, heads, rows, head_dim], past_key, past_value [batch, kv_heads, capacity, head_dim],
//                   new_key, new_value [batch, kv_heads, rows, head_dim], past_length [batch], visible [batch, rows, rows])
//         -> [batch, rows, heads, head_dim]
//
// Bit for bit the same wherever a key lies. What a row sees is put in the order of positions: the cache's slots, then the visible
// rows, ascending (a parent precedes its child). A score is computed alike for every key; sums run over positions, each in a lane
// that its position alone decides. A token among the rows of a call and the same token in the cache have one position, so every sum
// has the same terms in the same order, and float32 is enough. Empty slots of the cache are never read: a step costs what is cached.
//
// Bytes: each key and value of the past once for every kRows query rows of a key/value head, from memory once and from the caches
// after that.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define JAKIRO_AVX512 1
#endif

namespace jakiro {
namespace {

struct Shape {
  int64_t heads, kv_heads, rows, capacity, dim;
  float scaling;
};

// The keys and values that one key/value head of one sequence has.
struct Part {
  const float *past_key, *past_value, *new_key, *new_value;
  int64_t past;
};

// What a query row sees among the rows of the call, ascending.
using Seen = std::vector<int32_t>;

// ---- portable -------------------------------------------------------------------------------------------------------------

float dot(const float* a, const float* b, int64_t count) {
  float lanes[8] = {};
  int64_t n = 0;
  for (; n + 8 <= count; n += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += a[n + lane] * b[n + lane];
  }
  for (; n < count; ++n) lanes[n % 8] += a[n] * b[n];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

void attend_plain(const Shape& shape, const Part& part, const float* query, const Seen& seen, float* scores, float* out) {
  const int64_t dim = shape.dim, count = part.past + static_cast<int64_t>(seen.size());
  for (int64_t n = 0; n < part.past; ++n) scores[n] = dot(query, part.past_key + n * dim, dim) * shape.scaling;
  for (int64_t n = part.past; n < count; ++n) {
    scores[n] = dot(query, part.new_key + seen[n - part.past] * dim, dim) * shape.scaling;
  }
  std::fill(out, out + dim, 0.0f);
  if (count == 0) return;
  const float largest = *std::max_element(scores, scores + count);
  float total = 0;
  for (int64_t n = 0; n < count; ++n) total += scores[n] = std::exp(scores[n] - largest);
  for (int64_t n = 0; n < count; ++n) {
    const float* value = n < part.past ? part.past_value + n * dim : part.new_value + seen[n - part.past] * dim;
    for (int64_t d = 0; d < dim; ++d) out[d] += scores[n] * value[d];
  }
  for (int64_t d = 0; d < dim; ++d) out[d] /= total;
}

#ifdef JAKIRO_AVX512

// ---- AVX-512 --------------------------------------------------------------------------------------------------------------

// e^x for x <= 0, within two units in the last place
inline __m512 exponential(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f}) {
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  }
  return _mm512_scalef_ps(p, n);
}

// The sums of 16 vectors, each in the lane of its number, all added up in the same order.
inline __m512 sums_of(__m512 (&v)[16]) {
  __m512 pairs[8], fours[4];
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) {
    pairs[n] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * n], v[2 * n + 1]), _mm512_unpackhi_ps(v[2 * n], v[2 * n + 1]));
  }
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) {
    const __m512d a = _mm512_castps_pd(pairs[2 * n]), b = _mm512_castps_pd(pairs[2 * n + 1]);
    fours[n] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  // four 128-bit quarters each: quarters 0 + 1 and 2 + 3, then their sums
  const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x88), _mm512_shuffle_f32x4(fours[0], fours[1], 0xDD));
  const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2], fours[3], 0x88), _mm512_shuffle_f32x4(fours[2], fours[3], 0xDD));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}

// Scores of 16 keys against one query of 16 * kWide entries.
template <int kWide>
inline __m512 scores_of(const __m512 (&query)[kWide], const float* const (&keys)[16]) {
  __m512 v[16];
#pragma GCC unroll 16
  for (int n = 0; n < 16; ++n) {
    v[n] = _mm512_mul_ps(query[0], _mm512_loadu_ps(keys[n]));
#pragma GCC unroll 8
    for (int d = 1; d < kWide; ++d) v[n] = _mm512_fmadd_ps(query[d], _mm512_loadu_ps(keys[n] + 16 * d), v[n]);
  }
  return sums_of(v);
}

template <int kWide, int kRows>
void attend_wide(const Shape& shape, const Part& part, const float* const* queries, const Seen* seen, float* scores,
                 int64_t stride, float* const* outs) {
  constexpr int64_t kDim = 16 * kWide;
  // scores, a block of keys at a time for all rows; what lies behind the last key is overwritten or cut off
  for (int64_t n = 0; n < part.past; n += 16) {
    const float* keys[16];
    for (int k = 0; k < 16; ++k) keys[k] = part.past_key + std::min(n + k, part.past - 1) * kDim;
    for (int r = 0; r < kRows; ++r) {
      __m512 query[kWide];
      for (int d = 0; d < kWide; ++d) query[d] = _mm512_loadu_ps(queries[r] + 16 * d);
      _mm512_storeu_ps(scores + r * stride + n, scores_of<kWide>(query, keys));
    }
  }
  float totals[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int64_t more = seen[r].size(), count = part.past + more;
    float* row = scores + r * stride;
    __m512 query[kWide];
    for (int d = 0; d < kWide; ++d) query[d] = _mm512_loadu_ps(queries[r] + 16 * d);
    for (int64_t n = 0; n < more; n += 16) {
      const float* keys[16];
      for (int k = 0; k < 16; ++k) keys[k] = part.new_key + seen[r][std::min(n + k, more - 1)] * kDim;
      _mm512_storeu_ps(row + part.past + n, scores_of<kWide>(query, keys));
    }
    // softmax without its division: numerators and their sum, a lane for each position modulo 16
    const __m512 lowest = _mm512_set1_ps(-3.4e38f), scaling = _mm512_set1_ps(shape.scaling);
    __m512 largest = lowest;
    for (int64_t n = 0; n < count; n += 16) {
      const __mmask16 there = count - n >= 16 ? 0xFFFF : (1u << (count - n)) - 1;
      largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(lowest, there, row + n));
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int64_t n = 0; n < count; n += 16) {
      const __mmask16 there = count - n >= 16 ? 0xFFFF : (1u << (count - n)) - 1;
      const __m512 below = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + n), top), scaling);
      const __m512 each = _mm512_maskz_mov_ps(there, exponential(below));
      sum = _mm512_add_ps(sum, each);
      _mm512_storeu_ps(row + n, each);
    }
    totals[r] = count ? _mm512_reduce_add_ps(sum) : 1.0f;
  }
  __m512 out[kRows][kWide];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) out[r][d] = _mm512_setzero_ps();
  }
  for (int64_t n = 0; n < part.past; ++n) {
    __m512 value[kWide];
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) value[d] = _mm512_loadu_ps(part.past_value + n * kDim + 16 * d);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 weight = _mm512_set1_ps(scores[r * stride + n]);
#pragma GCC unroll 8
      for (int d = 0; d < kWide; ++d) out[r][d] = _mm512_fmadd_ps(weight, value[d], out[r][d]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    for (size_t n = 0; n < seen[r].size(); ++n) {
      const __m512 weight = _mm512_set1_ps(scores[r * stride + part.past + n]);
      const float* value = part.new_value + seen[r][n] * kDim;
#pragma GCC unroll 8
      for (int d = 0; d < kWide; ++d) out[r][d] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(value + 16 * d), out[r][d]);
    }
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) _mm512_storeu_ps(outs[r] + 16 * d, _mm512_div_ps(out[r][d], _mm512_set1_ps(totals[r])));
  }
}

template <int kWide>
void attend_some(int count, const Shape& shape, const Part& part, const float* const* queries, const Seen* seen, float* scores,
                 int64_t stride, float* const* outs) {
  if (count == 4) return attend_wide<kWide, 4>(shape, part, queries, seen, scores, stride, outs);
  if (count == 3) return attend_wide<kWide, 3>(shape, part, queries, seen, scores, stride, outs);
  if (count == 2) return attend_wide<kWide, 2>(shape, part, queries, seen, scores, stride, outs);
  attend_wide<kWide, 1>(shape, part, queries, seen, scores, stride, outs);
}

#endif

constexpr int kTogether = 4;  // query rows that read a key or value together

void attend(int count, const Shape& shape, const Part& part, const float* const* queries, const Seen* seen, float* scores,
            int64_t stride, float* const* outs) {
#ifdef JAKIRO_AVX512
  switch (shape.dim) {
    case 16: return attend_some<1>(count, shape, part, queries, seen, scores, stride, outs);
    case 32: return attend_some<2>(count, shape, part, queries, seen, scores, stride, outs);
    case 64: return attend_some<4>(count, shape, part, queries, seen, scores, stride, outs);
    case 96: return attend_some<6>(count, shape, part, queries, seen, scores, stride, outs);
    case 128: return attend_some<8>(count, shape, part, queries, seen, scores, stride, outs);
  }
#endif
  for (int r = 0; r < count; ++r) attend_plain(shape, part, queries[r], seen[r], scores + r * stride, outs[r]);
}

}  // namespace

ort::Status* tree_attention(const Call& call, float scaling) {
  const Tensor query = call.input(0), past_key = call.input(1), past_value = call.input(2), new_key = call.input(3);
  const Tensor new_value = call.input(4), past_length = call.input(5), visible = call.input(6);
  const int64_t batch = query.dims[0];
  const Shape shape{query.dims[1], past_key.dims[1], query.dims[2], past_key.dims[2], query.dims[3], scaling};
  const int64_t rows = shape.rows, dim = shape.dim, groups = shape.heads / shape.kv_heads, queries = groups * rows;
  if (past_key.dims[3] != dim || new_key.dims[2] != rows || visible.dims[2] != rows || shape.heads % shape.kv_heads != 0) {
    return call.fail("TreeAttention: queries, keys and mask do not fit together");
  }
  const int64_t dims[4] = {batch, rows, shape.heads, dim};
  float* result = static_cast<float*>(call.output(0, dims, 4));
  if (batch * rows == 0) return nullptr;

  // with few rows fewer go together, so that every thread has some
  const int64_t together = queries >= 16 ? kTogether : std::min<int64_t>(kTogether, (queries + 1) / 2);
  const int64_t chunks = (queries + together - 1) / together;
  auto work = [&](size_t task) {
    const int64_t sequence = task / (shape.kv_heads * chunks), kv = task / chunks % shape.kv_heads, chunk = task % chunks;
    const int64_t head = sequence * shape.kv_heads + kv, slots = head * shape.capacity * dim;
    const Part part{past_key.as<float>() + slots, past_value.as<float>() + slots, new_key.as<float>() + head * rows * dim,
                    new_value.as<float>() + head * rows * dim, std::min(past_length.as<int64_t>()[sequence], shape.capacity)};
    thread_local std::vector<float> scores;
    thread_local Seen seen[kTogether];
    const int64_t stride = part.past + rows + 16;
    if (static_cast<int64_t>(scores.size()) < kTogether * stride) scores.resize(kTogether * stride);
    const float* from[kTogether];
    float* to[kTogether];
    const int count = static_cast<int>(std::min(together, queries - chunk * together));
    for (int n = 0; n < count; ++n) {
      const int64_t row = (chunk * together + n) / groups, which = kv * groups + (chunk * together + n) % groups;
      from[n] = query.as<float>() + ((sequence * shape.heads + which) * rows + row) * dim;
      to[n] = result + ((sequence * rows + row) * shape.heads + which) * dim;
      const bool* sees = visible.as<bool>() + (sequence * rows + row) * rows;
      seen[n].clear();
      for (int64_t other = 0; other < rows; ++other) {
        if (sees[other]) seen[n].push_back(static_cast<int32_t>(other));
      }
    }
    attend(count, shape, part, from, seen, scores.data(), stride, to);
  };
  call.parallel(batch * shape.kv_heads * chunks, work);
  return nullptr;
}

}  // namespace jakiro
