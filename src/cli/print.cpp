#include "cli/print.hpp"

#include <cxxabi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace molt::cli {
namespace {

std::string dump(const Json& value) {
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void print_line_on_stderr(std::string_view text) {
  fmt::print(stderr, "molt: {}\n", printable(text));
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  for (const char ch : text) {
    const auto byte = static_cast<unsigned char>(ch);
    if (byte < 0x20 || byte == 0x7f) {
      out += ch == '\n' || ch == '\t' ? " " : fmt::format("\\x{:02x}", byte);
    } else {
      out += ch;
    }
  }
  return out;
}

std::string demangled(std::string_view text) {
  const auto is_part = [](char ch) {
    return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
           ch == '_' || ch == '.' || ch == '$';
  };
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at;
    while (end < text.size() && is_part(text[end])) ++end;
    const std::string word(text.substr(at, std::max(end - at, std::size_t{1})));
    const std::unique_ptr<char, void (*)(void*)> name(
        word.starts_with("_Z") ? abi::__cxa_demangle(word.c_str(), nullptr, nullptr, nullptr)
                               : nullptr,
        std::free);
    out += name ? name.get() : word;
    at += word.size();
  }
  return out;
}

Table::Table(std::vector<std::pair<std::string, Align>> columns) : columns_(std::move(columns)) {}

void Table::add(std::vector<std::string> cells) {
  for (std::string& cell : cells) cell = cell.empty() ? "-" : printable(cell);
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    std::size_t width = columns_[c].first.size();
    for (const auto& row : rows_) width = std::max(width, row[c].size());
    widths.push_back(width);
  }
  std::string out;
  const auto add_line = [&](const auto& cell_of) {
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      const bool last = c + 1 == columns_.size();
      const std::string& cell = cell_of(c);
      if (columns_[c].second == right) {
        out += fmt::format("{:>{}}", cell, widths[c]);
      } else {
        out += last ? cell : fmt::format("{:<{}}", cell, widths[c]);
      }
      out += last ? "\n" : "  ";
    }
  };
  add_line([&](std::size_t c) -> const std::string& { return columns_[c].first; });
  for (const auto& row : rows_) {
    add_line([&](std::size_t c) -> const std::string& { return row[c]; });
  }
  return out;
}

std::string value_text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string joined(const Json& names, std::string_view separator) {
  std::string out;
  for (const Json& name : names) {
    if (!out.empty()) out += separator;
    out += name.get<std::string>();
  }
  return out.empty() ? "-" : out;
}

std::string field_line(std::string_view key, std::string_view value) {
  return fmt::format("{:<16}{}\n", fmt::format("{}:", key), printable(value));
}

Json Report::head(const Process* process) const {
  Json object = {{"schema", wire::schema}, {"verb", verb_}};
  if (process) object["pid"] = process->pid;
  return object;
}

std::string Report::place(const Process* process) const {
  return several_ && process ? fmt::format("{}: ", process->pid) : "";
}

void Report::reply(const Process& process, const Json& reply, const std::string& text) {
  if (options_.json) {
    Json object = head(&process);
    for (const auto& [key, value] : reply.items()) {
      if (!object.contains(key)) object[key] = value;
    }
    objects_.push_back(std::move(object));
  } else if (text.empty()) {
    return;
  } else if (!several_) {
    print_now(text);
  } else if (text.find('\n') == text.size() - 1) {
    print_now(place(&process) + text);
  } else {
    print_now(fmt::format("{} ({}):\n{}\n", process.pid, printable(process.comm), text));
  }
}

void Report::failure_line(const Process* process, const Failure& failure) const {
  const bool named =
      process && failure.message.starts_with(fmt::format("process {} (", process->pid));
  print_line_on_stderr((named ? "" : place(process)) + failure.message);
}

void Report::failure(const Process* process, const Failure& failure) {
  failure_line(process, failure);
  if (options_.json) {
    Json object = head(process);
    object["error"] = failure.json();
    objects_.push_back(std::move(object));
  }
}

void Report::note(const Process& process, std::string_view text) const {
  if (!options_.quiet) print_line_on_stderr(place(&process) + std::string(text));
}

void Report::finish(bool as_lines) {
  if (!options_.json) return;
  if (!as_lines) return print_now(dump(several_ || objects_.empty() ? objects_ : objects_[0]));
  for (const Json& object : objects_) print_now(json_line(object));
}

std::string json_line(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void print_result(const Options& options, std::string_view verb, const Json& fields,
                  std::string_view text) {
  if (!options.json) return print_now(text);
  Json object = {{"schema", wire::schema}, {"verb", verb}};
  object.update(fields);
  print_now(dump(object));
}

int report_failure(const Options& options, std::string_view verb, const Failure& failure) {
  Report report(options, verb, false);
  report.failure(nullptr, failure);
  report.finish();
  return failure.exit_code();
}

void print_error(std::string_view line) { fmt::print(stderr, "{}\n", printable(line)); }

void print_now(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

bool flush_output() { return std::fflush(stdout) == 0 && std::ferror(stdout) == 0; }

}  // namespace molt::cli
