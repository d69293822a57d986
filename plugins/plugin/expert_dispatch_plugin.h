// ExpertDispatch as a TensorRT plugin (IPluginV3). Needs TensorRT headers 10.3 or newer; calls nothing in
// libnvinfer, so the library loads without linking to it, into any TensorRT 10.3 - 11.x.
#pragma once

#include <NvInferRuntime.h>

#include "jakiro_plugins.h"

#if NV_TENSORRT_MAJOR < 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 3)
#error "jakiro's plugin needs TensorRT headers 10.3 or newer: set TENSORRT_ROOT to such an installation"
#endif

namespace jakiro {

namespace trt = nvinfer1;

constexpr char kPluginName[] = "ExpertDispatch";
constexpr char kPluginVersion[] = "1";
constexpr char kPluginNamespace[] = "jakiro";

/// Inputs x, router_logits, gate_up, down; outputs primary, contrast; see jakiro_plugins.h for shapes and
/// arithmetic. All six share one type: float, half or bfloat16, dense and row-major. Sizes come from the
/// shapes, so the only state is the two attributes, and a clone is a copy.
class ExpertDispatchPlugin final : public trt::IPluginV3,
                                   public trt::IPluginV3OneCore,
                                   public trt::IPluginV3OneBuild,
                                   public trt::IPluginV3OneRuntime {
 public:
  ExpertDispatchPlugin(int32_t top_k, int32_t contrast) : top_k_(top_k), contrast_(contrast) {}

  trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override;
  trt::IPluginV3* clone() noexcept override;

  trt::AsciiChar const* getPluginName() const noexcept override { return kPluginName; }
  trt::AsciiChar const* getPluginVersion() const noexcept override { return kPluginVersion; }
  trt::AsciiChar const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  int32_t getNbOutputs() const noexcept override { return 2; }
  int32_t getOutputDataTypes(trt::DataType* output_types, int32_t outputs, trt::DataType const* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(trt::DimsExprs const* inputs, int32_t input_count, trt::DimsExprs const* shape_inputs,
                          int32_t shape_input_count, trt::DimsExprs* outputs, int32_t output_count,
                          trt::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, trt::DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t configurePlugin(trt::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                          trt::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
  size_t getWorkspaceSize(trt::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                          trt::DynamicPluginTensorDesc const* outputs, int32_t output_count) const noexcept override;
  char const* getTimingCacheID() noexcept override { return "jakiro:ExpertDispatch:1"; }

  int32_t onShapeChange(trt::PluginTensorDesc const* inputs, int32_t input_count, trt::PluginTensorDesc const* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(trt::PluginTensorDesc const* input_descriptions, trt::PluginTensorDesc const* output_descriptions,
                  void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  trt::IPluginV3* attachToContext(trt::IPluginResourceContext* context) noexcept override;
  trt::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  bool fits(trt::Dims const& x, trt::Dims const& logits, trt::Dims const& gate_up, trt::Dims const& down) const;

  int32_t top_k_, contrast_;
  trt::PluginField fields_[2];
  trt::PluginFieldCollection collection_{};
};

class ExpertDispatchCreator final : public trt::IPluginCreatorV3One {
 public:
  trt::IPluginV3* createPlugin(trt::AsciiChar const* name, trt::PluginFieldCollection const* fields,
                               trt::TensorRTPhase phase) noexcept override;
  trt::PluginFieldCollection const* getFieldNames() noexcept override;
  trt::AsciiChar const* getPluginName() const noexcept override { return kPluginName; }
  trt::AsciiChar const* getPluginVersion() const noexcept override { return kPluginVersion; }
  trt::AsciiChar const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
};

/// Tells TensorRT's log, or standard error where there is none yet, that something is wrong.
void report(char const* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace jakiro
