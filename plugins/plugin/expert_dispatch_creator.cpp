#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

#include "expert_dispatch_plugin.h"
#include "group_matmul_plugin.h"

namespace jakiro {

namespace {

trt::ILoggerFinder* logger_finder = nullptr;

}  // namespace

void report(char const* format, ...) {
  char text[600];
  int length = std::snprintf(text, sizeof text, "jakiro: ");
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + length, sizeof text - length, format, arguments);
  va_end(arguments);
  trt::ILogger* logger = logger_finder == nullptr ? nullptr : logger_finder->findLogger();
  if (logger != nullptr)
    logger->log(trt::ILogger::Severity::kERROR, text);
  else
    std::fprintf(stderr, "%s\n", text);
}

trt::PluginFieldCollection const* ExpertDispatchCreator::getFieldNames() noexcept {
  static trt::PluginField const fields[] = {
      trt::PluginField("top_k", nullptr, trt::PluginFieldType::kINT32, 1),
      trt::PluginField("contrast", nullptr, trt::PluginFieldType::kINT32, 1),
  };
  static trt::PluginFieldCollection const collection{2, fields};
  return &collection;
}

trt::IPluginV3* ExpertDispatchCreator::createPlugin(trt::AsciiChar const* name, trt::PluginFieldCollection const* fields,
                                                    trt::TensorRTPhase /*phase*/) noexcept {
  int32_t top_k = 0, contrast = 1;
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    trt::PluginField const& field = fields->fields[i];
    if (field.data == nullptr || field.length < 1) continue;
    const bool wide = field.type == trt::PluginFieldType::kINT64;  // ONNX's own integers
    if (!wide && field.type != trt::PluginFieldType::kINT32) continue;
    const auto value =
        static_cast<int32_t>(wide ? *static_cast<int64_t const*>(field.data) : *static_cast<int32_t const*>(field.data));
    if (std::strcmp(field.name, "top_k") == 0) top_k = value;
    if (std::strcmp(field.name, "contrast") == 0) contrast = value;
  }
  if (top_k < 1 || (contrast != 0 && contrast != 1)) {
    report("ExpertDispatch: node '%s' has top_k = %d and contrast = %d; expected top_k of 1 or more and contrast of 0 or 1",
           name == nullptr ? "" : name, top_k, contrast);
    return nullptr;
  }
  return new (std::nothrow) ExpertDispatchPlugin(top_k, contrast);
}

}  // namespace jakiro

// What IPluginRegistry::loadLibrary, and trtexec's --dynamicPlugins and --staticPlugins, look for.

extern "C" JAKIRO_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { jakiro::logger_finder = finder; }

extern "C" JAKIRO_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static jakiro::ExpertDispatchCreator expert_dispatch;
  static jakiro::GroupMatMulCreator group_matmul;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&expert_dispatch, &group_matmul};
  count = 2;
  return creators;
}
