// Fuzzing of the runtime's kernels under AddressSanitizer and UBSan, without ONNX Runtime.
//
// A small double of ONNX Runtime's C interface hands every registered operator inputs whose memory is exactly as large as their
// shapes say. A run decodes bytes into an operator, a call that fits it, and some changes to ranks, dimensions and values.
// Whatever comes of it, an operator must compute or refuse; a stray access stops the program. Built with -fsanitize=fuzzer,
// libFuzzer chooses the bytes (LLVMFuzzerTestOneInput); without it, main() draws them: fuzz_kernels [seconds] [operator] [seed].
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ort_abi.h"

namespace ort {

struct Status {
  std::string text;
};
struct Shape {
  ElementType type;
  std::vector<int64_t> dims;
};
// Memory of its own for each tensor, so that AddressSanitizer sees every access outside it.
struct Value {
  Shape shape;
  std::unique_ptr<char[]> data;
};
struct Domain {};
struct SessionOptions {};
struct KernelInfo {
  std::vector<Value*> constants;  // nullptr where an input is not constant
};
struct Context {
  const CustomOp* op;
  std::vector<Value*> inputs;
  std::vector<std::unique_ptr<Value>> outputs;
  int threads;
};

}  // namespace ort

extern "C" ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base);

namespace {

using ort::ElementType;
using ort::Value;

constexpr int64_t kMaxEntries =
    1 << 20;  // of an output: larger ones are refused, as ONNX Runtime refuses what it cannot allocate

size_t size_of(ElementType type) {
  switch (type) {
    case ort::kFloat:
      return 4;
    case ort::kInt64:
      return 8;
    case ort::kHalf:
      return 2;
    default:
      return 1;
  }
}

std::unique_ptr<Value> make_value(ElementType type, std::vector<int64_t> dims) {
  int64_t count = 1;
  for (const int64_t dim : dims) {
    if (dim < 0 || (dim > 0 && count > kMaxEntries / dim)) return nullptr;
    count *= dim;
  }
  auto value = std::make_unique<Value>();
  value->data = std::make_unique<char[]>(count * size_of(type));
  value->shape = {type, std::move(dims)};
  return value;
}

// ---- the interface ----

std::vector<const ort::CustomOp*> operators;

ort::Status* fail(const char* text) { return new ort::Status{text}; }

ort::Status* get_output(ort::Context* context, size_t index, const int64_t* dims, size_t rank, Value** value);

const ort::Api* make_api() {
  static ort::Api api{};
  const auto set = [](ort::Place place, auto* function) { api.functions[place] = reinterpret_cast<void*>(function); };
  set(ort::kCreateStatus, +[](int, const char* text) { return fail(text); });
  set(ort::kGetErrorMessage, +[](const ort::Status* status) { return status->text.c_str(); });
  set(ort::kReleaseStatus, +[](ort::Status* status) { delete status; });
  set(
      ort::kCreateCustomOpDomain, +[](const char*, ort::Domain** domain) -> ort::Status* {
        static ort::Domain only;
        *domain = &only;
        return nullptr;
      });
  set(
      ort::kCustomOpDomainAdd, +[](ort::Domain*, const ort::CustomOp* op) -> ort::Status* {
        operators.push_back(op);
        return nullptr;
      });
  set(ort::kAddCustomOpDomain, +[](ort::SessionOptions*, ort::Domain*) -> ort::Status* { return nullptr; });
  set(
      ort::kGetTensorMutableData, +[](Value* value, void** data) -> ort::Status* {
        *data = value->data.get();
        return nullptr;
      });
  set(
      ort::kGetTensorTypeAndShape, +[](const Value* value, ort::Shape** shape) -> ort::Status* {
        *shape = new ort::Shape(value->shape);
        return nullptr;
      });
  set(
      ort::kGetTensorElementType, +[](const ort::Shape* shape, ElementType* type) -> ort::Status* {
        *type = shape->type;
        return nullptr;
      });
  set(
      ort::kGetDimensionsCount, +[](const ort::Shape* shape, size_t* rank) -> ort::Status* {
        *rank = shape->dims.size();
        return nullptr;
      });
  set(
      ort::kGetDimensions, +[](const ort::Shape* shape, int64_t* dims, size_t) -> ort::Status* {
        std::copy(shape->dims.begin(), shape->dims.end(), dims);
        return nullptr;
      });
  set(ort::kReleaseTensorTypeAndShapeInfo, +[](ort::Shape* shape) { delete shape; });
  set(
      ort::kKernelInfoGetAttributeFloat, +[](const ort::KernelInfo*, const char*, float* value) -> ort::Status* {
        *value = 0.125f;
        return nullptr;
      });
  set(
      ort::kKernelInfoGetConstantInput,
      +[](const ort::KernelInfo* info, size_t index, int* constant, const Value** value) -> ort::Status* {
        *value = info->constants[index];
        *constant = *value != nullptr;
        return nullptr;
      });
  set(
      ort::kKernelContextGetInput, +[](const ort::Context* context, size_t index, const Value** value) -> ort::Status* {
        *value = context->inputs[index];
        return nullptr;
      });
  set(ort::kKernelContextGetOutput, &get_output);
  set(
      ort::kKernelContextParallelFor,
      +[](const ort::Context* context, void (*run)(void*, size_t), size_t count, size_t, void* data) -> ort::Status* {
        if (context->threads == 1) {
          for (size_t n = 0; n < count; ++n) run(data, n);
          return nullptr;
        }
        std::thread other([=] {
          for (size_t n = 1; n < count; n += 2) run(data, n);
        });
        for (size_t n = 0; n < count; n += 2) run(data, n);
        other.join();
        return nullptr;
      });
  return &api;
}

ort::Status* get_output(ort::Context* context, size_t index, const int64_t* dims, size_t rank, Value** value) {
  auto made = make_value(context->op->output_type(context->op, index), std::vector<int64_t>(dims, dims + rank));
  if (made == nullptr) return fail("an output that cannot be allocated");
  *value = made.get();
  context->outputs[index] = std::move(made);
  return nullptr;
}

// ---- a call ----

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint64_t below(uint64_t limit) {  // 0 where the bytes have run out
    uint64_t value = 0;
    for (int n = 0; n < 2; ++n) value = value << 8 | (at_ < size_ ? data_[at_++] : 0);
    return value % limit;
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

using Shapes = std::vector<std::vector<int64_t>>;

// Input shapes that fit an operator, of small random sizes.
Shapes shapes_of(const std::string& name, Bytes& bytes) {
  const auto size = [&](int64_t min, int64_t max) { return min + static_cast<int64_t>(bytes.below(max - min + 1)); };
  const int64_t batch = size(1, 3), rows = size(1, 20);
  if (name == "TreeAttention") {
    const int64_t kv_heads = size(1, 3), heads = kv_heads * size(1, 3), capacity = size(0, 150), others = size(0, 70);
    const int64_t dims[] = {8, 16, 32, 48, 64, 96, 128, 5}, dim = dims[size(0, 7)];
    const std::vector<int64_t> past{batch, kv_heads, capacity, dim}, added{batch, kv_heads, others, dim};
    return {{batch, heads, rows, dim}, past, past, added, added, {batch}, {batch, rows, others}};
  }
  if (name == "SplitHeads") {
    const int64_t half = size(1, 20), parts = 3 * size(1, 3);
    return {{batch, rows, parts * 2 * half}, {batch, rows, half}, {batch, rows, half}, {3}};
  }
  if (name == "SwiGlu") return {{batch, rows, 2 * size(1, 40)}};
  if (name == "BestToken") return {{batch, rows, size(1, 100)}};
  if (name == "Candidates") return {{rows, size(1, 900)}, {1}};
  if (name == "Propose") {
    const int64_t beam = size(0, 8), width = size(0, 8);
    return {{batch, beam}, {batch, beam, width}, {batch, beam, width}, {batch, beam}};
  }
  if (name == "BestNodes") {
    const int64_t count = size(1, 60);
    return {{batch, count}, {batch, count}, {batch, count}, {1}};
  }
  if (name == "MixExperts") {
    const int64_t hidden = size(0, 40);
    return {{rows, 4}, {rows, hidden}, {rows, hidden}};
  }
  const bool int4 = name.find("Int4") != std::string::npos, gated = name.find("SwiGlu") == 0;
  const int64_t block = int64_t{1} << size(0, 7);
  const int64_t in = int4 ? 32 * size(1, 5) : block * std::max<int64_t>(1, 4 / block) * size(1, 5), out = size(1, 9);
  Shapes shapes{{batch, rows, gated ? 2 * in : in}};
  if (int4) {
    shapes.insert(shapes.end(), {{out, in / 32, 4, 16, 4}, {out, in / 32, 16}, {out, in / 32, 16}});
  } else {
    shapes.insert(shapes.end(), {{block, block}, {out, in / 4, 16, 4}, {out * 16}});
  }
  if (name.find("Norm") == 0) shapes.push_back({in});
  if (name.find("Add") != std::string::npos) shapes.push_back({batch, rows, out * 16});
  return shapes;
}

void change_shape(std::vector<int64_t>& dims, Bytes& bytes) {
  const int64_t sizes[] = {0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 129};
  const int64_t huge[] = {int64_t{1} << 31, int64_t{1} << 40, INT64_MAX};
  const size_t axis = dims.empty() ? 0 : bytes.below(dims.size());
  switch (bytes.below(7)) {
    case 0:
      dims.insert(dims.begin(), bytes.below(50), 1);
      break;
    case 1:
      dims.clear();
      break;
    case 2:
      if (!dims.empty()) dims.erase(dims.begin() + axis);
      break;
    case 3:
      if (!dims.empty() && dims[axis] < 1000) dims[axis] += 1;
      break;
    case 4:
      if (dims.size() > 1) dims[0] = 0, dims[1 + bytes.below(dims.size() - 1)] = huge[bytes.below(3)];
      break;
    default:
      if (!dims.empty()) dims[axis] = sizes[bytes.below(16)];
  }
}

void fill(Value& value, size_t count, const std::string& op, Bytes& bytes) {
  std::minstd_rand random(static_cast<unsigned>(1 + bytes.below(60000)));
  const int kind = static_cast<int>(bytes.below(8));
  const int64_t wild[] = {-1, 0, 1, INT64_MIN, INT64_MAX, 100000, -100000, int64_t{1} << 31};
  for (size_t n = 0; n < count; ++n) {
    char* at = value.data.get() + n * size_of(value.shape.type);
    if (value.shape.type == ort::kFloat) {
      float x = static_cast<float>(random() % 2001) / 500.0f - 2.0f;
      if (kind == 0) x = std::numeric_limits<float>::quiet_NaN();
      if (kind == 1) x = (n % 2 ? 1 : -1) * std::numeric_limits<float>::infinity();
      if (kind == 2) x = 3e38f;
      std::memcpy(at, &x, sizeof x);
    } else if (value.shape.type == ort::kInt64) {
      int64_t x = static_cast<int64_t>(random() % 8);
      if (kind == 0) x = wild[bytes.below(8)];
      if (kind > 2 && op == "SplitHeads") x = -1;  // set below
      std::memcpy(at, &x, sizeof x);
    } else {
      *at = static_cast<char>(value.shape.type == ort::kBool && kind > 1 ? random() % 2 : random());
    }
    if (value.shape.type == ort::kHalf) at[1] = static_cast<char>(random());
  }
}

std::map<std::string, std::pair<long, long>> outcomes;  // calls of each operator that computed, and that it refused

void run_call(const ort::Api* api, const ort::CustomOp* op, Bytes& bytes) {
  const std::string name = op->name(op);
  Shapes shapes = shapes_of(name, bytes);
  const int64_t parts = name == "SplitHeads" ? shapes[0][2] / (2 * shapes[1][2]) : 0;
  for (size_t changes = bytes.below(4); changes > 1; --changes) change_shape(shapes[bytes.below(shapes.size())], bytes);
  std::vector<std::unique_ptr<Value>> inputs;
  for (size_t n = 0; n < shapes.size(); ++n) {
    inputs.push_back(make_value(op->input_type(op, n), shapes[n]));
    if (inputs.back() == nullptr) return;
    size_t count = 1;
    for (const int64_t dim : shapes[n]) count *= dim;
    fill(*inputs.back(), count, name, bytes);
    int64_t* values = reinterpret_cast<int64_t*>(inputs.back()->data.get());
    if (name == "SplitHeads" && n == 3 && count == 3 && values[0] == -1) values[0] = values[1] = values[2] = parts / 3;
  }
  const bool constant = bytes.below(2) != 0;
  ort::KernelInfo info;
  ort::Context context;
  for (size_t n = 0; n < inputs.size(); ++n) {
    info.constants.push_back(constant && n > 0 ? inputs[n].get() : nullptr);
    context.inputs.push_back(inputs[n].get());
  }
  context.op = op;
  context.outputs.resize(op->output_count(op));
  context.threads = 1 + static_cast<int>(bytes.below(8) == 0);
  void* kernel = nullptr;
  ort::Status* status = op->create_kernel_v2(op, api, &info, &kernel);
  if (status == nullptr) {
    status = op->compute_v2(kernel, &context);
    op->destroy(kernel);
  }
  ++(status == nullptr ? outcomes[name].first : outcomes[name].second);
  delete status;
}

const ort::Api* api() {
  static const ort::Api* made = [] {
    const ort::Api* api = make_api();
    static ort::ApiBase base;
    base.get = [](uint32_t) { return make_api(); };
    ort::SessionOptions options;
    RegisterCustomOps(&options, &base);
    return api;
  }();
  return made;
}

}  // namespace

// A session's operators are never freed: see register_ops.cpp.
extern "C" const char* __lsan_default_suppressions() { return "leak:RegisterCustomOps"; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const ort::Api* interface = api();
  Bytes bytes(data, size);
  run_call(interface, operators[bytes.below(operators.size())], bytes);
  return 0;
}

#ifndef JAKIRO_LIBFUZZER
int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 10;
  const std::string only = count > 2 ? arguments[2] : "";
  std::mt19937_64 random(count > 3 ? std::strtoull(arguments[3], nullptr, 10) : std::random_device{}());
  const ort::Api* interface = api();
  std::vector<const ort::CustomOp*> chosen;
  for (const ort::CustomOp* op : operators) {
    if (only.empty() || only == op->name(op)) chosen.push_back(op);
  }
  if (chosen.empty()) return std::fprintf(stderr, "There is no operator %s.\n", only.c_str()), 2;
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  uint8_t data[256];
  for (size_t n = 0; std::chrono::steady_clock::now() < until; ++n) {
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    Bytes bytes(data, sizeof data);
    run_call(interface, chosen[n % chosen.size()], bytes);
  }
  for (const auto& [name, count] : outcomes) {
    std::printf("%-24s %9ld computed, %9ld refused\n", name.c_str(), count.first, count.second);
  }
  return 0;
}
#endif
