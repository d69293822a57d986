#include "backends/backend.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace jakiro::runtime {
namespace {

constexpr size_t kAlignment = 64;

size_t bytes_of(ElementType type, const Shape& shape) {
  size_t bytes = size_of(type);
  for (const int64_t length : shape) {
    if (length < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(length), &bytes)) throw std::bad_alloc();
  }
  if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
  return bytes;
}

double half_to_double(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
  const double size = exponent == 0    ? std::ldexp(fraction, -24)
                      : exponent != 31 ? std::ldexp(fraction + 1024, exponent - 25)
                      : fraction == 0  ? std::numeric_limits<double>::infinity()
                                       : std::numeric_limits<double>::quiet_NaN();
  return (bits & 0x8000) != 0 ? -size : size;
}

}  // namespace

size_t size_of(ElementType type) {
  switch (type) {
    case ElementType::kBool:
      return 1;
    case ElementType::kFloat16:
      return 2;
    case ElementType::kFloat32:
      return 4;
    default:
      return 8;
  }
}

const char* name_of(ElementType type) {
  static const char* const kNames[] = {"int64", "bool", "float16", "float32", "float64"};
  return kNames[static_cast<int>(type)];
}

Buffer::Buffer(ElementType type, Shape shape) : type_(type), shape_(std::move(shape)) {
  const size_t bytes = bytes_of(type, shape_);
  const size_t whole = (bytes / kAlignment + 1) * kAlignment;
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, whole)));
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_.get(), 0, bytes);
}

double Buffer::number(int64_t place) const {
  switch (type_) {
    case ElementType::kFloat16:
      return half_to_double(as<uint16_t>()[place]);
    case ElementType::kFloat32:
      return static_cast<double>(as<float>()[place]);
    default:
      return as<double>()[place];
  }
}

void Buffer::Free::operator()(std::byte* memory) const { std::free(memory); }

}  // namespace jakiro::runtime
