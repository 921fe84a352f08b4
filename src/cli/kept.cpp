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
  const std::string next =
      reply.value("for_good", false)
          ? "nothing but the end of the process frees it"
          : fmt::format("`molt gc -p {}` frees it after that", session.process().pid);
  session.note(demangled(fmt::format("{}: {}, but its memory stays: {}; {}", name, done,
                                     reply.value("reason", "no reason given"), next)));
}

}  // namespace molt::cli
