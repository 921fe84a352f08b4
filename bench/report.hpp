// report.hpp - what molt-bench prints: a table as the figures come in, and JSON at the end.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace bench {

// What a figure has to be. Ratios are dimensionless; other goals name their unit.
class Goal {
 public:
  static Goal ratio_at_most(double limit);
  static Goal ratio_at_least(double limit);
  static Goal value_at_most(double limit, const std::string& unit);
  static Goal value_is_zero();
  // Told for the reader's sake; nothing is demanded of it.
  static Goal info();

  bool holds(double value, double ratio) const;
  const std::string& text() const { return text_; }

 private:
  enum class Kind { ratio_at_most, ratio_at_least, value_at_most, value_is_zero, info };
  Goal(Kind kind, double limit, std::string text);
  Kind kind_;
  double limit_;
  std::string text_;
};

struct Record {
  std::string name;
  double value = 0;
  std::string unit;
  std::string rival;  // empty: none
  double rival_value = 0;
  double ratio = 0;  // value / rival_value, as the median over the rounds; 0 without a rival
  Goal goal = Goal::info();
  bool holds() const { return goal.holds(value, ratio); }
};

class Report {
 public:
  void add(const Record& record);
  // A measurement that could not be made.
  void fail(const std::string& name, const std::string& why);
  // A line that the next one overwrites, if someone is watching.
  void progress(const std::string& text);

  void summary() const;
  // False: the file could not be written.
  bool write_json(const std::string& path) const;
  bool failed() const { return failures_ != 0; }

 private:
  void clear_progress();
  std::vector<Record> records_;
  int failures_ = 0;
  bool progress_shown_ = false;
};

}  // namespace bench
