// modules.hpp - the modules that molt-bench loads.
#pragma once

#include <string>

namespace bench {

// The file of bench/modules/NAME, beside the program that is running.
std::string module_path(const std::string& name);

// molt_load() and molt_unload() that throw what went wrong. An unload that leaves the module's
// memory behind is an error here.
void load(const std::string& name, const std::string& args = "");
void unload(const std::string& name);

// Sixteen modules on the chains of 1, 4, 8 and 16; loaded on the first call, for the rest of the run.
// Checks that each chain holds exactly the callbacks that it should.
void need_chains();

}  // namespace bench
