#include "kernels/cpus.h"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

namespace jakiro::runtime {
namespace {

namespace fs = std::filesystem;

std::set<std::string> allowed_cores() {
  std::set<std::string> cores;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    cores.insert(std::getline(file, siblings) ? siblings : std::to_string(cpu));
  }
  return cores;
}

// CPUs that a control group grants; 0 where it sets no limit.
double quota(const fs::path& group) {
  int64_t granted = 0, period = 0;
  std::error_code ignored;
  if (fs::is_regular_file(group / "cpu.max", ignored)) {
    std::ifstream file(group / "cpu.max");
    if (!(file >> granted >> period)) return 0;  // "max"
  } else {
    std::ifstream first(group / "cpu.cfs_quota_us"), second(group / "cpu.cfs_period_us");
    if (!(first >> granted) || !(second >> period)) return 0;
  }
  return granted > 0 && period > 0 ? static_cast<double>(granted) / static_cast<double>(period) : 0;
}

// Whether a list of names, separated by commas, has "cpu".
bool has_cpu(const std::string& controllers) { return ("," + controllers + ",").find(",cpu,") != std::string::npos; }

// The least that any control group of this process grants; `otherwise` where none sets a limit.
double smallest_quota(double otherwise) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:path; version 2 has neither number nor controllers
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !has_cpu(controllers)) continue;
    const fs::path mount = controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    fs::path group = fs::path(line.substr(second + 1)).relative_path();
    while (true) {  // a limit of any parent holds; a container may not see its own path, but sees the mount
      if (const double granted = quota(mount / group); granted > 0) otherwise = std::min(otherwise, granted);
      if (group.empty()) break;
      group = group.parent_path();
    }
  }
  return otherwise;
}

}  // namespace

int physical_cores() {
  const auto cores = static_cast<int>(allowed_cores().size());
  return std::max(1, std::min(cores, static_cast<int>(smallest_quota(cores))));
}

}  // namespace jakiro::runtime
