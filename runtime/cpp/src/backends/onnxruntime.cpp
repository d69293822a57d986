#include "backends/onnxruntime.h"

#include <cstdlib>
#include <optional>

#include "backends/ort_api.h"
#include "backends/shared_library.h"
#include "errors.h"
#include "kernels/cpus.h"
#include "kernels/kernels.h"

namespace jakiro::runtime {
namespace {

namespace fs = std::filesystem;
using namespace ort_api;

struct TypeName {
  int number;  // ONNX's
  ElementType type;
};
constexpr TypeName kTypes[] = {{ort::kInt64, ElementType::kInt64},
                               {ort::kBool, ElementType::kBool},
                               {ort::kHalf, ElementType::kFloat16},
                               {ort::kFloat, ElementType::kFloat32},
                               {ort::kDouble, ElementType::kFloat64}};

int number_of(ElementType type) {
  for (const TypeName& each : kTypes) {
    if (each.type == type) return each.number;
  }
  return 0;
}

// Library files to try, the likeliest first.
std::vector<std::string> candidates(const std::string& given) {
  const char* root = std::getenv("ONNXRUNTIME_ROOT");
  const std::string place = !given.empty() ? given : root != nullptr ? root : "";
  if (place.empty()) return {"libonnxruntime.so.1", "libonnxruntime.so"};
  std::error_code ignored;
  if (!fs::is_directory(place, ignored)) return {place};
  std::vector<std::string> found;
  for (const char* folder : {"", "lib", "lib64", "capi", "onnxruntime/capi"}) {
    for (const auto& entry : fs::directory_iterator(fs::path(place) / folder, ignored)) {
      const std::string name = entry.path().filename().string();
      if (name.rfind("libonnxruntime.so", 0) == 0) found.push_back(entry.path().string());
    }
  }
  if (found.empty()) throw EngineError("There is no libonnxruntime.so in " + place + "; name the folder of an ONNX Runtime.");
  return found;
}

// ONNX Runtime's library, its table of functions and its environment.
class OnnxRuntime {
 public:
  explicit OnnxRuntime(const std::string& given) {
    std::string reason;
    for (const std::string& path : candidates(given)) {
      try {
        library_.emplace(path);
        break;
      } catch (const EngineError& error) {
        reason = error.what();
      }
    }
    if (!library_) {
      throw EngineError("ONNX Runtime is not found (" + reason + "); name its library or folder in ONNXRUNTIME_ROOT.");
    }
    const auto get_base = reinterpret_cast<const ort::ApiBase* (*)()>(library_->symbol("OrtGetApiBase"));
    base_ = get_base != nullptr ? get_base() : nullptr;
    api_ = base_ != nullptr ? base_->get(ort::kVersion) : nullptr;
    if (api_ == nullptr) {
      const std::string version = base_ != nullptr ? base_->version() : "of no version";
      throw EngineError("ONNX Runtime " + version + " is too old; version 1." + std::to_string(ort::kVersion) +
                        " or newer is expected.");
    }
    check(call<Status*(int, const char*, Env**)>(kCreateEnv)(kError, "jakiro", &env_));
  }
  ~OnnxRuntime() { release(kReleaseEnv, env_); }
  OnnxRuntime(const OnnxRuntime&) = delete;
  OnnxRuntime& operator=(const OnnxRuntime&) = delete;

  template <typename Signature>
  Signature* call(Place place) const {
    return api_->at<Signature>(place);
  }

  // Throws what a status says, if it is one.
  void check(Status* status) const {
    if (status == nullptr) return;
    std::string message = call<const char*(const Status*)>(ort::kGetErrorMessage)(status);
    release(ort::kReleaseStatus, status);
    message = message.substr(0, message.find('\n'));
    throw EngineError(message.size() <= 300 ? message : message.substr(0, 297) + "...");
  }

  template <typename Object>
  void release(Place place, Object* object) const {
    if (object != nullptr) call<void(Object*)>(place)(object);
  }

  Env* env() const { return env_; }
  const ort::ApiBase* base() const { return base_; }
  std::string version() const { return base_->version(); }

 private:
  std::optional<SharedLibrary> library_;
  const ort::ApiBase* base_ = nullptr;
  const ort::Api* api_ = nullptr;
  Env* env_ = nullptr;
};

using Library = std::shared_ptr<const OnnxRuntime>;

// An object of ONNX Runtime's that is released with the scope.
template <typename Object>
class Owned {
 public:
  Owned(Library library, Place release) : library_(std::move(library)), release_(release) {}
  ~Owned() { library_->release(release_, object_); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  Object** out() { return &object_; }
  Object* get() const { return object_; }

 private:
  const Library library_;
  const Place release_;
  Object* object_ = nullptr;
};

class OnnxRuntimeGraph;

class OnnxRuntimeBinding : public Binding {
 public:
  OnnxRuntimeBinding(Library library, const OnnxRuntimeGraph& graph, const Views& inputs, const Views& outputs);

  void run() override {
    library_->check(library_->call<Status*(Session*, const RunOptions*, const IoBinding*)>(kRunWithBinding)(session_, nullptr,
                                                                                                            binding_.get()));
  }

 private:
  void bind(Place place, const Tensors& expected, const std::string& name, const View& view, const MemoryInfo* memory);

  const Library library_;
  Session* const session_;
  Owned<IoBinding> binding_;
  std::vector<std::unique_ptr<Owned<Value>>> values_;
};

class OnnxRuntimeGraph : public Graph {
 public:
  OnnxRuntimeGraph(Library library, const fs::path& file, const SessionOptions* options)
      : library_(std::move(library)), session_(library_, kReleaseSession) {
    try {
      library_->check(library_->call<Status*(const Env*, const char*, const SessionOptions*, Session**)>(kCreateSession)(
          library_->env(), file.c_str(), options, session_.out()));
      inputs_ = tensors(kSessionGetInputCount, kSessionGetInputName, kSessionGetInputTypeInfo);
      outputs_ = tensors(kSessionGetOutputCount, kSessionGetOutputName, kSessionGetOutputTypeInfo);
    } catch (const EngineError& error) {
      throw EngineError("ONNX Runtime " + library_->version() + " refuses " + file.string() + ": " + error.what());
    }
  }

  const Tensors& inputs() const override { return inputs_; }
  const Tensors& outputs() const override { return outputs_; }
  Session* session() const { return session_.get(); }

  std::unique_ptr<Binding> bind(const Views& inputs, const Views& outputs) const override {
    return std::make_unique<OnnxRuntimeBinding>(library_, *this, inputs, outputs);
  }

 private:
  Tensors tensors(Place count_place, Place name_place, Place type_place) const {
    const OnnxRuntime& ort = *library_;
    size_t count = 0;
    ort.check(ort.call<Status*(const Session*, size_t*)>(count_place)(session(), &count));
    Allocator* allocator = nullptr;
    ort.check(ort.call<Status*(Allocator**)>(kGetDefaultAllocator)(&allocator));
    Tensors found;
    for (size_t place = 0; place < count; ++place) {
      char* text = nullptr;
      ort.check(ort.call<Status*(const Session*, size_t, Allocator*, char**)>(name_place)(session(), place, allocator, &text));
      const std::string name = text;
      ort.check(ort.call<Status*(Allocator*, void*)>(kAllocatorFree)(allocator, text));
      found.emplace(name, tensor(name, place, type_place));
    }
    return found;
  }

  Tensor tensor(const std::string& name, size_t place, Place type_place) const {
    const OnnxRuntime& ort = *library_;
    Owned<TypeInfo> type(library_, kReleaseTypeInfo);
    ort.check(ort.call<Status*(const Session*, size_t, TypeInfo**)>(type_place)(session(), place, type.out()));
    const TensorInfo* info = nullptr;  // the type's, not ours to release
    ort.check(ort.call<Status*(const TypeInfo*, const TensorInfo**)>(kCastTypeInfoToTensorInfo)(type.get(), &info));
    if (info == nullptr) throw EngineError("its " + name + " is no tensor");
    int number = 0;
    size_t rank = 0;
    ort.check(ort.call<Status*(const TensorInfo*, int*)>(ort::kGetTensorElementType)(info, &number));
    ort.check(ort.call<Status*(const TensorInfo*, size_t*)>(ort::kGetDimensionsCount)(info, &rank));
    Shape dims(rank);
    ort.check(ort.call<Status*(const TensorInfo*, int64_t*, size_t)>(ort::kGetDimensions)(info, dims.data(), rank));
    for (const TypeName& each : kTypes) {
      if (each.number == number) return {each.type, dims};
    }
    throw EngineError("its " + name + " has element type " + std::to_string(number) +
                      ", which this backend cannot hold; export the engine with --precision fp32 or fp16");
  }

  const Library library_;
  Owned<Session> session_;
  Tensors inputs_, outputs_;
};

OnnxRuntimeBinding::OnnxRuntimeBinding(Library library, const OnnxRuntimeGraph& graph, const Views& inputs, const Views& outputs)
    : library_(std::move(library)), session_(graph.session()), binding_(library_, kReleaseIoBinding) {
  const OnnxRuntime& ort = *library_;
  ort.check(ort.call<Status*(Session*, IoBinding**)>(kCreateIoBinding)(session_, binding_.out()));
  Owned<MemoryInfo> memory(library_, kReleaseMemoryInfo);
  ort.check(ort.call<Status*(int, int, MemoryInfo**)>(kCreateCpuMemoryInfo)(kDeviceAllocator, kDefaultMemory, memory.out()));
  for (const auto& [name, view] : inputs) bind(kBindInput, graph.inputs(), name, view, memory.get());
  for (const auto& [name, view] : outputs) bind(kBindOutput, graph.outputs(), name, view, memory.get());
}

void OnnxRuntimeBinding::bind(Place place, const Tensors& expected, const std::string& name, const View& view,
                              const MemoryInfo* memory) {
  const OnnxRuntime& ort = *library_;
  const Tensor& tensor = expected.at(name);
  size_t bytes = size_of(view.type);
  bool fits = tensor.type == view.type && tensor.dims.size() == view.shape.size();
  for (size_t axis = 0; fits && axis < view.shape.size(); ++axis) {
    fits = tensor.dims[axis] < 0 || tensor.dims[axis] == view.shape[axis];
    bytes *= static_cast<size_t>(view.shape[axis]);
  }
  if (!fits) throw EngineError("its " + name + " is " + name_of(tensor.type) + " or has another shape than the other tensors");
  auto& value = values_.emplace_back(std::make_unique<Owned<Value>>(library_, kReleaseValue));
  using Create = Status*(const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, Value**);
  ort.check(ort.call<Create>(kCreateTensorWithData)(memory, view.data, bytes, view.shape.data(), view.shape.size(),
                                                    number_of(view.type), value->out()));
  ort.check(ort.call<Status*(IoBinding*, const char*, const Value*)>(place)(binding_.get(), name.c_str(), value->get()));
}

void set_options(const OnnxRuntime& ort, SessionOptions* options, int threads) {
  ort.check(ort.call<Status*(SessionOptions*, int)>(kSetIntraOpNumThreads)(options, threads > 0 ? threads : physical_cores()));
  ort.check(ort.call<Status*(SessionOptions*, int)>(kSetInterOpNumThreads)(options, 1));
  ort.check(ort.call<Status*(SessionOptions*, int)>(kSetSessionLogSeverityLevel)(options, kError));
  // as in runtime/jakiro_runtime/backends/onnxruntime.py, which says why
  const char* const kEntries[][2] = {{"session.intra_op.spin_duration_us", "100"},
                                     {"session.force_spinning_stop", "1"},
                                     {"session.qdq_matmulnbits_accuracy_level", "1"}};
  for (const auto& [key, value] : kEntries) {
    ort.check(ort.call<Status*(SessionOptions*, const char*, const char*)>(kAddSessionConfigEntry)(options, key, value));
  }
}

}  // namespace

LoadedGraphs open_graphs(const fs::path& folder, const Manifest& manifest, const BackendOptions& options) {
  const auto library = std::make_shared<const OnnxRuntime>(options.onnxruntime);
  const auto open = [&](const char* graph) {
    const fs::path file = folder / manifest.graphs.at(graph);
    Owned<SessionOptions> session_options(library, kReleaseSessionOptions);
    library->check(library->call<Status*(SessionOptions**)>(kCreateSessionOptions)(session_options.out()));
    set_options(*library, session_options.get(), options.threads);
    if (kernels_needed(file)) library->check(register_kernels(session_options.get(), library->base()));
    return std::make_shared<const OnnxRuntimeGraph>(library, file, session_options.get());
  };
  return {open(kTarget), open(kDraft)};
}

}  // namespace jakiro::runtime
