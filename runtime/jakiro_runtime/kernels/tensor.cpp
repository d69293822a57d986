// How an input is read, and how a refusal is worded: operator, input, what was found, what was expected.
#include "tensor.h"

#include <string>

namespace jakiro {
namespace {

std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (size_t axis = 0; axis < tensor.rank; ++axis) text += (axis ? ", " : "") + std::to_string(tensor.dims[axis]);
  return text + "]";
}

// [batch 1, heads, 64]: a name, and the size where it is known
std::string shape_of(Dim* const* dims, size_t rank) {
  std::string text = "[";
  for (size_t axis = 0; axis < rank; ++axis) {
    const Dim& dim = *dims[axis];
    text += axis ? ", " : "";
    text += dim.name;
    if (dim.size >= 0) text += (*dim.name ? " " : "") + std::to_string(dim.size);
    if (dim.size < 0 && dim.min > 0) text += " at least " + std::to_string(dim.min);
  }
  return text + "]";
}

}  // namespace

int64_t checked_product(int64_t x, int64_t y) {
  int64_t product;
  if (__builtin_mul_overflow(x, y, &product) || product > INT64_MAX / 16)
    throw Refusal("the call needs more memory than there is");
  return product;
}

void Node::check(ort::Status* status) const {
  if (status == nullptr) return;
  const std::string text = api_->at<const char*(const ort::Status*)>(ort::kGetErrorMessage)(status);
  api_->at<void(ort::Status*)>(ort::kReleaseStatus)(status);
  refuse(text);
}

void* Node::data_of(ort::Value* value) const {
  void* pointer = nullptr;
  check(api_->at<ort::Status*(ort::Value*, void**)>(ort::kGetTensorMutableData)(value, &pointer));
  return pointer;
}

Tensor Node::read(const ort::Value* value, size_t index) const {
  const Input& input = signature_.inputs[index];
  if (value == nullptr) refuse("input ", input.name, " is missing");
  Tensor tensor;
  ort::Shape* shape = nullptr;
  check(api_->at<ort::Status*(const ort::Value*, ort::Shape**)>(ort::kGetTensorTypeAndShape)(value, &shape));
  ort::ElementType type{};
  ort::Status* status = api_->at<ort::Status*(const ort::Shape*, ort::ElementType*)>(ort::kGetTensorElementType)(shape, &type);
  if (status == nullptr)
    status = api_->at<ort::Status*(const ort::Shape*, size_t*)>(ort::kGetDimensionsCount)(shape, &tensor.rank);
  if (status == nullptr && tensor.rank <= kMaxRank) {
    status = api_->at<ort::Status*(const ort::Shape*, int64_t*, size_t)>(ort::kGetDimensions)(shape, tensor.dims, tensor.rank);
  }
  api_->at<void(ort::Shape*)>(ort::kReleaseTensorTypeAndShapeInfo)(shape);
  check(status);
  if (type != input.type) refuse("input ", input.name, " has element type ", type, ", expected ", input.type);
  if (tensor.rank > kMaxRank) refuse("input ", input.name, " has ", tensor.rank, " dimensions, expected at most ", kMaxRank);
  int64_t count = 1;
  for (size_t axis = 0; axis < tensor.rank; ++axis) {
    const int64_t size = tensor.dims[axis];
    if (size < 0 || size > kMaxDim || (size > 0 && __builtin_mul_overflow(count, size, &count)) || count > kMaxCount) {
      refuse("input ", input.name, " has shape ", shape_of(tensor), ", expected at most ", kMaxCount, " entries and ", kMaxDim,
             " in a dimension");
    }
  }
  tensor.data = data_of(const_cast<ort::Value*>(value));
  if (tensor.data == nullptr && tensor.count() > 0) refuse("input ", input.name, " has no data");
  return tensor;
}

void Node::expect_shape(const Tensor& tensor, size_t index, Dim* const* dims, size_t rank) const {
  bool fits = tensor.rank == rank;
  for (size_t axis = 0; fits && axis < rank; ++axis) {
    Dim& dim = *dims[axis];
    fits = dim.size < 0 ? tensor.dims[axis] >= dim.min : tensor.dims[axis] == dim.size;
    if (fits) dim.size = tensor.dims[axis];
  }
  if (!fits)
    refuse("input ", signature_.inputs[index].name, " has shape ", shape_of(tensor), ", expected ", shape_of(dims, rank));
}

}  // namespace jakiro
