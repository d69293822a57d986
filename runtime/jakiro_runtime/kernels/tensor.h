// The inputs of an operator, read and checked in one place.
//
// Why: the file that holds the graph may be damaged or hostile, and ONNX Runtime checks an input's element type only. So every
// tensor is read by `Node::read`, which bounds its rank and size, and every operator says the shape it expects of each input, by
// named dimensions, before it touches memory. What does not fit is thrown as a Refusal, which register_ops.cpp turns into an
// error of ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <stdexcept>

#include "ort_abi.h"

namespace jakiro {

constexpr size_t kMaxRank = 8, kMaxInputs = 8;
constexpr int64_t kMaxDim = INT32_MAX;           // so that a product of two dimensions fits 64 bits
constexpr int64_t kMaxCount = int64_t{1} << 40;  // entries of a tensor, where dimensions of 0 count as 1

// A call that an operator refuses: one sentence.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A dimension that several inputs share. The first input that has it gives its size, and the others are checked against that.
struct Dim {
  const char* name;
  int64_t min = 0;
  int64_t size = -1;  // not known yet

  operator int64_t() const { return size; }
};

// A dimension that an operator prescribes.
inline Dim fixed(int64_t size) { return {"", size, size}; }

struct Tensor {
  void* data = nullptr;
  int64_t dims[kMaxRank] = {};
  size_t rank = 0;

  int64_t count(size_t first = 0) const {
    int64_t product = 1;
    for (size_t axis = first; axis < rank; ++axis) product *= dims[axis];
    return product;
  }
  int64_t last() const { return dims[rank - 1]; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

struct Input {
  ort::ElementType type;
  const char* name;
};

// What an operator's errors name.
struct Signature {
  const char* name;
  Input inputs[kMaxInputs];
  size_t input_count;
};

// A node of the graph, when its kernel is created or called.
class Node {
 public:
  Node(const ort::Api* api, const Signature& signature) : api_(api), signature_(signature) {}

  // Throws a Refusal "operator: ..." of these parts.
  template <typename... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    std::ostringstream text;
    text << signature_.name << ": ";
    (text << ... << parts);
    throw Refusal(text.str());
  }

  // Throws a Refusal unless `tensor`, input `index`, has the shape `dims`; sizes that are not known yet are taken from it.
  void expect_shape(const Tensor& tensor, size_t index, Dim* const* dims, size_t rank) const;

  // Throws a Refusal with the words of a status that is not nullptr, and releases it.
  void check(ort::Status* status) const;

 protected:
  // Input `index`: of the declared element type, at most kMaxRank dimensions of at most kMaxDim, and data for all entries.
  Tensor read(const ort::Value* value, size_t index) const;
  void* data_of(ort::Value* value) const;

  const ort::Api* api_;
  const Signature& signature_;
};

// The product of two sizes of a call's memory; throws a Refusal where it cannot be had.
int64_t checked_product(int64_t x, int64_t y);

}  // namespace jakiro
