#include "control/request.hpp"

#include <cerrno>

#include "control/errors.hpp"
#include "control/methods.hpp"

namespace molt::control {
namespace {

const Method* find_method(std::string_view name) {
  for (const Method& method : methods()) {
    if (method.name == name) return &method;
  }
  return nullptr;
}

std::string ok_reply(const Json& fields) {
  Json parameters = {{"schema", wire::schema}};
  parameters.update(fields);
  Json reply = Json::object();
  reply["parameters"] = std::move(parameters);
  return to_text(reply);
}

}  // namespace

Call::Call(const Method& method, Json parameters)
    : method_(&method), parameters_(std::move(parameters)) {}

Result<Call> Call::read(std::string_view message) {
  const Json request = parse_object(message, depth_max, fields_max);
  if (request.is_discarded()) return fail(EBADMSG, "the request is not a JSON object; see molt(7)");

  const std::string* name = nullptr;
  Json parameters = Json::object();
  for (auto field = request.begin(); field != request.end(); ++field) {
    if (field.key() == "method") {
      name = field.value().get_ptr<const std::string*>();
    } else if (field.key() == "parameters" && field.value().is_object()) {
      parameters = field.value();
    } else {
      return fail(EINVAL, "a request is {\"method\": TEXT, \"parameters\": OBJECT}; `%s` is wrong",
                  field.key().c_str());
    }
  }
  if (name == nullptr) return fail(EINVAL, "the request names no method");
  const Method* method = find_method(*name);
  if (method == nullptr) {
    return fail(ENOSYS, "there is no method %s; the client may be newer than this process",
                name->c_str());
  }
  return Call(*method, std::move(parameters));
}

bool Call::is_slow() const { return method_->is_slow; }

bool Call::takes_file() const { return method_->takes_file; }

bool Call::is_stream() const {
  if (method_->name != wire::method::events) return false;
  Arguments arguments(parameters_);
  const bool is_endless = arguments.flag("more");
  arguments.number_or("since", 0, 0, INT64_MAX);
  return is_endless && arguments.complete();
}

std::uint64_t Call::stream_from() const {
  return static_cast<std::uint64_t>(Arguments(parameters_).number_or("since", 0, 0, INT64_MAX));
}

std::string Call::run(const Caller& caller) const {
  Arguments arguments(parameters_);
  const Reply reply = method_->run(arguments, caller);
  std::string text = reply ? ok_reply(*reply) : error_reply(reply.error());
  if (text.size() <= wire::reply_bytes_max) return text;
  const auto error = fail(EMSGSIZE, "the reply would have %zu bytes; ask for less", text.size());
  return error_reply({error.value(), wire::ErrorClass::failed});
}

std::string error_reply(const Failure& failure) {
  const Json reply = {{"error", wire::error},
                      {"parameters",
                       {{"errno", errno_name(failure.error.code)},
                        {"code", failure.error.code},
                        {"class", wire::info(failure.kind).name},
                        {"message", failure.error.detail}}}};
  return to_text(reply);
}

EventsReply events_reply(std::uint64_t since, std::size_t most) {
  const log::Batch batch = log::read(since, most);
  return {ok_reply(events_json(batch)), batch.next, batch.lines.empty() && batch.lost == 0,
          batch.lines.size() == most};
}

}  // namespace molt::control
