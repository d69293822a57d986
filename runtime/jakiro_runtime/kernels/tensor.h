// Inputs, outputs and threads of one call of an operator.
#pragma once

#include <cstdint>
#include <vector>

#include "ort_abi.h"

namespace jakiro {

struct Tensor {
  void* data = nullptr;
  int64_t dims[8] = {};
  size_t rank = 0;

  int64_t count(size_t first = 0) const {
    int64_t product = 1;
    for (size_t axis = first; axis < rank; ++axis) product *= dims[axis];
    return product;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

inline void* data_of(const ort::Api* api, ort::Value* value) {
  void* pointer = nullptr;
  api->at<ort::Status*(ort::Value*, void**)>(ort::kGetTensorMutableData)(value, &pointer);
  return pointer;
}

inline Tensor tensor_of(const ort::Api* api, const ort::Value* value) {
  Tensor tensor;
  ort::Shape* shape = nullptr;
  api->at<ort::Status*(const ort::Value*, ort::Shape**)>(ort::kGetTensorTypeAndShape)(value, &shape);
  api->at<ort::Status*(const ort::Shape*, size_t*)>(ort::kGetDimensionsCount)(shape, &tensor.rank);
  api->at<ort::Status*(const ort::Shape*, int64_t*, size_t)>(ort::kGetDimensions)(shape, tensor.dims, tensor.rank);
  api->at<void(ort::Shape*)>(ort::kReleaseTensorTypeAndShapeInfo)(shape);
  tensor.data = data_of(api, const_cast<ort::Value*>(value));
  return tensor;
}

// The constant inputs of a node, when its kernel is created.
class Constants {
 public:
  Constants(const ort::Api* api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  // No data where the input is not constant.
  Tensor input(size_t index) const {
    int constant = 0;
    const ort::Value* value = nullptr;
    using Get = ort::Status*(const ort::KernelInfo*, size_t, int*, const ort::Value**);
    ort::Status* status = api_->at<Get>(ort::kKernelInfoGetConstantInput)(info_, index, &constant, &value);
    if (status != nullptr) api_->at<void(ort::Status*)>(ort::kReleaseStatus)(status);
    return status == nullptr && constant ? tensor_of(api_, value) : Tensor{};
  }

 private:
  const ort::Api* api_;
  const ort::KernelInfo* info_;
};

class Call {
 public:
  // attribute: the node's float; prepacked: its weights, or nullptr; non_temporal: the session's weights do not fit the LLC
  Call(const ort::Api* api, ort::Context* context, float attribute, const void* prepacked, bool non_temporal)
      : api_(api), context_(context), attribute_(attribute), prepacked_(prepacked), non_temporal_(non_temporal) {}

  float attribute() const { return attribute_; }
  const void* prepacked() const { return prepacked_; }
  bool non_temporal() const { return non_temporal_; }

  Tensor input(size_t index) const {
    const ort::Value* value = nullptr;
    api_->at<ort::Status*(const ort::Context*, size_t, const ort::Value**)>(ort::kKernelContextGetInput)(context_, index, &value);
    return tensor_of(api_, value);
  }

  void* output(size_t index, const int64_t* dims, size_t rank) const {
    ort::Value* value = nullptr;
    api_->at<ort::Status*(ort::Context*, size_t, const int64_t*, size_t, ort::Value**)>(ort::kKernelContextGetOutput)(
        context_, index, dims, rank, &value);
    return data_of(api_, value);
  }

  // Runs work(0) ... work(count - 1), in any order, on the session's threads.
  template <typename Work>
  void parallel(size_t count, Work& work) const {
    if (count == 1) return work(0);
    void (*each)(void*, size_t) = [](void* data, size_t index) { (*static_cast<Work*>(data))(index); };
    using Run = ort::Status*(const ort::Context*, void (*)(void*, size_t), size_t, size_t, void*);
    api_->at<Run>(ort::kKernelContextParallelFor)(context_, each, count, 0, &work);
  }

  ort::Status* fail(const char* words) const { return api_->at<ort::Status*(int, const char*)>(ort::kCreateStatus)(2, words); }

 private:
  const ort::Api* api_;
  ort::Context* context_;
  float attribute_;
  const void* prepacked_;
  bool non_temporal_;
};

}  // namespace jakiro
