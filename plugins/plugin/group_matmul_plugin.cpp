#include "group_matmul_plugin.h"

#include <new>

namespace jakiro {

namespace {

enum Input { kX, kWeights, kScales, kInputs };

/// The sizes belong together, as far as they are known.
bool fits(trt::Dims const& x, trt::Dims const& weights, trt::Dims const& scales) {
  if (x.nbDims < 2 || weights.nbDims != 2 || scales.nbDims != 2) {
    report("GroupMatMul: weights and scales must have 2 dimensions and x at least 2; found %d, %d and %d", weights.nbDims,
           scales.nbDims, x.nbDims);
    return false;
  }
  const int64_t in = weights.d[0], out = scales.d[1], groups = scales.d[0], width = x.d[x.nbDims - 1];
  const int64_t group = groups > 0 && in % groups == 0 ? in / groups : 0;
  if ((width >= 0 && width != in) || weights.d[1] * 2 != out || out % 8 != 0 || (group != 32 && group != 64 && group != 128)) {
    report(
        "GroupMatMul: x [..., %ld], weights [%ld, %ld] and scales [%ld, %ld]; expected [..., in], [in, out / 2] and "
        "[in / group, out], groups of 32, 64 or 128, and out a multiple of 8",
        long(width), long(in), long(weights.d[1]), long(groups), long(out));
    return false;
  }
  return true;
}

}  // namespace

trt::IPluginCapability* GroupMatMulPlugin::getCapabilityInterface(trt::PluginCapabilityType type) noexcept {
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

trt::IPluginV3* GroupMatMulPlugin::clone() noexcept { return new (std::nothrow) GroupMatMulPlugin(); }

int32_t GroupMatMulPlugin::getOutputDataTypes(trt::DataType* output_types, int32_t outputs, trt::DataType const* input_types,
                                              int32_t inputs) const noexcept {
  if (inputs != kInputs || outputs != 1) {
    report("GroupMatMul: takes %d inputs and makes 1 output; the network gives it %d and %d", kInputs, inputs, outputs);
    return -1;
  }
  output_types[0] = input_types[kX];
  return 0;
}

int32_t GroupMatMulPlugin::getOutputShapes(trt::DimsExprs const* inputs, int32_t input_count,
                                           trt::DimsExprs const* /*shape_inputs*/, int32_t /*shape_input_count*/,
                                           trt::DimsExprs* outputs, int32_t output_count,
                                           trt::IExprBuilder& /*builder*/) noexcept {
  if (input_count != kInputs || output_count != 1 || inputs[kX].nbDims < 2 || inputs[kScales].nbDims != 2) return -1;
  outputs[0] = inputs[kX];
  outputs[0].d[outputs[0].nbDims - 1] = inputs[kScales].d[1];
  return 0;
}

bool GroupMatMulPlugin::supportsFormatCombination(int32_t position, trt::DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                                  int32_t outputs) noexcept {
  if (inputs != kInputs || outputs != 1) return false;
  trt::PluginTensorDesc const& tensor = tensors[position].desc;
  if (tensor.format != trt::TensorFormat::kLINEAR) return false;
  if (position == kWeights) return tensor.type == trt::DataType::kINT8;
  const bool real = tensor.type == trt::DataType::kHALF || tensor.type == trt::DataType::kBF16;
  return real && tensor.type == tensors[kX].desc.type;
}

int32_t GroupMatMulPlugin::configurePlugin(trt::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                           trt::DynamicPluginTensorDesc const* /*outputs*/, int32_t output_count) noexcept {
  if (input_count != kInputs || output_count != 1) return -1;
  return fits(inputs[kX].max, inputs[kWeights].max, inputs[kScales].max) ? 0 : -1;
}

int32_t GroupMatMulPlugin::onShapeChange(trt::PluginTensorDesc const* inputs, int32_t input_count,
                                         trt::PluginTensorDesc const* /*outputs*/, int32_t output_count) noexcept {
  if (input_count != kInputs || output_count != 1) return -1;
  return fits(inputs[kX].dims, inputs[kWeights].dims, inputs[kScales].dims) ? 0 : -1;
}

int32_t GroupMatMulPlugin::enqueue(trt::PluginTensorDesc const* input_descriptions,
                                   trt::PluginTensorDesc const* /*output_descriptions*/, void const* const* inputs,
                                   void* const* outputs, void* /*workspace*/, cudaStream_t stream) noexcept {
  trt::Dims const &x = input_descriptions[kX].dims, &scales = input_descriptions[kScales].dims;
  JakiroGroupMatMul call{};
  call.type = input_descriptions[kX].type == trt::DataType::kBF16 ? JAKIRO_BFLOAT16 : JAKIRO_HALF;
  call.rows = 1;
  for (int32_t i = 0; i + 1 < x.nbDims; ++i) call.rows *= x.d[i];
  call.in = input_descriptions[kWeights].dims.d[0];
  call.out = scales.d[1];
  call.group = static_cast<int32_t>(call.in / scales.d[0]);
  call.x = inputs[kX];
  call.weights = inputs[kWeights];
  call.scales = inputs[kScales];
  call.y = outputs[0];
  const cudaError_t error = jakiro_group_matmul(&call, stream);
  if (error != cudaSuccess) report("GroupMatMul: CUDA error %d on launch", static_cast<int>(error));
  return error == cudaSuccess ? 0 : -1;
}

trt::IPluginV3* GroupMatMulPlugin::attachToContext(trt::IPluginResourceContext* /*context*/) noexcept { return clone(); }

trt::PluginFieldCollection const* GroupMatMulPlugin::getFieldsToSerialize() noexcept { return &collection_; }

trt::PluginFieldCollection const* GroupMatMulCreator::getFieldNames() noexcept {
  static trt::PluginFieldCollection const collection{0, nullptr};
  return &collection;
}

trt::IPluginV3* GroupMatMulCreator::createPlugin(trt::AsciiChar const* /*name*/, trt::PluginFieldCollection const* /*fields*/,
                                                 trt::TensorRTPhase /*phase*/) noexcept {
  return new (std::nothrow) GroupMatMulPlugin();
}

}  // namespace jakiro
