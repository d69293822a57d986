// One call of an operator: inputs, outputs and the session's threads; and the constants that are known before any call.
#pragma once

#include <atomic>
#include <new>

#include "tensor.h"

namespace jakiro {

// The constant inputs of a node, when its kernel is created.
class Constants : public Node {
 public:
  Constants(const ort::Api* api, const Signature& signature, const ort::KernelInfo* info) : Node(api, signature), info_(info) {}

  bool has(size_t index) const { return value(index) != nullptr; }

  // Input `index`, which must be constant and have this shape; throws a Refusal.
  template <typename... Dims>
  Tensor input(size_t index, Dims&... dims) const {
    const Tensor tensor = read(value(index), index);
    Dim* const expected[] = {&dims...};
    expect_shape(tensor, index, expected, sizeof...(dims));
    return tensor;
  }

 private:
  const ort::Value* value(size_t index) const {
    int constant = 0;
    const ort::Value* value = nullptr;
    using Get = ort::Status*(const ort::KernelInfo*, size_t, int*, const ort::Value**);
    ort::Status* status = api_->at<Get>(ort::kKernelInfoGetConstantInput)(info_, index, &constant, &value);
    if (status != nullptr) api_->at<void(ort::Status*)>(ort::kReleaseStatus)(status);
    return status == nullptr && constant ? value : nullptr;
  }

  const ort::KernelInfo* info_;
};

class Call : public Node {
 public:
  // attribute: the node's float; prepacked: its weights, or nullptr; non_temporal: the session's weights do not fit the LLC
  Call(const ort::Api* api, const Signature& signature, ort::Context* context, float attribute, const void* prepacked,
       bool non_temporal)
      : Node(api, signature), context_(context), attribute_(attribute), prepacked_(prepacked), non_temporal_(non_temporal) {}

  float attribute() const { return attribute_; }
  const void* prepacked() const { return prepacked_; }
  bool non_temporal() const { return non_temporal_; }

  // Input `index` of this shape; throws a Refusal. Sizes that are not known yet are taken from it.
  template <typename... Dims>
  Tensor input(size_t index, Dims&... dims) const {
    const Tensor tensor = any_input(index);
    Dim* const expected[] = {&dims...};
    expect_shape(tensor, index, expected, sizeof...(dims));
    return tensor;
  }

  // Input `index` [..., width], of any rank but 0 and with width at least 1; throws a Refusal.
  Tensor rows(size_t index) const {
    const Tensor tensor = any_input(index);
    if (tensor.rank == 0 || tensor.last() == 0)
      refuse("input ", signature_.inputs[index].name, " has no entries in its last dimension");
    return tensor;
  }

  // Input `index` of `count` entries, in any shape; throws a Refusal.
  Tensor entries(size_t index, int64_t count) const {
    const Tensor tensor = any_input(index);
    if (tensor.count() != count) {
      refuse("input ", signature_.inputs[index].name, " has ", tensor.count(), " entries, expected ", count);
    }
    return tensor;
  }

  // Input `index`, int64 [size], every value from min to max: what an operator uses as a length, a count or an index.
  const int64_t* lengths(size_t index, Dim& size, int64_t min, int64_t max) const {
    const int64_t* values = input(index, size).as<int64_t>();
    for (int64_t n = 0; n < size; ++n) {
      if (values[n] < min || values[n] > max) {
        refuse("input ", signature_.inputs[index].name, " has the value ", values[n], ", expected ", min, " to ", max);
      }
    }
    return values;
  }

  // Memory of output `index`, never nullptr where it has entries; throws a Refusal.
  template <typename T>
  T* output(size_t index, const int64_t* dims, size_t rank) const {
    ort::Value* value = nullptr;
    check(api_->at<ort::Status*(ort::Context*, size_t, const int64_t*, size_t, ort::Value**)>(ort::kKernelContextGetOutput)(
        context_, index, dims, rank, &value));
    if (value == nullptr) refuse("output ", index, " is missing");
    return static_cast<T*>(data_of(value));
  }

  // Runs work(0) ... work(count - 1), in any order, on the session's threads.
  template <typename Work>
  void parallel(size_t count, Work& work) const {
    if (count == 1) return work(0);
    struct Shared {
      Work& work;
      std::atomic<bool> failed{false};
    } shared{work};
    void (*run_one)(void*, size_t) = [](void* data, size_t index) {
      Shared& shared = *static_cast<Shared*>(data);
      try {
        shared.work(index);
      } catch (...) {  // must not leave a thread of ONNX Runtime's
        shared.failed = true;
      }
    };
    using ParallelFor = ort::Status*(const ort::Context*, void (*)(void*, size_t), size_t, size_t, void*);
    check(api_->at<ParallelFor>(ort::kKernelContextParallelFor)(context_, run_one, count, 0, &shared));
    if (shared.failed) throw std::bad_alloc();
  }

 private:
  Tensor any_input(size_t index) const {
    const ort::Value* value = nullptr;
    check(api_->at<ort::Status*(const ort::Context*, size_t, const ort::Value**)>(ort::kKernelContextGetInput)(context_, index,
                                                                                                               &value));
    return read(value, index);
  }

  ort::Context* context_;
  float attribute_;
  const void* prepacked_;
  bool non_temporal_;
};

}  // namespace jakiro
