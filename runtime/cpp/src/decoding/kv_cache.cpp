#include "decoding/kv_cache.h"

#include <cstring>
#include <numeric>

#include "contract.h"

namespace jakiro::runtime {
namespace {

constexpr int64_t kFirstBucket = 256;

// One layer of [layers, ...].
View layer_of(const Buffer& array, int64_t layer) {
  const Shape& shape = array.shape();
  const size_t bytes = std::accumulate(shape.begin() + 1, shape.end(), size_of(array.type()), std::multiplies<size_t>());
  return {array.data() + static_cast<size_t>(layer) * bytes, array.type(), Shape(shape.begin() + 1, shape.end())};
}

}  // namespace

int64_t bucket(int64_t slots) {
  int64_t capacity = kFirstBucket;
  while (capacity < slots) capacity *= 2;
  return capacity;
}

void append_rows(const Buffer& source, const Buffer& target, const Rows& rows, int64_t first) {
  const Shape& from = source.shape();
  const size_t width = static_cast<size_t>(from[4]) * size_of(source.type());
  const int64_t slabs = from[0] * from[1] * from[2];
  for (size_t place = 0, count = 0; place < rows.size(); place += count) {
    for (count = 1; place + count < rows.size() && rows[place + count] == rows[place] + static_cast<int64_t>(count);) ++count;
    for (int64_t slab = 0; slab < slabs; ++slab) {
      const std::byte* const start = source.data() + static_cast<size_t>(slab * from[3] + rows[place]) * width;
      std::byte* const to =
          target.data() + static_cast<size_t>(slab * target.shape()[3] + first + static_cast<int64_t>(place)) * width;
      std::memcpy(to, start, count * width);
    }
  }
}

SequenceBuffer::SequenceBuffer(int64_t layers, int64_t heads, int64_t width, std::vector<ElementType> types)
    : layers_(layers), heads_(heads), width_(width), types_(std::move(types)) {
  reserve(1);
}

std::vector<Buffer> SequenceBuffer::empty(int64_t slots) const {
  std::vector<Buffer> arrays;
  for (const ElementType type : types_) arrays.emplace_back(type, Shape{layers_, 1, heads_, slots, width_});
  return arrays;
}

bool SequenceBuffer::reserve(int64_t slots) {
  if (slots <= capacity_) return false;
  std::vector<Buffer> arrays = empty(bucket(slots));
  Rows filled(static_cast<size_t>(length_));
  std::iota(filled.begin(), filled.end(), 0);
  for (size_t which = 0; which < arrays_.size(); ++which) append_rows(arrays_[which], arrays[which], filled, 0);
  arrays_ = std::move(arrays);
  capacity_ = bucket(slots);
  return true;
}

void SequenceBuffer::append(const std::vector<const Buffer*>& sources, const Rows& rows) {
  for (size_t which = 0; which < sources.size(); ++which) append_rows(*sources[which], arrays_[which], rows, length_);
  length_ += static_cast<int64_t>(rows.size());
}

KVCache::KVCache(Names names, int64_t kv_heads, int64_t head_dim, ElementType keys, ElementType values)
    : SequenceBuffer(static_cast<int64_t>(names.size()), kv_heads, head_dim, {keys, values}), names_(std::move(names)) {}

Views KVCache::inputs() const {
  Views bound;
  for (size_t layer = 0; layer < names_.size(); ++layer) {
    bound.emplace(names_[layer].first, layer_of(arrays()[0], static_cast<int64_t>(layer)));
    bound.emplace(names_[layer].second, layer_of(arrays()[1], static_cast<int64_t>(layer)));
  }
  return bound;
}

Scratch KVCache::scratch(int64_t rows) const {
  std::vector<Buffer> arrays = empty(rows);
  Scratch made{std::move(arrays[0]), std::move(arrays[1]), {}};
  for (size_t layer = 0; layer < names_.size(); ++layer) {
    made.outputs.emplace(new_rows_of(names_[layer].first), layer_of(made.keys, static_cast<int64_t>(layer)));
    made.outputs.emplace(new_rows_of(names_[layer].second), layer_of(made.values, static_cast<int64_t>(layer)));
  }
  return made;
}

}  // namespace jakiro::runtime
