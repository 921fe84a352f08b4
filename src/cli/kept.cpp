#include "cli/kept.hpp"

#include "cli/print.hpp"

namespace molt::cli {

void note_kept(Session& session, const std::string& name, const Json& reply, const char* field,
               std::string_view done) {
  const Json& result = reply.at(field);
  if (session.options().dry_run || result == wire::result::unmapped ||
      result == wire::result::quarantined) {
    return;
  }
  session.note(demangled(
      fmt::format("{}: {}, but its memory stays: {}; `molt gc -p {}` frees it after that", name,
                  done, reply.value("reason", "no reason given"), session.process().pid)));
}

}  // namespace molt::cli
