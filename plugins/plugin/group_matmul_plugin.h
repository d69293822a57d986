// GroupMatMul as a TensorRT plugin (IPluginV3): W4A16, for a TensorRT whose own int4 is slow or missing.
#pragma once

#include "expert_dispatch_plugin.h"

namespace jakiro {

/// Inputs x [..., in], weights [in, out / 2] as int8 bytes and scales [in / group, out]; output y [..., out]; see
/// jakiro_plugins.h. x, scales and y share one type, half or bfloat16. The group's size is in the shapes: there is no
/// state at all.
class GroupMatMulPlugin final : public trt::IPluginV3,
                                public trt::IPluginV3OneCore,
                                public trt::IPluginV3OneBuild,
                                public trt::IPluginV3OneRuntime {
 public:
  trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override;
  trt::IPluginV3* clone() noexcept override;

  trt::AsciiChar const* getPluginName() const noexcept override { return "GroupMatMul"; }
  trt::AsciiChar const* getPluginVersion() const noexcept override { return kPluginVersion; }
  trt::AsciiChar const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(trt::DataType* output_types, int32_t outputs, trt::DataType const* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(trt::DimsExprs const* inputs, int32_t input_count, trt::DimsExprs const* shape_inputs,
                          int32_t shape_input_count, trt::DimsExprs* outputs, int32_t output_count,
                          trt::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, trt::DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t configurePlugin(trt::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                          trt::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
  char const* getTimingCacheID() noexcept override { return "jakiro:GroupMatMul:1"; }

  int32_t onShapeChange(trt::PluginTensorDesc const* inputs, int32_t input_count, trt::PluginTensorDesc const* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(trt::PluginTensorDesc const* input_descriptions, trt::PluginTensorDesc const* output_descriptions,
                  void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  trt::IPluginV3* attachToContext(trt::IPluginResourceContext* context) noexcept override;
  trt::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  trt::PluginFieldCollection collection_{};
};

class GroupMatMulCreator final : public trt::IPluginCreatorV3One {
 public:
  trt::IPluginV3* createPlugin(trt::AsciiChar const* name, trt::PluginFieldCollection const* fields,
                               trt::TensorRTPhase phase) noexcept override;
  trt::PluginFieldCollection const* getFieldNames() noexcept override;
  trt::AsciiChar const* getPluginName() const noexcept override { return "GroupMatMul"; }
  trt::AsciiChar const* getPluginVersion() const noexcept override { return kPluginVersion; }
  trt::AsciiChar const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
};

}  // namespace jakiro
