#include "expert_dispatch_plugin.h"

#include <new>

namespace jakiro {

namespace {

enum Input { kX, kRouterLogits, kGateUp, kDown, kInputs };
constexpr int32_t kOutputs = 2;

bool is_supported(trt::DataType type) {
  return type == trt::DataType::kFLOAT || type == trt::DataType::kHALF || type == trt::DataType::kBF16;
}

JakiroType to_type(trt::DataType type) {
  if (type == trt::DataType::kHALF) return JAKIRO_HALF;
  return type == trt::DataType::kBF16 ? JAKIRO_BFLOAT16 : JAKIRO_FLOAT;
}

/// Two dimensions agree, or one of them is not known yet.
bool agree(int64_t left, int64_t right) { return left == right || left < 0 || right < 0; }

}  // namespace

trt::IPluginCapability* ExpertDispatchPlugin::getCapabilityInterface(trt::PluginCapabilityType type) noexcept {
  switch (type) {
    case trt::PluginCapabilityType::kCORE:
      return static_cast<trt::IPluginV3OneCore*>(this);
    case trt::PluginCapabilityType::kBUILD:
      return static_cast<trt::IPluginV3OneBuild*>(this);
    case trt::PluginCapabilityType::kRUNTIME:
      return static_cast<trt::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

trt::IPluginV3* ExpertDispatchPlugin::clone() noexcept { return new (std::nothrow) ExpertDispatchPlugin(top_k_, contrast_); }

int32_t ExpertDispatchPlugin::getOutputDataTypes(trt::DataType* output_types, int32_t outputs, trt::DataType const* input_types,
                                                 int32_t inputs) const noexcept {
  if (inputs != kInputs || outputs != kOutputs) {
    report("ExpertDispatch: takes %d inputs and makes %d outputs; the network gives it %d and %d", kInputs, kOutputs, inputs,
           outputs);
    return -1;
  }
  output_types[0] = output_types[1] = input_types[kX];
  return 0;
}

int32_t ExpertDispatchPlugin::getOutputShapes(trt::DimsExprs const* inputs, int32_t input_count,
                                              trt::DimsExprs const* /*shape_inputs*/, int32_t /*shape_input_count*/,
                                              trt::DimsExprs* outputs, int32_t output_count,
                                              trt::IExprBuilder& /*builder*/) noexcept {
  if (input_count != kInputs || output_count != kOutputs) return -1;
  outputs[0] = outputs[1] = inputs[kX];
  return 0;
}

bool ExpertDispatchPlugin::supportsFormatCombination(int32_t position, trt::DynamicPluginTensorDesc const* tensors,
                                                     int32_t inputs, int32_t outputs) noexcept {
  if (inputs != kInputs || outputs != kOutputs) return false;
  trt::PluginTensorDesc const& tensor = tensors[position].desc;
  return tensor.format == trt::TensorFormat::kLINEAR && is_supported(tensor.type) && tensor.type == tensors[kX].desc.type;
}

bool ExpertDispatchPlugin::fits(trt::Dims const& x, trt::Dims const& logits, trt::Dims const& gate_up,
                                trt::Dims const& down) const {
  if (x.nbDims != 2 || logits.nbDims != 2 || gate_up.nbDims != 3 || down.nbDims != 3) {
    report("ExpertDispatch: x and router_logits must have 2 dimensions, gate_up and down 3; found %d, %d, %d and %d", x.nbDims,
           logits.nbDims, gate_up.nbDims, down.nbDims);
    return false;
  }
  const int64_t hidden = x.d[1], experts = down.d[0], inner = down.d[2];
  if (!agree(x.d[0], logits.d[0]) || !agree(gate_up.d[0], experts) || !agree(gate_up.d[2], hidden) || !agree(down.d[1], hidden) ||
      (experts >= 0 && !agree(logits.d[1], experts + 2)) || (inner >= 0 && !agree(gate_up.d[1], 2 * inner))) {
    report(
        "ExpertDispatch: shapes do not belong together: x [%ld, %ld], router_logits [%ld, %ld], gate_up [%ld, %ld, %ld], "
        "down [%ld, "
        "%ld, %ld]; expected [rows, hidden], [rows, experts + 2], [experts, 2 * inner, hidden], [experts, "
        "hidden, "
        "inner]",
        long(x.d[0]), long(x.d[1]), long(logits.d[0]), long(logits.d[1]), long(gate_up.d[0]), long(gate_up.d[1]),
        long(gate_up.d[2]), long(down.d[0]), long(down.d[1]), long(down.d[2]));
    return false;
  }
  if (experts >= 0 && (experts < 2 || top_k_ > experts)) {
    report("ExpertDispatch: %ld experts with top_k = %d: expected at least 2 experts, and top_k of at most as many",
           long(experts), top_k_);
    return false;
  }
  return true;
}

int32_t ExpertDispatchPlugin::configurePlugin(trt::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                              trt::DynamicPluginTensorDesc const* /*outputs*/, int32_t output_count) noexcept {
  if (input_count != kInputs || output_count != kOutputs) return -1;
  return fits(inputs[kX].max, inputs[kRouterLogits].max, inputs[kGateUp].max, inputs[kDown].max) ? 0 : -1;
}

size_t ExpertDispatchPlugin::getWorkspaceSize(trt::DynamicPluginTensorDesc const* inputs, int32_t /*input_count*/,
                                              trt::DynamicPluginTensorDesc const* /*outputs*/,
                                              int32_t /*output_count*/) const noexcept {
  trt::Dims const &x = inputs[kX].max, &down = inputs[kDown].max;
  return jakiro_expert_dispatch_workspace(to_type(inputs[kX].desc.type), x.d[0], x.d[1], down.d[2],
                                          static_cast<int32_t>(down.d[0]));
}

int32_t ExpertDispatchPlugin::onShapeChange(trt::PluginTensorDesc const* inputs, int32_t input_count,
                                            trt::PluginTensorDesc const* /*outputs*/, int32_t output_count) noexcept {
  if (input_count != kInputs || output_count != kOutputs) return -1;
  return fits(inputs[kX].dims, inputs[kRouterLogits].dims, inputs[kGateUp].dims, inputs[kDown].dims) ? 0 : -1;
}

int32_t ExpertDispatchPlugin::enqueue(trt::PluginTensorDesc const* input_descriptions,
                                      trt::PluginTensorDesc const* /*output_descriptions*/, void const* const* inputs,
                                      void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  trt::Dims const &x = input_descriptions[kX].dims, &down = input_descriptions[kDown].dims;
  JakiroExpertDispatch call{};
  call.type = to_type(input_descriptions[kX].type);
  call.rows = x.d[0];
  call.hidden = x.d[1];
  call.inner = down.d[2];
  call.experts = static_cast<int32_t>(down.d[0]);
  call.top_k = top_k_;
  call.contrast = contrast_;
  call.x = inputs[kX];
  call.router_logits = inputs[kRouterLogits];
  call.gate_up = inputs[kGateUp];
  call.down = inputs[kDown];
  call.primary = outputs[0];
  call.contrast_output = outputs[1];
  call.workspace = workspace;
  const cudaError_t error = jakiro_expert_dispatch(&call, stream);
  if (error != cudaSuccess) report("ExpertDispatch: CUDA error %d on launch", static_cast<int>(error));
  return error == cudaSuccess ? 0 : -1;
}

trt::IPluginV3* ExpertDispatchPlugin::attachToContext(trt::IPluginResourceContext* /*context*/) noexcept { return clone(); }

trt::PluginFieldCollection const* ExpertDispatchPlugin::getFieldsToSerialize() noexcept {
  fields_[0] = trt::PluginField("top_k", &top_k_, trt::PluginFieldType::kINT32, 1);
  fields_[1] = trt::PluginField("contrast", &contrast_, trt::PluginFieldType::kINT32, 1);
  collection_ = {2, fields_};
  return &collection_;
}

}  // namespace jakiro
