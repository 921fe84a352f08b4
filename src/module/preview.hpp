// preview.hpp - what a module's descriptor will say, read from the file: for a dry run, which must
// not map anything, since that runs the constructors.
#pragma once

#include <molt/molt.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "elf/image.hpp"

namespace molt::module {

// A descriptor with what can be known of it: hooks, imports, exports, names of parameters, and the
// versions of its state; functions are null, or not, as they will be. Valid as long as this lives.
class Preview {
 public:
  // Null if the file has another layout than the macros give it; then there is nothing to check.
  static std::unique_ptr<Preview> of(const elf::Image& image);
  molt_module* descriptor() { return &module_; }

 private:
  molt_module module_{};
  std::deque<std::string> texts_;
  std::vector<molt_callback> callbacks_;
  std::vector<molt_import> imports_;
  std::vector<molt_export> exports_;
  std::vector<molt_param> params_;
  molt_state_info state_{};
  void* slot_ = nullptr;  // what is imported goes nowhere
};

}  // namespace molt::module
