// Calls a plugin as TensorRT does, through its interfaces alone. Built by test_registry.py next to the plugin; takes the
// plugin that a real registry's creator returned.
#include <NvInferRuntime.h>

#include <cstdint>
#include <cstring>
#include <string>

using namespace nvinfer1;

namespace {

Dims dims(int64_t const* sizes, int count) {
  Dims result{};
  result.nbDims = count;
  for (int i = 0; i < count; ++i) result.d[i] = sizes[i];
  return result;
}

struct Tensors {
  PluginTensorDesc now[6]{};
  DynamicPluginTensorDesc range[6]{};

  Tensors(int type, int64_t const* s) {  // s: rows, hidden, inner, experts
    const int64_t shapes[6][3] = {{s[0], s[1]},       {s[0], s[3] + 2}, {s[3], 2 * s[2], s[1]},
                                  {s[3], s[1], s[2]}, {s[0], s[1]},     {s[0], s[1]}};
    for (int i = 0; i < 6; ++i) {
      now[i].dims = dims(shapes[i], i == 2 || i == 3 ? 3 : 2);
      now[i].type = static_cast<DataType>(type);
      now[i].format = TensorFormat::kLINEAR;
      range[i].desc = now[i];
      range[i].min = range[i].max = range[i].opt = now[i].dims;
    }
  }
};

template <class Interface>
Interface* capability(void* plugin, PluginCapabilityType type) {
  return static_cast<Interface*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}

}  // namespace

#define PROBE extern "C" __attribute__((visibility("default")))

/// Bytes of workspace, or -1 if the build interface refuses the shapes or the types.
PROBE int64_t probe_build(void* plugin, int type, int64_t const* sizes) {
  auto* build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
  Tensors tensors(type, sizes);
  DataType in[4], out[2];
  for (int i = 0; i < 4; ++i) in[i] = tensors.now[i].type;
  if (build->getNbOutputs() != 2 || build->getOutputDataTypes(out, 2, in, 4) != 0) return -1;
  if (out[0] != in[0] || out[1] != in[0]) return -1;
  for (int i = 0; i < 6; ++i)
    if (!build->supportsFormatCombination(i, tensors.range, 4, 2)) return -1;
  if (build->configurePlugin(tensors.range, 4, tensors.range + 4, 2) != 0) return -1;
  return build->getWorkspaceSize(tensors.range, 4, tensors.range + 4, 2);
}

/// What the plugin puts into an engine, as "name=value;name=value".
PROBE void probe_fields(void* plugin, char* text, int size) {
  auto* fields = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
  std::string all;
  for (int i = 0; i < fields->nbFields; ++i)
    all += std::string(fields->fields[i].name) + "=" + std::to_string(*static_cast<int32_t const*>(fields->fields[i].data)) + ";";
  std::strncpy(text, all.c_str(), size);
}

/// A clone attached to a context, told its shapes and run once. buffers: the inputs, the outputs, the workspace.
PROBE int probe_enqueue(void* plugin, int type, int64_t const* sizes, void* const* buffers) {
  auto* runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
  IPluginV3* attached = runtime->attachToContext(nullptr);
  if (attached == nullptr) return -100;
  runtime = capability<IPluginV3OneRuntime>(attached, PluginCapabilityType::kRUNTIME);
  Tensors tensors(type, sizes);
  int result = runtime->onShapeChange(tensors.now, 4, tensors.now + 4, 2);
  if (result == 0)
    result = runtime->enqueue(tensors.now, tensors.now + 4, buffers, const_cast<void**>(buffers) + 4, buffers[6], nullptr);
  delete attached;
  return result;
}

/// GroupMatMul: the build interface's questions, then a clone run once. sizes: rows, in, out, group; buffers: x, weights,
/// scales, y. -1 and -2: refused when building, or of its shapes.
PROBE int probe_group_matmul(void* plugin, int type, int weight_type, int64_t const* s, void* const* buffers) {
  const int64_t shapes[4][3] = {{1, s[0], s[1]}, {s[1], s[2] / 2}, {s[1] / s[3], s[2]}, {1, s[0], s[2]}};
  PluginTensorDesc now[4]{};
  DynamicPluginTensorDesc range[4]{};
  for (int i = 0; i < 4; ++i) {
    now[i].dims = dims(shapes[i], i == 1 || i == 2 ? 2 : 3);
    now[i].type = static_cast<DataType>(i == 1 ? weight_type : type);
    now[i].format = TensorFormat::kLINEAR;
    range[i].desc = now[i];
    range[i].min = range[i].max = range[i].opt = now[i].dims;
  }
  auto* build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
  DataType in[3] = {now[0].type, now[1].type, now[2].type}, out[1];
  if (build->getNbOutputs() != 1 || build->getOutputDataTypes(out, 1, in, 3) != 0 || out[0] != in[0]) return -1;
  for (int i = 0; i < 4; ++i)
    if (!build->supportsFormatCombination(i, range, 3, 1)) return -1;
  if (build->configurePlugin(range, 3, range + 3, 1) != 0) return -1;
  auto* runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
  if (runtime->getFieldsToSerialize()->nbFields != 0) return -1;
  IPluginV3* attached = runtime->attachToContext(nullptr);
  if (attached == nullptr) return -100;
  runtime = capability<IPluginV3OneRuntime>(attached, PluginCapabilityType::kRUNTIME);
  int result = runtime->onShapeChange(now, 3, now + 3, 1) == 0 ? 0 : -2;
  if (result == 0) result = runtime->enqueue(now, now + 3, buffers, const_cast<void**>(buffers) + 3, nullptr, nullptr);
  delete attached;
  return result;
}
