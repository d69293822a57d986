// TreeAttention: rows that see a cache and some of the rows beside them.
//
//     TreeAttention(query [batch, heads, rows, head_dim], past_key, past_value [batch, kv_heads, capacity, head_dim],
//                   new_key, new_value [batch, kv_heads, others, head_dim], past_length [batch], visible [batch, rows, others])
//         -> [batch, rows, heads * head_dim]
//
// Bit for bit the same wherever a key lies. What a row sees is put in the order of positions: the cache's slots, then the visible
// rows, ascending (a parent precedes its child). A score is computed alike for every key; sums run over positions, each in a lane
// that its position alone decides. A token among the rows of a call and the same token in the cache have one position, so every sum
// has the same terms in the same order, and float32 is enough. Empty slots of the cache are never read: a step costs what is cached.
//
// Bytes: a key of the past is read once; a value once for every 32 query rows of its head. Blocks of slots stay in the first cache
// while the rows pass over them.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "simd.h"

namespace jakiro {
namespace {

struct Shape {
  int64_t heads, kv_heads, rows, others, capacity, dim;
  float scaling;
};

// The keys and values that one key/value head of one sequence has.
struct Part {
  const float *past_key, *past_value, *new_key, *new_value;
  int64_t past;
};

constexpr int kMost = 32;  // query rows of one task
constexpr int64_t kTasks = 8;
constexpr int64_t kRoom = int64_t{1} << 26;  // bytes of scores
constexpr int64_t kBlock = 64;  // slots whose keys or values stay in the first cache while every row passes over them

// What a query row sees among the rows of the call, ascending.
using Seen = std::vector<int32_t>;

// ---- any head_dim-----------------------------------------------------------------------------------------------------------

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

// ---- head_dim of whole vectors -----------------------------------------------------------------------------------------------

// Rows and vectors whose sums are kept in registers together, beside what they are multiplied by.
constexpr int kScoreWide = kRegisters == 32 ? 4 : 1, kScoreRows = 4;
constexpr int kValueWide = kRegisters == 32 ? 8 : 2, kValueSums = kRegisters == 32 ? 16 : 4;

// Scores of 16 kWide keys, which lie as columns [dim, kBlock], for kRows queries: one chain of additions over the entries each.
template <int kRows, int kWide>
inline void score_rows(const float* columns, int64_t dim, const float* const* queries, float* to, int64_t stride) {
  Floats sums[kRows][kWide];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) sums[r][k] = all(0.0f);
  }
  for (int64_t d = 0; d < dim; ++d) {
    Floats keys[kWide];
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) keys[k] = held(load(columns + d * kBlock + kLanes * k));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Floats query = all(queries[r][d]);
#pragma GCC unroll 4
      for (int k = 0; k < kWide; ++k) sums[r][k] = fused(query, keys[k], sums[r][k]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int k = 0; k < kWide; ++k) store(to + r * stride + kLanes * k, sums[r][k]);
  }
}

template <int kWide>
inline void score_every(const float* columns, int64_t dim, int rows, const float* const* queries, float* to, int64_t stride) {
  int r = 0;
  for (; rows - r >= kScoreRows; r += kScoreRows) score_rows<kScoreRows, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 3) score_rows<3, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 2) score_rows<2, kWide>(columns, dim, queries + r, to + r * stride, stride);
  if (rows - r == 1) score_rows<1, kWide>(columns, dim, queries + r, to + r * stride, stride);
}

// Scores of `count` keys for every row, [rows, stride]; up to 15 floats behind the last are overwritten.
void score(const float* keys, int64_t count, int64_t dim, int rows, const float* const* queries, float* to, int64_t stride) {
  alignas(64) float columns[128 * kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    for (int64_t n = 0; n < std::min(kBlock, count - first); n += 16) {
      for (int64_t d = 0; d < dim; d += 16) {
        const float* from[16];
        for (int k = 0; k < 16; ++k) from[k] = keys + std::min(first + n + k, count - 1) * dim + d;
        transpose_16<kBlock>(from, columns + d * kBlock + n);
      }
    }
    const int64_t vectors = (std::min(kBlock, count - first) + kLanes - 1) / kLanes;
    for (int64_t v = 0; v < vectors; v += kScoreWide) {
      const float* part = columns + v * kLanes;
      float* scores = to + first + v * kLanes;
      switch (std::min<int64_t>(vectors - v, kScoreWide)) {
        case 1: score_every<1>(part, dim, rows, queries, scores, stride); break;
        case 2: score_every<std::min(2, kScoreWide)>(part, dim, rows, queries, scores, stride); break;
        case 3: score_every<std::min(3, kScoreWide)>(part, dim, rows, queries, scores, stride); break;
        default: score_every<kScoreWide>(part, dim, rows, queries, scores, stride);
      }
    }
  }
}

// Adds weight times value, position by position, to what is in out [16 kWide] for each of kRows rows; the values of two positions are
// `apart` floats apart. A weight of 0 adds nothing.
template <int kWide, int kRows>
inline void add_values(const float* value, int64_t apart, int64_t count, const float* const* weights, float* const* outs, int64_t at) {
  Floats out[kRows][kWide];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) out[r][d] = load(outs[r] + at + kLanes * d);
  }
  for (int64_t n = 0; n < count; ++n, value += apart) {
    Floats each[kWide];
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) each[d] = held(load(value + kLanes * d));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Floats weight = all(weights[r][n]);
#pragma GCC unroll 8
      for (int d = 0; d < kWide; ++d) out[r][d] = fused(weight, each[d], out[r][d]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < kWide; ++d) store(outs[r] + at + kLanes * d, out[r][d]);
  }
}

// As many rows and vectors of an entry together as their sums have registers.
template <int kWide>
void add_values(const float* value, int64_t count, int rows, const float* first, int64_t stride, float* const* outs) {
  constexpr int kSome = std::min(kWide, kValueWide), kTogether = std::min(4, kValueSums / kSome);
  const float* weights[kMost];
  for (int r = 0; r < rows; ++r) weights[r] = first + r * stride;
  for (int64_t at = 0; at < kLanes * kWide; at += kLanes * kSome) {
    const auto add = [&](auto many, int r) {
      add_values<kSome, decltype(many)::value>(value + at, kLanes * kWide, count, weights + r, outs + r, at);
    };
    int r = 0;
    for (; rows - r >= kTogether; r += kTogether) add(std::integral_constant<int, kTogether>(), r);
    if constexpr (kTogether > 2) {
      for (; rows - r >= 2; r += 2) add(std::integral_constant<int, 2>(), r);
    }
    if (r < rows) add(std::integral_constant<int, 1>(), r);
  }
}

// Scores become softmax numerators; returns their sum, a lane for each position modulo 16.
float numerators(float* scores, int64_t count, float by) {
  const Floats lowest = all(-3.4e38f), scaling = all(by);
  Floats largest = lowest;
  for (int64_t n = 0; n < count; n += kLanes) largest = larger(largest, load_first(scores + n, count - n, lowest));
  const Floats top = all(largest_of(largest));
  Floats sum = all(0.0f);
  for (int64_t n = 0; n < count; n += kLanes) {
    const Floats below = (load_first(scores + n, count - n, top) - top) * scaling;
    const Floats each = keep_first(exponential(below), count - n);
    sum = sum + each;
    store_first(scores + n, count - n, each);
  }
  return count ? sum_of(sum) : 1.0f;
}

// Queries [count] against what they see, once their scores of the past [stride] and of all rows of the call [others] are there.
template <int kWide>
void attend(int count, const Shape& shape, const Part& part, const Seen* seen, float* scores, int64_t stride, float* beside,
            int64_t others, float* const* outs) {
  constexpr int64_t kDim = kLanes * kWide;
  float totals[kMost];
  for (int r = 0; r < count; ++r) {
    float *row = scores + r * stride, *dense = beside + r * others;
    const int64_t more = seen[r].size();
    for (int64_t n = 0; n < more; ++n) row[part.past + n] = dense[seen[r][n]];
    totals[r] = numerators(row, part.past + more, shape.scaling);
    std::fill(dense, dense + shape.others, 0.0f);
    for (int64_t n = 0; n < more; ++n) dense[seen[r][n]] = row[part.past + n];
    std::fill(outs[r], outs[r] + kDim, 0.0f);
  }
  for (int64_t n = 0; n < part.past; n += kBlock) {
    add_values<kWide>(part.past_value + n * kDim, std::min(kBlock, part.past - n), count, scores + n, stride, outs);
  }
  add_values<kWide>(part.new_value, shape.others, count, beside, others, outs);
  for (int r = 0; r < count; ++r) {
    for (int64_t d = 0; d < kDim; ++d) outs[r][d] /= totals[r];
  }
}

// The work of some sequences, in two steps: scores of a block of keys for every query of its head, so that keys are turned once;
// then softmax and values of a few queries.
class Steps {
 public:
  Steps(const Shape& shape, std::vector<Part> parts, std::vector<const float*> queries, std::vector<float*> outs, const bool* visible)
      : shape_(shape), parts_(std::move(parts)), queries_(std::move(queries)), outs_(std::move(outs)), visible_(visible) {
    per_head_ = shape.heads / shape.kv_heads * shape.rows;
    const int64_t chunks = std::max<int64_t>(1, kTasks / static_cast<int64_t>(parts_.size()));
    together_ = std::clamp<int64_t>((per_head_ + chunks - 1) / chunks, 1, kMost);
    chunks_ = (per_head_ + together_ - 1) / together_;
    for (const Part& part : parts_) longest_ = std::max(longest_, part.past);
    wide_ = shape.dim % kLanes == 0 && (shape.dim / kLanes <= 2 || (shape.dim % 32 == 0 && shape.dim <= 128));
    others_ = (shape.others + kBlock - 1) / kBlock * kBlock;
    stride_ = longest_ + others_ + kBlock;
    blocks_ = wide_ ? (longest_ + kBlock - 1) / kBlock + 1 : 0;  // the last one: rows of the call
  }

  // Bytes of scores.
  static int64_t room(const Shape& shape, int64_t past) { return shape.heads * shape.rows * (past + 3 * shape.others + 3 * kBlock) * 4; }

  void run(const Call& call) {
    thread_local std::vector<float> scores_of_thread, beside_of_thread;
    const int64_t rows = parts_.size() * per_head_, first = parts_.size() * blocks_, second = parts_.size() * chunks_;
    if (static_cast<int64_t>(scores_of_thread.size()) < rows * stride_) scores_of_thread.resize(rows * stride_);
    if (static_cast<int64_t>(beside_of_thread.size()) < rows * others_) beside_of_thread.resize(rows * others_);
    scores_ = scores_of_thread.data(), beside_ = beside_of_thread.data();
    // Who waits for the first step, waits for work that somebody has claimed and is doing.
    std::atomic<int64_t> claimed{0}, ready{0}, claimed_later{0};
    auto work = [&](size_t) {
      for (int64_t item; (item = claimed.fetch_add(1)) < first; ready.fetch_add(1)) score_block(item / blocks_, item % blocks_);
      while (ready.load(std::memory_order_acquire) < first) _mm_pause();
      for (int64_t item; (item = claimed_later.fetch_add(1)) < second;) attend_some(item / chunks_, item % chunks_);
    };
    call.parallel(std::min<int64_t>(kTasks, second), work);
  }

 private:
  void score_block(int64_t head, int64_t block) const {
    const Part& part = parts_[head];
    const float* const* queries = queries_.data() + head * per_head_;
    const int rows = static_cast<int>(per_head_);
    if (block == blocks_ - 1) {
      return score(part.new_key, shape_.others, shape_.dim, rows, queries, beside_ + head * per_head_ * others_, others_);
    }
    const int64_t at = block * kBlock, count = std::min(kBlock, part.past - at);
    if (count > 0) score(part.past_key + at * shape_.dim, count, shape_.dim, rows, queries, scores_ + head * per_head_ * stride_ + at, stride_);
  }

  void attend_some(int64_t head, int64_t chunk) const {
    thread_local Seen seen[kMost];
    const int64_t groups = shape_.heads / shape_.kv_heads, begin = chunk * together_, first = head * per_head_ + begin;
    const int count = static_cast<int>(std::min(together_, per_head_ - begin));
    const bool* visible = visible_ + head / shape_.kv_heads * shape_.rows * shape_.others;
    for (int n = 0; n < count; ++n) {
      const bool* sees = visible + (begin + n) / groups * shape_.others;
      seen[n].clear();
      for (int64_t other = 0; other < shape_.others; ++other) {
        if (sees[other]) seen[n].push_back(static_cast<int32_t>(other));
      }
    }
    const Part& part = parts_[head];
    float *scores = scores_ + first * stride_, *beside = beside_ + first * others_, *const *outs = outs_.data() + first;
    if (!wide_) {
      for (int n = 0; n < count; ++n) attend_plain(shape_, part, queries_[first + n], seen[n], scores + n * stride_, outs[n]);
      return;
    }
    switch (shape_.dim / kLanes) {
      case 1: return attend<1>(count, shape_, part, seen, scores, stride_, beside, others_, outs);
      case 2: return attend<2>(count, shape_, part, seen, scores, stride_, beside, others_, outs);
      case 4: return attend<4>(count, shape_, part, seen, scores, stride_, beside, others_, outs);
      case 6: return attend<6>(count, shape_, part, seen, scores, stride_, beside, others_, outs);
      case 8: return attend<8>(count, shape_, part, seen, scores, stride_, beside, others_, outs);
    }
  }

  const Shape shape_;
  const std::vector<Part> parts_;               // of every key/value head of every sequence
  const std::vector<const float*> queries_;     // [parts, per_head]
  const std::vector<float*> outs_;
  const bool* visible_;
  int64_t per_head_, together_, chunks_, blocks_, others_, stride_, longest_ = 0;
  bool wide_;
  float *scores_ = nullptr, *beside_ = nullptr;  // [parts, per_head, stride or others]
};

}  // namespace

ort::Status* tree_attention(const Call& call) {
  const Tensor query = call.input(0), past_key = call.input(1), past_value = call.input(2), new_key = call.input(3);
  const Tensor new_value = call.input(4), past_length = call.input(5), visible = call.input(6);
  const int64_t batch = query.dims[0];
  const Shape shape{query.dims[1], past_key.dims[1], query.dims[2], new_key.dims[2], past_key.dims[2], query.dims[3], call.attribute()};
  const int64_t rows = shape.rows, others = shape.others, dim = shape.dim, groups = shape.heads / shape.kv_heads, queries = groups * rows;
  if (past_key.dims[3] != dim || visible.dims[1] != rows || visible.dims[2] != others || shape.heads % shape.kv_heads != 0) {
    return call.fail("TreeAttention: queries, keys and mask do not fit together");
  }
  const int64_t dims[3] = {batch, rows, shape.heads * dim};
  float* result = static_cast<float*>(call.output(0, dims, 3));
  if (batch * rows == 0) return nullptr;

  const auto past = [&](int64_t sequence) { return std::min(past_length.as<int64_t>()[sequence], shape.capacity); };
  for (int64_t sequence = 0, last; sequence < batch; sequence = last) {
    // as many sequences at once as have room for their scores
    int64_t longest = past(sequence);
    for (last = sequence + 1; last < batch; ++last) {
      longest = std::max(longest, past(last));
      if ((last + 1 - sequence) * Steps::room(shape, longest) > kRoom) break;
    }
    std::vector<Part> parts;
    std::vector<const float*> from;
    std::vector<float*> to;
    for (int64_t each = sequence; each < last; ++each) {
      for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
        const int64_t head = each * shape.kv_heads + kv, slots = head * shape.capacity * dim, fresh = head * others * dim;
        parts.push_back({past_key.as<float>() + slots, past_value.as<float>() + slots, new_key.as<float>() + fresh,
                         new_value.as<float>() + fresh, past(each)});
        for (int64_t n = 0; n < queries; ++n) {
          const int64_t row = n / groups, which = kv * groups + n % groups;
          from.push_back(query.as<float>() + ((each * shape.heads + which) * rows + row) * dim);
          to.push_back(result + ((each * rows + row) * shape.heads + which) * dim);
        }
      }
    }
    Steps(shape, std::move(parts), std::move(from), std::move(to), visible.as<bool>() + sequence * rows * others).run(call);
  }
  return nullptr;
}

}  // namespace jakiro
