// The entry point ONNX Runtime calls: describes this library's operators and adds them to a session.
#include "attention.h"
#include "layers.h"
#include "ort_abi.h"
#include "row_product.h"
#include "tensor.h"

namespace {

using jakiro::Call;

struct Operator {
  ort::CustomOp base;  // first: ONNX Runtime hands back its address
  const char* name;
  ort::Status* (*run)(const Call&, float scaling);
  bool scaled;  // has the attribute `scaling`
  ort::ElementType inputs[8];
  size_t input_count, output_count;
};

struct Kernel {
  const ort::Api* api;
  const Operator* op;
  float scaling;
};

const Operator* of(const ort::CustomOp* op) { return reinterpret_cast<const Operator*>(op); }

constexpr int kRequired = 0;

ort::CustomOp table() {
  ort::CustomOp op{};
  op.version = ort::kVersion;
  op.name = [](const ort::CustomOp* op) { return of(op)->name; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.input_type = [](const ort::CustomOp* op, size_t n) { return of(op)->inputs[n]; };
  op.input_count = [](const ort::CustomOp* op) { return of(op)->input_count; };
  op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.output_count = [](const ort::CustomOp* op) { return of(op)->output_count; };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.input_characteristic = op.output_characteristic = [](const ort::CustomOp*, size_t) { return kRequired; };
  op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
  op.variadic_input_least = op.variadic_input_homogeneous = [](const ort::CustomOp*) { return 1; };
  op.variadic_output_least = op.variadic_output_homogeneous = [](const ort::CustomOp*) { return 1; };
  op.create_kernel_v2 = [](const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    float scaling = 1;
    ort::Status* status = nullptr;
    if (of(op)->scaled) {
      using Get = ort::Status*(const ort::KernelInfo*, const char*, float*);
      status = api->at<Get>(ort::kKernelInfoGetAttributeFloat)(info, "scaling", &scaling);
    }
    if (status == nullptr) *kernel = new Kernel{api, of(op), scaling};
    return status;
  };
  op.compute_v2 = [](void* kernel, ort::Context* context) {
    const Kernel& self = *static_cast<Kernel*>(kernel);
    return self.op->run(Call(self.api, context), self.scaling);
  };
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return 1; };
  return op;
}

template <ort::Status* (*kRun)(const Call&)>
ort::Status* unscaled(const Call& call, float) {
  return kRun(call);
}

constexpr ort::ElementType kF = ort::kFloat;

const Operator kOperators[] = {
    {table(), "RowInt8MatMul", unscaled<jakiro::row_product>, false, {kF, kF, ort::kUint8, kF}, 4, 1},
    {table(), "TreeAttention", jakiro::tree_attention, true, {kF, kF, kF, kF, kF, ort::kInt64, ort::kBool}, 7, 1},
    {table(), "SplitHeads", unscaled<jakiro::split_heads>, false, {kF, kF, kF, ort::kInt64}, 4, 3},
    {table(), "SwiGlu", unscaled<jakiro::swiglu>, false, {kF}, 1, 1},
};

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const ort::Api* api = base->get(ort::kVersion);
  ort::Domain* domain = nullptr;
  if (auto* status = api->at<ort::Status*(const char*, ort::Domain**)>(ort::kCreateCustomOpDomain)("jakiro", &domain)) return status;
  for (const Operator& op : kOperators) {
    const auto add = api->at<ort::Status*(ort::Domain*, const ort::CustomOp*)>(ort::kCustomOpDomainAdd);
    if (auto* status = add(domain, &op.base)) return status;
  }
  return api->at<ort::Status*(ort::SessionOptions*, ort::Domain*)>(ort::kAddCustomOpDomain)(options, domain);
}
