#include "format/fields.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace jakiro::runtime {
namespace {

using nlohmann::json;

FieldError wrong(const std::string& name, const json& value, const std::string& expected) {
  std::string shown = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (shown.size() > 40) shown = shown.substr(0, 37) + "...";
  return FieldError("the field " + name + " is " + shown + "; " + expected + " was expected");
}

std::string read_text(const json& value, const std::string& name) {
  if (!value.is_string()) throw wrong(name, value, "text");
  return value.get<std::string>();
}

int64_t read_whole(const json& value, const std::string& name, int64_t least = 0, int64_t most = kLargestWhole) {
  if (!value.is_number_integer()) throw wrong(name, value, "a whole number of 0 or more");
  const bool large = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kLargestWhole);
  if (large || value.get<int64_t>() < least || value.get<int64_t>() > most) {
    throw wrong(name, value, std::to_string(least) + " to " + std::to_string(most));
  }
  return value.get<int64_t>();
}

double read_number(const json& value, const std::string& name) {
  if (!value.is_number() || !std::isfinite(value.get<double>())) throw wrong(name, value, "a number");
  return value.get<double>();
}

template <typename Read>
auto read_list(const json& value, const std::string& name, Read read) {
  if (!value.is_array()) throw wrong(name, value, "a list");
  std::vector<decltype(read(value, name))> found;
  for (size_t place = 0; place < value.size(); ++place) {
    found.push_back(read(value[place], name + "[" + std::to_string(place) + "]"));
  }
  return found;
}

template <typename Read>
auto read_named(const json& object, const std::string& name, Read read) {
  std::map<std::string, decltype(read(object, name))> found;
  for (const auto& [key, value] : object.items()) found.emplace(key, read(value, name + "." + key));
  return found;
}

const auto kWhole = [](const json& value, const std::string& name) { return read_whole(value, name); };
const json kNothing = json::object();

}  // namespace

Fields::Fields(const json& data, std::string where) : data_(data), where_(std::move(where)) {
  if (!data.is_object()) throw wrong(where_.empty() ? "Manifest" : where_, data, "an object");
}

bool Fields::has(const char* name) const {
  const auto found = data_.find(name);
  return found != data_.end() && !found->is_null();
}

const json& Fields::required(const char* name) const {
  const auto found = data_.find(name);
  if (found == data_.end()) throw FieldError("the field " + path(name) + " is missing");
  return *found;
}

const json& Fields::required_object(const char* name) const {
  const json& value = required(name);
  if (!value.is_object()) throw wrong(path(name), value, "an object");
  return value;
}

Fields Fields::object(const char* name) const { return Fields(required(name), path(name)); }

std::string Fields::text(const char* name, std::optional<std::string> otherwise) const {
  return otherwise && !data_.contains(name) ? *otherwise : read_text(required(name), path(name));
}

bool Fields::flag(const char* name, bool otherwise) const {
  if (!data_.contains(name)) return otherwise;
  const json& value = required(name);
  if (!value.is_boolean()) throw wrong(path(name), value, "true or false");
  return value.get<bool>();
}

int64_t Fields::whole(const char* name, int64_t least, int64_t most, std::optional<int64_t> otherwise) const {
  return otherwise && !data_.contains(name) ? *otherwise : read_whole(required(name), path(name), least, most);
}

double Fields::number(const char* name, std::optional<double> otherwise) const {
  return otherwise && !data_.contains(name) ? *otherwise : read_number(required(name), path(name));
}

std::optional<int64_t> Fields::whole_or_null(const char* name) const {
  if (!has(name)) return {};
  return read_whole(required(name), path(name));
}

std::vector<int64_t> Fields::wholes(const char* name, bool required_) const {
  if (!required_ && !data_.contains(name)) return {};
  return read_list(required(name), path(name), kWhole);
}

std::vector<double> Fields::numbers(const char* name) const { return read_list(required(name), path(name), read_number); }

std::map<std::string, std::string> Fields::texts(const char* name) const {
  return read_named(required_object(name), path(name), read_text);
}

std::map<std::string, double> Fields::named_numbers(const char* name) const {
  return read_named(required_object(name), path(name), read_number);
}

std::map<std::string, int64_t> Fields::named_wholes(const char* name) const {
  return read_named(data_.contains(name) ? required_object(name) : kNothing, path(name), kWhole);
}

std::map<std::string, std::vector<double>> Fields::named_lists(const char* name) const {
  return read_named(required_object(name), path(name),
                    [](const json& value, const std::string& where) { return read_list(value, where, read_number); });
}

std::map<std::string, Fields> Fields::objects(const char* name) const {
  return read_named(required_object(name), path(name),
                    [](const json& value, const std::string& where) { return Fields(value, where); });
}

}  // namespace jakiro::runtime
