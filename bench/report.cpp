#include "report.hpp"

#include <unistd.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

namespace bench {
namespace {

// Three or four significant digits, never in exponents.
std::string number(double value) {
  if (value == 0) return "0";
  double size = std::fabs(value);
  int decimals = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

std::string limit_text(const char* relation, double limit) {
  char text[32];
  std::snprintf(text, sizeof text, "%s %g", relation, limit);
  return text;
}

}  // namespace

Goal::Goal(Kind kind, double limit, std::string text)
    : kind_(kind), limit_(limit), text_(std::move(text)) {}
Goal Goal::ratio_at_most(double limit) {
  return {Kind::ratio_at_most, limit, limit_text("<=", limit)};
}
Goal Goal::ratio_at_least(double limit) {
  return {Kind::ratio_at_least, limit, limit_text(">=", limit)};
}
Goal Goal::value_at_most(double limit, const std::string& unit) {
  return {Kind::value_at_most, limit, limit_text("<=", limit) + " " + unit};
}
Goal Goal::value_is_zero() { return {Kind::value_is_zero, 0, "== 0"}; }
Goal Goal::info() { return {Kind::info, 0, "info"}; }

bool Goal::holds(double value, double ratio) const {
  switch (kind_) {
    case Kind::ratio_at_most:
      return ratio <= limit_;
    case Kind::ratio_at_least:
      return ratio >= limit_;
    case Kind::value_at_most:
      return value <= limit_;
    case Kind::value_is_zero:
      return value == 0;
    case Kind::info:
      return true;
  }
  return false;
}

void Report::clear_progress() {
  if (progress_shown_) std::fputs("\r\033[K", stderr);
  progress_shown_ = false;
}

void Report::progress(const std::string& text) {
  if (!isatty(STDERR_FILENO)) return;
  clear_progress();
  std::fputs(text.c_str(), stderr);
  progress_shown_ = true;
}

void Report::add(const Record& record) {
  clear_progress();
  if (records_.empty()) {
    std::printf("%-34s %11s %-8s %11s %8s  %-10s %-6s  %s\n", "figure", "molt", "unit", "rival",
                "ratio", "goal", "", "rival is");
  }
  bool rival = !record.rival.empty();
  bool info = record.goal.text() == "info";
  std::printf("%-34s %11s %-8s %11s %8s  %-10s %-6s  %s\n", record.name.c_str(),
              number(record.value).c_str(), record.unit.c_str(),
              rival ? number(record.rival_value).c_str() : "",
              rival ? number(record.ratio).c_str() : "", record.goal.text().c_str(),
              info             ? ""
              : record.holds() ? "ok"
                               : "MISSED",
              record.rival.c_str());
  std::fflush(stdout);
  records_.push_back(record);
}

void Report::fail(const std::string& name, const std::string& why) {
  clear_progress();
  std::fflush(stdout);
  std::fprintf(stderr, "molt-bench: %s could not be measured: %s\n", name.c_str(), why.c_str());
  ++failures_;
}

void Report::summary() const {
  int goals = 0;
  std::string missed;
  for (const Record& record : records_) {
    if (record.goal.text() == "info") continue;
    ++goals;
    if (!record.holds()) missed += " " + record.name;
  }
  if (missed.empty()) {
    std::printf("all %d goals hold\n", goals);
  } else {
    std::printf("MISSED:%s (of %d goals)\n", missed.c_str(), goals);
  }
  if (failures_ != 0) std::printf("not measured: %d\n", failures_);
}

bool Report::write_json(const std::string& path) const {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const Record& record : records_) {
    nlohmann::ordered_json one = {
        {"name", record.name}, {"value", record.value}, {"unit", record.unit}};
    if (record.rival.empty()) {
      one["rival"] = nullptr;
      one["rival_value"] = nullptr;
      one["ratio"] = nullptr;
    } else {
      one["rival"] = record.rival;
      one["rival_value"] = record.rival_value;
      one["ratio"] = record.ratio;
    }
    one["goal"] = record.goal.text();
    one["holds"] = record.holds();
    all.push_back(std::move(one));
  }
  std::ofstream file(path);
  file << all.dump(2) << '\n';
  file.close();
  return file.good();
}

}  // namespace bench
