// Key/value caches: read in place by a graph, written only at their tail.
//
// All layers share two arrays. The capacity grows in buckets, which keeps the shapes that a graph meets few.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.h"
#include "decoding/tree.h"

namespace jakiro::runtime {

// The capacity that holds `slots` slots: 256, 512, 1024, ...
int64_t bucket(int64_t slots);

// Copy rows of one array of [layers, 1, heads, rows, width] behind each other into another one of other rows, from slot `first`.
void append_rows(const Buffer& source, const Buffer& target, const Rows& rows, int64_t first);

// Rows of a sequence, appended to those it has: arrays [layers, 1, heads, capacity, width], one for each type.
class SequenceBuffer {
 public:
  SequenceBuffer(int64_t layers, int64_t heads, int64_t width, std::vector<ElementType> types);

  int64_t length() const { return length_; }  // how many slots are valid; those after it hold anything
  int64_t capacity() const { return capacity_; }
  const std::vector<Buffer>& arrays() const { return arrays_; }

  // Make room for `slots` slots. True where the arrays were replaced and must be bound again.
  bool reserve(int64_t slots);
  // Append some rows of [layers, 1, heads, rows, width], one source for each array; `reserve` has made the room.
  void append(const std::vector<const Buffer*>& sources, const Rows& rows);
  // Forget every slot from `length` on. Nothing is cleared: graphs see `past_length` slots only.
  void truncate(int64_t length) { length_ = length < length_ ? length : length_; }

 protected:
  std::vector<Buffer> empty(int64_t slots) const;

 private:
  int64_t layers_, heads_, width_;
  std::vector<ElementType> types_;
  std::vector<Buffer> arrays_;
  int64_t capacity_ = 0, length_ = 0;
};

// A call's new rows: keys and values, [layers, 1, kv_heads, rows, head_dim], and their slices by output name.
struct Scratch {
  Buffer keys, values;
  Views outputs;
};

// Keys and values of every layer. names: the graph's inputs, one (key, value) pair a layer
class KVCache : public SequenceBuffer {
 public:
  using Names = std::vector<std::pair<std::string, std::string>>;
  KVCache(Names names, int64_t kv_heads, int64_t head_dim, ElementType keys, ElementType values);

  // The arrays to bind, by the graph's input names; no copies.
  Views inputs() const;
  Scratch scratch(int64_t rows) const;
  // Append some rows of a call's scratch.
  void commit(const Scratch& scratch, const Rows& rows) { append({&scratch.keys, &scratch.values}, rows); }

 private:
  const Names names_;
};

}  // namespace jakiro::runtime
