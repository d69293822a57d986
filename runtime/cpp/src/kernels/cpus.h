// CPU cores that this process may use: its affinity, and the quota of its control group.
#pragma once

namespace jakiro::runtime {

// Physical cores this process may run on, at most as many as its CPU quota lets run at once; at least 1.
int physical_cores();

}  // namespace jakiro::runtime
