// What the runtime asks of an inference library: open the graphs, bind named buffers, run.
//
// Nothing else in the runtime knows which library is in use. Buffers are the host's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace jakiro::runtime {

enum class ElementType { kInt64, kBool, kFloat16, kFloat32, kFloat64 };

size_t size_of(ElementType type);
const char* name_of(ElementType type);

using Shape = std::vector<int64_t>;

// Memory that somebody else owns, as a C-contiguous array.
struct View {
  std::byte* data;
  ElementType type;
  Shape shape;
};

// A C-contiguous array of zeros, aligned for any kernel.
class Buffer {
 public:
  Buffer() = default;
  // Throws std::bad_alloc where there is not enough memory, or sizes so large that nothing has it.
  Buffer(ElementType type, Shape shape);

  ElementType type() const { return type_; }
  const Shape& shape() const { return shape_; }
  std::byte* data() const { return data_.get(); }
  template <typename Element>
  Element* as() const {
    return reinterpret_cast<Element*>(data_.get());
  }
  // One entry of a floating-point array, in float64.
  double number(int64_t place) const;
  View view() const { return {data_.get(), type_, shape_}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  ElementType type_ = ElementType::kInt64;
  Shape shape_;
  std::unique_ptr<std::byte[], Free> data_;
};

// An input or output of a graph. dims: the length of each axis, -1 where it may vary.
struct Tensor {
  ElementType type;
  Shape dims;
};

using Tensors = std::map<std::string, Tensor>;
using Views = std::map<std::string, View>;

// A graph with its inputs and outputs bound to memory.
class Binding {
 public:
  virtual ~Binding() = default;
  // Read the bound inputs, write the bound outputs. Throws EngineError where the library fails.
  virtual void run() = 0;
};

// An opened graph. Safe to use from several threads, each with bindings of its own.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual const Tensors& inputs() const = 0;
  virtual const Tensors& outputs() const = 0;

  // Bind arrays, which the caller keeps alive. Every input is bound; outputs that are not are not wanted. Throws EngineError
  // where an array is not of the graph's type or shape.
  virtual std::unique_ptr<Binding> bind(const Views& inputs, const Views& outputs) const = 0;
};

}  // namespace jakiro::runtime
