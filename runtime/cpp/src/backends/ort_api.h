// The part of ONNX Runtime's C interface that opening and running a graph needs, in the table that the kernels use too.
//
// A function's place in the table never changes, so no header of ONNX Runtime's is needed: see kernels/ort_abi.h.
#pragma once

#include "ort_abi.h"

namespace jakiro::runtime::ort_api {

struct Env;
struct Session;
struct MemoryInfo;
struct IoBinding;
struct RunOptions;
struct TypeInfo;
struct TensorInfo;
struct Allocator;

using ort::Place;
using ort::SessionOptions;
using ort::Status;
using ort::Value;

constexpr Place kCreateEnv{Place(3)};
constexpr Place kCreateSession{Place(7)};
constexpr Place kCreateSessionOptions{Place(10)};
constexpr Place kSetSessionLogSeverityLevel{Place(22)};
constexpr Place kSetIntraOpNumThreads{Place(24)};
constexpr Place kSetInterOpNumThreads{Place(25)};
constexpr Place kSessionGetInputCount{Place(30)};
constexpr Place kSessionGetOutputCount{Place(31)};
constexpr Place kSessionGetInputTypeInfo{Place(33)};
constexpr Place kSessionGetOutputTypeInfo{Place(34)};
constexpr Place kSessionGetInputName{Place(36)};
constexpr Place kSessionGetOutputName{Place(37)};
constexpr Place kCreateTensorWithData{Place(49)};
constexpr Place kCastTypeInfoToTensorInfo{Place(55)};
constexpr Place kCreateCpuMemoryInfo{Place(69)};
constexpr Place kAllocatorFree{Place(76)};
constexpr Place kGetDefaultAllocator{Place(78)};
constexpr Place kReleaseEnv{Place(92)};
constexpr Place kReleaseMemoryInfo{Place(94)};
constexpr Place kReleaseSession{Place(95)};
constexpr Place kReleaseValue{Place(96)};
constexpr Place kReleaseTypeInfo{Place(98)};
constexpr Place kReleaseSessionOptions{Place(100)};
constexpr Place kAddSessionConfigEntry{Place(130)};
constexpr Place kRunWithBinding{Place(133)};
constexpr Place kCreateIoBinding{Place(134)};
constexpr Place kReleaseIoBinding{Place(135)};
constexpr Place kBindInput{Place(136)};
constexpr Place kBindOutput{Place(137)};

constexpr int kDeviceAllocator = 0, kDefaultMemory = 0;  // of CreateCpuMemoryInfo
constexpr int kError = 3;                                // a severity of log messages

}  // namespace jakiro::runtime::ort_api
