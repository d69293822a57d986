// Typed reading of JSON objects that somebody else may have written: every value is checked before anything uses it.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace jakiro::runtime {

// A value that does not fit: the message names the field, what was found and what was expected.
struct FieldError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int64_t kLargestWhole = int64_t{1} << 53;  // what a JSON number holds exactly

// The fields of one object. A getter with `otherwise` takes it where the field is missing; the others throw FieldError there.
class Fields {
 public:
  // where: the object's own name, empty for the whole file
  Fields(const nlohmann::json& data, std::string where);

  // Whether the field is there, and not null.
  bool has(const char* name) const;
  Fields object(const char* name) const;
  std::string text(const char* name, std::optional<std::string> otherwise = {}) const;
  bool flag(const char* name, bool otherwise) const;
  int64_t whole(const char* name, int64_t least, int64_t most, std::optional<int64_t> otherwise = {}) const;
  double number(const char* name, std::optional<double> otherwise = {}) const;
  // null where the field is missing or null
  std::optional<int64_t> whole_or_null(const char* name) const;

  // Lists and objects of one kind of value; an empty one where the field is missing and `required` is off.
  std::vector<int64_t> wholes(const char* name, bool required) const;
  std::vector<double> numbers(const char* name) const;
  std::map<std::string, std::string> texts(const char* name) const;
  std::map<std::string, double> named_numbers(const char* name) const;
  std::map<std::string, int64_t> named_wholes(const char* name) const;
  std::map<std::string, std::vector<double>> named_lists(const char* name) const;
  std::map<std::string, Fields> objects(const char* name) const;

 private:
  std::string path(const std::string& name) const { return where_.empty() ? name : where_ + "." + name; }
  const nlohmann::json& required(const char* name) const;
  const nlohmann::json& required_object(const char* name) const;

  const nlohmann::json& data_;
  std::string where_;
};

}  // namespace jakiro::runtime
