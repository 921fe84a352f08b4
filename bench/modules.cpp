#include "modules.hpp"

#include <molt/molt.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>

#include "hooks.hpp"

namespace bench {
namespace {

template <class Hook>
void check_chain(Hook& hook, unsigned length) {
  Request request;
  if (hook(&request) != 0) throw std::runtime_error("a callback objects that should not");
  for (unsigned k = 0; k < longest_chain; ++k) {
    request.objections = 1u << k;
    if ((hook(&request) != 0) != (k < length)) {
      throw std::runtime_error("the chain of " + std::to_string(length) + " has not callback " +
                               std::to_string(k));
    }
  }
}

}  // namespace

std::string module_path(const std::string& name) {
  static const std::filesystem::path folder =
      std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "lib" / "molt" /
      "bench";
  return folder / (name + ".so");
}

void load(const std::string& name, const std::string& args) {
  if (int error = molt_load(module_path(name).c_str(), args.c_str(), 0, -1)) {
    throw std::runtime_error("loading " + name + ": " + molt_last_error() + " (" +
                             std::to_string(error) + ")");
  }
}

void unload(const std::string& name) {
  int error = molt_unload(name.c_str(), 0, -1);
  std::string text = molt_last_error();
  if (error != 0 || text.find("pinned") != std::string::npos) {
    throw std::runtime_error("unloading " + name + ": " + text + " (" + std::to_string(error) +
                             ")");
  }
}

void need_chains() {
  static bool done = false;
  if (done) return;
  for (unsigned k = 0; k < longest_chain; ++k) load("bench_chain_" + std::to_string(k));
  check_chain(chain1, 1);
  check_chain(chain4, 4);
  check_chain(chain8, 8);
  check_chain(chain16, 16);
  done = true;
}

}  // namespace bench
