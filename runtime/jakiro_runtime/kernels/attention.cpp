// TreeAttention: attention over the KV cache and over the rows of the call that a tree mask lets each row see.
//
//     TreeAttention(query [batch, heads, rows, head_dim], past_key, past_value [batch, kv_heads, capacity, head_dim],
//                   new_key, new_value [batch, kv_heads, others, head_dim], past_length [batch], visible [batch, rows, others])
//         -> [batch, rows, heads * head_dim]
//
// Why so: the result must be the same bits whether a key lies in the cache or in the call, because speculative decoding is exact
// only if a token's result does not depend on how it was verified. So what a row sees is ordered by position: the cache's slots,
// then the visible rows, ascending (a parent precedes its child). A score is computed alike for every key, and sums run over
// positions, each in a lane given by the position alone: the same terms in the same order, for which float32 is enough.
//
// Memory traffic: a key of the cache is read once, a value once for every 32 query rows of its head, and empty slots are never
// read. Blocks of slots stay in L1 while the rows pass over them.
#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "attention_rows.h"
#include "operators.h"
#include "wait.h"

namespace jakiro {
namespace {

constexpr int64_t kTasks = 8;
constexpr int64_t kMaxScoreBytes = int64_t{1} << 26;  // of sequences that are processed together

// Attention of some sequences, in two steps: scores of a block of keys for every query of its head, so that a key is transposed
// once; then softmax and values of a few queries at a time.
class BatchAttention {
 public:
  BatchAttention(const Shape& shape, std::vector<KVSegment> segments, std::vector<const float*> queries, std::vector<float*> outs,
                 const uint8_t* visible)
      : shape_(shape), segments_(std::move(segments)), queries_(std::move(queries)), outs_(std::move(outs)), visible_(visible) {
    per_head_ = shape.heads / shape.kv_heads * shape.rows;
    const int64_t chunks = std::max<int64_t>(1, kTasks / static_cast<int64_t>(segments_.size()));
    chunk_rows_ = std::clamp<int64_t>((per_head_ + chunks - 1) / chunks, 1, kMaxRows);
    chunks_ = (per_head_ + chunk_rows_ - 1) / chunk_rows_;
    for (const KVSegment& kv : segments_) longest_ = std::max(longest_, kv.past);
    vectorized_ = shape.dim % kLanes == 0 && (shape.dim / kLanes <= 2 || (shape.dim % 32 == 0 && shape.dim <= 128));
    new_stride_ = (shape.others + kBlock - 1) / kBlock * kBlock;
    stride_ = longest_ + new_stride_ + kBlock;
    blocks_ = vectorized_ ? (longest_ + kBlock - 1) / kBlock + 1 : 0;  // the last one: rows of the call
  }

  static int64_t score_bytes(const Shape& shape, int64_t past) {
    return checked_product(shape.heads * shape.rows, (past + 3 * shape.others + 3 * kBlock) * 4);
  }

  void run(const Call& call) {
    thread_local std::vector<float> scores_of_thread, new_scores_of_thread;
    const int64_t rows = segments_.size() * per_head_, first = segments_.size() * blocks_, second = segments_.size() * chunks_;
    grow(scores_of_thread, checked_product(rows, stride_));
    grow(new_scores_of_thread, checked_product(rows, new_stride_));
    scores_ = scores_of_thread.data(), new_scores_ = new_scores_of_thread.data();
    // A thread that waits for the first step waits for blocks that other threads have claimed and are working on.
    std::atomic<int64_t> claimed{0}, ready{0}, claimed_later{0};
    auto work = [&](size_t) {
      for (int64_t item; (item = claimed.fetch_add(1)) < first; ready.fetch_add(1)) score_block(item / blocks_, item % blocks_);
      wait_for(ready, first);
      for (int64_t item; (item = claimed_later.fetch_add(1)) < second;) attend_chunk(item / chunks_, item % chunks_);
    };
    call.parallel(std::min<int64_t>(kTasks, second), work);
  }

 private:
  static void grow(std::vector<float>& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  }

  void score_block(int64_t head, int64_t block) const {
    const KVSegment& kv = segments_[head];
    const float* const* queries = queries_.data() + head * per_head_;
    const int rows = static_cast<int>(per_head_);
    if (block == blocks_ - 1) {
      return score(kv.new_key, shape_.others, shape_.dim, rows, queries, new_scores_ + head * per_head_ * new_stride_,
                   new_stride_);
    }
    const int64_t at = block * kBlock, count = std::min(kBlock, kv.past - at);
    if (count > 0)
      score(kv.past_key + at * shape_.dim, count, shape_.dim, rows, queries, scores_ + head * per_head_ * stride_ + at, stride_);
  }

  void attend_chunk(int64_t head, int64_t chunk) const {
    thread_local VisibleRows visible_rows[kMaxRows];
    const int64_t groups = shape_.heads / shape_.kv_heads, begin = chunk * chunk_rows_, first = head * per_head_ + begin;
    const int count = static_cast<int>(std::min(chunk_rows_, per_head_ - begin));
    const uint8_t* visible = visible_ + head / shape_.kv_heads * shape_.rows * shape_.others;
    for (int n = 0; n < count; ++n) {
      const uint8_t* row_mask = visible + (begin + n) / groups * shape_.others;
      visible_rows[n].clear();
      for (int64_t other = 0; other < shape_.others; ++other) {
        if (row_mask[other]) visible_rows[n].push_back(static_cast<int32_t>(other));
      }
    }
    const KVSegment& kv = segments_[head];
    float *scores = scores_ + first * stride_,
          *new_scores = new_scores_ + first * new_stride_, *const *outs = outs_.data() + first;
    if (!vectorized_) {
      for (int n = 0; n < count; ++n)
        attend_any_dim(shape_, kv, queries_[first + n], visible_rows[n], scores + n * stride_, outs[n]);
      return;
    }
    switch (shape_.dim / kLanes) {
      case 1:
        return attend<1>(count, shape_, kv, visible_rows, scores, stride_, new_scores, new_stride_, outs);
      case 2:
        return attend<2>(count, shape_, kv, visible_rows, scores, stride_, new_scores, new_stride_, outs);
      case 4:
        return attend<4>(count, shape_, kv, visible_rows, scores, stride_, new_scores, new_stride_, outs);
      case 6:
        return attend<6>(count, shape_, kv, visible_rows, scores, stride_, new_scores, new_stride_, outs);
      case 8:
        return attend<8>(count, shape_, kv, visible_rows, scores, stride_, new_scores, new_stride_, outs);
    }
  }

  const Shape shape_;
  const std::vector<KVSegment> segments_;    // [sequences * kv_heads]
  const std::vector<const float*> queries_;  // [segments, rows of the head]
  const std::vector<float*> outs_;
  const uint8_t* visible_;
  int64_t per_head_, chunk_rows_, chunks_, blocks_, new_stride_, stride_, longest_ = 0;
  bool vectorized_;
  float *scores_ = nullptr, *new_scores_ = nullptr;  // [segments, rows of the head, stride or new_stride]
};

}  // namespace

void tree_attention(const Call& call) {
  Dim batch{"batch"}, heads{"heads", 1}, rows{"rows"}, dim{"head_dim", 1}, kv_heads{"kv_heads", 1}, capacity{"capacity"},
      others{"others"};
  const float* query = call.input(0, batch, heads, rows, dim).as<float>();
  const float* past_key = call.input(1, batch, kv_heads, capacity, dim).as<float>();
  const float* past_value = call.input(2, batch, kv_heads, capacity, dim).as<float>();
  const float* new_key = call.input(3, batch, kv_heads, others, dim).as<float>();
  const float* new_value = call.input(4, batch, kv_heads, others, dim).as<float>();
  const int64_t* past = call.lengths(5, batch, 0, capacity);
  const uint8_t* visible = call.input(6, batch, rows, others).as<uint8_t>();  // a file's booleans may be other than 0 and 1
  if (heads % kv_heads != 0) call.refuse(heads, " heads are no multiple of ", kv_heads, " kv_heads");
  const int64_t groups = heads / kv_heads, queries = groups * rows;
  if (queries > kMaxDim) call.refuse("input query has too many rows for one kv_head");
  const Shape shape{heads, kv_heads, rows, others, capacity, dim, call.attribute()};
  const int64_t dims[3] = {batch, rows, heads * dim};
  float* result = call.output<float>(0, dims, 3);
  if (batch * rows == 0) return;

  for (int64_t sequence = 0, last; sequence < batch; sequence = last) {
    // as many sequences at once as their scores fit kMaxScoreBytes
    int64_t longest = past[sequence];
    for (last = sequence + 1; last < batch; ++last) {
      longest = std::max(longest, past[last]);
      if (checked_product(last + 1 - sequence, BatchAttention::score_bytes(shape, longest)) > kMaxScoreBytes) break;
    }
    std::vector<KVSegment> segments;
    std::vector<const float*> from;
    std::vector<float*> to;
    for (int64_t each = sequence; each < last; ++each) {
      for (int64_t kv = 0; kv < kv_heads; ++kv) {
        const int64_t head = each * kv_heads + kv, past_at = head * capacity * dim, new_at = head * others * dim;
        segments.push_back({past_key + past_at, past_value + past_at, new_key + new_at, new_value + new_at, past[each]});
        for (int64_t n = 0; n < queries; ++n) {
          const int64_t row = n / groups, which = kv * groups + n % groups;
          from.push_back(query + ((each * heads + which) * rows + row) * dim);
          to.push_back(result + ((each * rows + row) * heads + which) * dim);
        }
      }
    }
    BatchAttention(shape, std::move(segments), std::move(from), std::move(to), visible + sequence * rows * others).run(call);
  }
}

}  // namespace jakiro
