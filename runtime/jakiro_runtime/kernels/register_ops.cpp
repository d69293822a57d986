// The entry point ONNX Runtime calls: describes this library's operators and adds them to a session.
//
// Why a table of operators: every operator has the same callbacks, which find what differs (name, types, function) in their row.
#include <atomic>
#include <exception>
#include <fstream>
#include <memory>
#include <string>

#include "operators.h"
#include "ort_abi.h"
#include "prepacked_weight.h"
#include "row_matmul.h"

namespace {

using jakiro::Call;

struct Operator {
  ort::CustomOp base;  // first: ONNX Runtime hands back its address
  jakiro::Signature signature;
  void (*run)(const Call&);
  const char* attribute;                                         // a float; nullptr where it has none
  jakiro::PrepackedWeight (*prepack)(const jakiro::Constants&);  // nullptr where it has no weights
  ort::ElementType outputs[3];
  size_t output_count;
  std::atomic<size_t>* prepacked_bytes = nullptr;  // of all kernels of the session
};

struct Kernel {
  const ort::Api* api;
  const Operator* op;
  float attribute;
  jakiro::PrepackedWeight weight;
};

const Operator* of(const ort::CustomOp* op) { return reinterpret_cast<const Operator*>(op); }

constexpr int kRequired = 0;

// Bytes of the CPU's last-level cache; 32 MiB where the system does not say. (sysconf adds up the caches of all sockets.)
const size_t kLastLevelCache = [] {
  size_t kilobytes = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kilobytes;
  return kilobytes ? kilobytes << 10 : size_t{1} << 25;
}();

// Runs work(), and turns what it throws into an error of ONNX Runtime.
template <typename Work>
ort::Status* guarded(const ort::Api* api, const Operator& op, Work work) {
  const auto error = [api](const std::string& text) {
    return api->at<ort::Status*(int, const char*)>(ort::kCreateStatus)(ort::kInvalidArgument, text.c_str());
  };
  try {
    work();
    return nullptr;
  } catch (const jakiro::Refusal& refusal) {
    return error(refusal.what());
  } catch (const std::exception&) {
    return error(std::string(op.signature.name) + ": there is not enough memory for this call");
  }
}

ort::Status* create(const Operator* op, const ort::Api* api, const ort::KernelInfo* info, Kernel** made) {
  auto kernel = std::make_unique<Kernel>(Kernel{api, op, 0.0f, {}});
  if (op->attribute != nullptr) {
    using Get = ort::Status*(const ort::KernelInfo*, const char*, float*);
    if (auto* status = api->at<Get>(ort::kKernelInfoGetAttributeFloat)(info, op->attribute, &kernel->attribute)) return status;
  }
  if (op->prepack != nullptr) {
    const auto prepack = [&] { kernel->weight = op->prepack(jakiro::Constants(api, op->signature, info)); };
    if (auto* status = guarded(api, *op, prepack)) return status;
    *op->prepacked_bytes += kernel->weight.bytes;
  }
  *made = kernel.release();
  return nullptr;
}

ort::CustomOp table() {
  ort::CustomOp op{};
  op.version = ort::kVersion;
  op.name = [](const ort::CustomOp* op) { return of(op)->signature.name; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.input_type = [](const ort::CustomOp* op, size_t n) { return of(op)->signature.inputs[n].type; };
  op.input_count = [](const ort::CustomOp* op) { return of(op)->signature.input_count; };
  op.output_type = [](const ort::CustomOp* op, size_t n) { return of(op)->outputs[n]; };
  op.output_count = [](const ort::CustomOp* op) { return of(op)->output_count; };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.input_characteristic = op.output_characteristic = [](const ort::CustomOp*, size_t) { return kRequired; };
  op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
  op.variadic_input_min = op.variadic_input_homogeneous = [](const ort::CustomOp*) { return 1; };
  op.variadic_output_min = op.variadic_output_homogeneous = [](const ort::CustomOp*) { return 1; };
  op.create_kernel_v2 = [](const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    return create(of(op), api, info, reinterpret_cast<Kernel**>(kernel));
  };
  op.compute_v2 = [](void* kernel, ort::Context* context) {
    const Kernel& self = *static_cast<Kernel*>(kernel);
    const bool non_temporal = self.op->prepacked_bytes->load(std::memory_order_relaxed) > kLastLevelCache;
    return guarded(self.api, *self.op, [&] {
      self.op->run(Call(self.api, self.op->signature, context, self.attribute, self.weight.data, non_temporal));
    });
  };
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return 1; };
  return op;
}

using jakiro::Epilogue;
using jakiro::Prologue;
using jakiro::row_matmul;

using jakiro::Int4;
using jakiro::Int8;

constexpr ort::ElementType kF = ort::kFloat, kI = ort::kInt64, kH = ort::kHalf;

// The variants of a matmul: prologue, weight format, epilogue.
template <Prologue kPrologue, Epilogue kEpilogue>
Operator int8_matmul(const char* name) {
  constexpr bool kNorm = kPrologue == Prologue::kNorm, kAdd = kEpilogue == Epilogue::kAdd;
  const jakiro::Input last{kF, kNorm ? "gain" : "residual"};
  return {table(),
          {name, {{kF, "x"}, {kF, "rotation"}, {ort::kUint8, "weight"}, {kF, "scales"}, last}, size_t{4} + (kNorm || kAdd)},
          row_matmul<Int8, kPrologue, kEpilogue>,
          kNorm ? "epsilon" : nullptr,
          Int8::prepack,
          {kF},
          1};
}
template <Prologue kPrologue, Epilogue kEpilogue>
Operator int4_matmul(const char* name) {
  constexpr bool kNorm = kPrologue == Prologue::kNorm, kAdd = kEpilogue == Epilogue::kAdd;
  const jakiro::Input last{kF, kNorm ? "gain" : "residual"};
  return {table(),
          {name, {{kF, "x"}, {ort::kUint8, "weight"}, {kH, "scales"}, {kH, "mins"}, last}, size_t{4} + (kNorm || kAdd)},
          row_matmul<Int4, kPrologue, kEpilogue>,
          kNorm ? "epsilon" : nullptr,
          Int4::prepack,
          {kF},
          1};
}

const Operator kOperators[] = {
    int8_matmul<Prologue::kNone, Epilogue::kNone>("RowInt8MatMul"),
    int8_matmul<Prologue::kNone, Epilogue::kAdd>("RowInt8MatMulAdd"),
    int8_matmul<Prologue::kNorm, Epilogue::kNone>("NormRowInt8MatMul"),
    int8_matmul<Prologue::kSwiGlu, Epilogue::kNone>("SwiGluRowInt8MatMul"),
    int8_matmul<Prologue::kSwiGlu, Epilogue::kAdd>("SwiGluRowInt8MatMulAdd"),
    int4_matmul<Prologue::kNone, Epilogue::kNone>("RowInt4MatMul"),
    int4_matmul<Prologue::kNone, Epilogue::kAdd>("RowInt4MatMulAdd"),
    int4_matmul<Prologue::kNorm, Epilogue::kNone>("NormRowInt4MatMul"),
    int4_matmul<Prologue::kSwiGlu, Epilogue::kNone>("SwiGluRowInt4MatMul"),
    int4_matmul<Prologue::kSwiGlu, Epilogue::kAdd>("SwiGluRowInt4MatMulAdd"),
    {table(),
     {"TreeAttention",
      {{kF, "query"},
       {kF, "past_key"},
       {kF, "past_value"},
       {kF, "new_key"},
       {kF, "new_value"},
       {kI, "past_length"},
       {ort::kBool, "visible"}},
      7},
     jakiro::tree_attention,
     "scaling",
     nullptr,
     {kF},
     1},
    {table(),
     {"SplitHeads", {{kF, "qkv"}, {kF, "cos"}, {kF, "sin"}, {kI, "parts"}}, 4},
     jakiro::split_heads,
     nullptr,
     nullptr,
     {kF, kF, kF},
     3},
    {table(), {"SwiGlu", {{kF, "both"}}, 1}, jakiro::swiglu, nullptr, nullptr, {kF}, 1},
    {table(), {"BestToken", {{kF, "logits"}}, 1}, jakiro::best_token, nullptr, nullptr, {kI}, 1},
    {table(), {"Candidates", {{kF, "logits"}, {kI, "count"}}, 2}, jakiro::candidates, nullptr, nullptr, {kF, kI}, 2},
    {table(),
     {"Propose", {{kF, "scores"}, {kF, "log_probs"}, {kI, "tokens"}, {kI, "numbers"}}, 4},
     jakiro::propose,
     nullptr,
     nullptr,
     {kF, kI, kI},
     3},
    {table(),
     {"BestNodes", {{kF, "scores"}, {kI, "tokens"}, {kI, "parents"}, {kI, "count"}}, 4},
     jakiro::best_nodes,
     nullptr,
     nullptr,
     {kI, kI, kF},
     3},
    {table(),
     {"MixExperts", {{kF, "router_logits"}, {kF, "first"}, {kF, "second"}}, 3},
     jakiro::mix_experts,
     nullptr,
     nullptr,
     {kF, kF},
     2},
};

constexpr size_t kCount = sizeof kOperators / sizeof *kOperators;

// The operators of one session. Never freed: ONNX Runtime does not say when a session is gone, and these are 4 KB.
struct Session {
  std::atomic<size_t> prepacked_bytes{0};
  Operator operators[kCount];

  Session() {
    for (size_t n = 0; n < kCount; ++n) {
      operators[n] = kOperators[n];
      operators[n].prepacked_bytes = &prepacked_bytes;
    }
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options,
                                                                                 const ort::ApiBase* base) {
  const ort::Api* api = base->get(ort::kVersion);
  if (api == nullptr) return nullptr;  // an older library: the operators' bodies run
  ort::Domain* domain = nullptr;
  if (auto* status = api->at<ort::Status*(const char*, ort::Domain**)>(ort::kCreateCustomOpDomain)("jakiro", &domain))
    return status;
  for (const Operator& op : (new Session)->operators) {
    const auto add = api->at<ort::Status*(ort::Domain*, const ort::CustomOp*)>(ort::kCustomOpDomainAdd);
    if (auto* status = add(domain, &op.base)) return status;
  }
  return api->at<ort::Status*(ort::SessionOptions*, ort::Domain*)>(ort::kAddCustomOpDomain)(options, domain);
}
