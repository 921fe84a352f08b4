// print.hpp - everything that this program prints: texts for people, JSON for programs (its fields
// are in docs/json.md), and one line on stderr for whatever failed.
#pragma once

#include "cli/failure.hpp"
#include "cli/options.hpp"
#include "cli/process.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace molt::cli {

// Texts come from modules and processes: what could steer a terminal is written as \x1b.
std::string printable(std::string_view text);

// The same with the C++ symbols in it as they are written in the source.
std::string demangled(std::string_view text);

// Columns as wide as their widest cell; the last one is not padded.
class Table {
 public:
  enum Align { left, right };
  explicit Table(std::vector<std::pair<std::string, Align>> columns);
  void add(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  std::string text() const;

 private:
  std::vector<std::pair<std::string, Align>> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// A text as it is, anything else as JSON.
std::string value_text(const Json& value);
// "a,b" or, of nothing, "-".
std::string joined(const Json& names, std::string_view separator = ",");
// "key:           value" lines as modinfo prints them.
std::string field_line(std::string_view key, std::string_view value);

// Collects what a verb has to say of one or several processes.
class Report {
 public:
  // With `several`, every text names its process, and --json prints an array.
  Report(const Options& options, std::string_view verb, bool several)
      : options_(options), verb_(verb), several_(several) {}

  void reply(const Process& process, const Json& reply, const std::string& text);
  // A failure is a line on stderr, and with --json an object as well.
  void failure(const Process* process, const Failure& failure);
  void failure_line(const Process* process, const Failure& failure) const;
  void note(const Process& process, std::string_view text) const;
  // With --json: all objects, or each on a line of its own.
  void finish(bool as_lines = false);

 private:
  Json head(const Process* process) const;
  std::string place(const Process* process) const;

  const Options& options_;
  std::string verb_;
  bool several_;
  Json objects_ = Json::array();
};

// On one line, whatever bytes are in its texts.
std::string json_line(const Json& value);

// A result that is not about one target each: its text, or with --json its fields.
void print_result(const Options& options, std::string_view verb, const Json& fields,
                  std::string_view text);
// A failure before any process was asked. Returns its exit code.
int report_failure(const Options& options, std::string_view verb, const Failure& failure);
// A line on stderr that names its own subject.
void print_error(std::string_view line);
// To stdout at once; one call is never torn by another thread's.
void print_now(std::string_view text);
// Whether all that was printed has gone out: a full disk is a failure.
bool flush_output();

}  // namespace molt::cli
