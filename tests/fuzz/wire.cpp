// The control protocol, from a client's bytes to the replies: cutting into messages, reading, every
// method, with the modules and hooks of tests/control/fake.cpp beneath.
//
// Input: what a client sends. The first byte says in pieces of which size it arrives; a file comes
// with every third piece.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "abi/wire.hpp"
#include "control/connection.hpp"
#include "control/content.hpp"
#include "control/json.hpp"
#include "control/request.hpp"
#include "fake.hpp"

using namespace molt;
using namespace molt::control;

namespace {

void require(bool holds) {
  if (!holds) abort();
}

// A reply is a JSON object without a NUL, with parameters, and an error is complete.
void check_reply(const std::string& text) {
  require(text.size() <= wire::reply_bytes_max && text.find('\0') == std::string::npos);
  const Json reply = Json::parse(text, nullptr, false);
  require(reply.is_object());
  const auto parameters = reply.find("parameters");
  require(parameters != reply.end() && parameters->is_object());
  if (reply.find("error") == reply.end()) {
    require(parameters->find("schema") != parameters->end());
  } else {
    for (const char* field : {"errno", "code", "class", "message"}) {
      require(parameters->find(field) != parameters->end());
    }
  }
}

Fd a_file() {
  Fd fd(memfd_create("fuzz", MFD_CLOEXEC));
  constexpr std::string_view content = "name=loaded version=2";
  require(write(fd.get(), content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  return fd;
}

void prepare_world() {
  static const bool is_first = [] {
    module::set_observer(&tree_observer());
    return true;
  }();
  static_cast<void>(is_first);
  fake::reset();
  fake::form("a");
  fake::form("b");
  fake::edit("a", [](module::ModuleDetail& d) { d.module.holders = {"b"}; });
  fake::add_hook("open");
  fake::add_hook("net/recv");
  fake::add_resident("r", 1, true);
}

void answer(Inbox::Message& message, Session& session) {
  const auto call = Call::read(message.text);
  if (!call) return check_reply(error_reply({call.error(), wire::ErrorClass::usage}));
  if (call->is_stream()) return check_reply(events_reply(call->stream_from(), 16).text);
  // Nobody waits here.
  static const std::atomic<bool> is_cancelled{true};
  const Fd none;
  const Fd& file = call->takes_file() ? message.file : none;
  check_reply(call->run({{1, 0, "fuzz"}, file.get(), &is_cancelled, &session}));
  set_delay_release_ms(0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  prepare_world();
  const int objects = object_counts().live;
  {
    const std::size_t piece = data[0] == 0 ? size : data[0];
    std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
    Session session;
    Inbox inbox;
    bool is_over = false;
    for (int i = 0; !rest.empty() && !is_over; ++i) {
      const std::string_view now = rest.substr(0, piece);
      rest.remove_prefix(now.size());
      inbox.append(now.data(), now.size(), i % 3 == 0 ? a_file() : Fd());
      Inbox::Message message;
      Inbox::Next next;
      while ((next = inbox.take(message)) == Inbox::Next::message) answer(message, session);
      is_over = next == Inbox::Next::too_long;
      require(!inbox.is_ready() || is_over);
    }
  }
  fake::reset();
  prepare_world();
  require(object_counts().live == objects && object_counts().delayed == 0);
  return 0;
}
