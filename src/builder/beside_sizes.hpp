// beside_sizes.hpp - who knows how large a type is whose new members lie beside its objects (beside.hpp, B3).
//
// Checked by tests/builder/build_test.py
#pragma once

#include "builder/beside.hpp"
#include "builder/capture.hpp"
#include "builder/patch.hpp"

#include <map>
#include <string>
#include <vector>

namespace molt::builder {

// `made`: each object with the diff in, by output; `grown`: those again in which the types are larger. Whatever differs
// is refused, and what makes objects without forgetting what lay beside others.
void refuse_who_knows_sizes(const std::vector<Beside>& types,
                            const std::map<std::string, Record>& made,
                            const std::map<std::string, Record>& grown,
                            const std::vector<std::string>& keep_old,
                            std::vector<Refusal>& refusals);

}  // namespace molt::builder
