// process.hpp - what this process holds: memory, mappings, descriptors, threads.
#pragma once

#include <cstdint>
#include <string>

namespace bench {

struct Holdings {
  std::int64_t rss_kib = 0;
  std::int64_t mappings = 0;
  std::int64_t descriptors = 0;
  std::int64_t threads = 0;
};
Holdings holdings();

// Runs this program again as a process of its own, with `--scenario NAME`, and answers what it
// printed. Throws if it failed.
std::string run_in_new_process(const std::string& scenario);

}  // namespace bench
