// Compiled without optimisation, so that the templates and inline functions of the library are
// functions of their own. Nothing is static: the patch's copy is to work with the program's data.
#include "self.hpp"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

SELF std::atomic<long> self_made{0};

struct SELF SelfError : std::runtime_error {
  explicit SelfError(const std::string& what) : std::runtime_error(what) {}
  ~SelfError() override;
};
SelfError::~SelfError() = default;

SELF void self_expect(bool holds, const char* what) {
  if (!holds) throw SelfError(what);
}

// Virtual functions, destructors, recursion, shared state.
struct SELF SelfShape {
  SelfShape() { self_made.fetch_add(1, std::memory_order_relaxed); }
  SelfShape(const SelfShape&) = delete;
  SelfShape& operator=(const SelfShape&) = delete;
  virtual ~SelfShape();
  virtual double area() const = 0;
};
SelfShape::~SelfShape() { self_made.fetch_sub(1, std::memory_order_relaxed); }

struct SELF SelfSquare : SelfShape {
  explicit SelfSquare(double given) : side(given) {}
  double area() const override;
  double side;
};
double SelfSquare::area() const { return side * side; }

struct SELF SelfPair : SelfShape {
  SelfPair(std::unique_ptr<SelfShape> a, std::unique_ptr<SelfShape> b)
      : left(std::move(a)), right(std::move(b)) {}
  double area() const override;
  std::unique_ptr<SelfShape> left, right;
};
double SelfPair::area() const { return left->area() + right->area(); }

SELF std::unique_ptr<SelfShape> self_tree(int depth) {
  if (depth == 0) return std::make_unique<SelfSquare>(2.0);
  return std::make_unique<SelfPair>(self_tree(depth - 1), self_tree(depth - 1));
}

// Exceptions through frames with objects in them.
SELF int self_parse(const std::string& text, std::size_t& at, bool nested = false) {
  std::vector<int> numbers;
  if (nested) ++at;
  while (at < text.size() && text[at] != ')') {
    if (text[at] == '(') {
      numbers.push_back(self_parse(text, at, true));
    } else if (std::isdigit(static_cast<unsigned char>(text[at]))) {
      numbers.push_back(text[at++] - '0');
    } else if (text[at] == ' ') {
      ++at;
    } else {
      throw SelfError("unexpected " + text.substr(at, 1));
    }
  }
  if (nested && at++ >= text.size()) throw SelfError("not closed");
  return std::accumulate(numbers.begin(), numbers.end(), 0);
}

SELF void test_parse() {
  const std::map<std::string, int> good = {{"1 2 3", 6}, {"(1 (2 3)) 4", 10}, {"", 0}};
  for (const auto& [text, sum] : good) {
    std::size_t at = 0;
    self_expect(self_parse(text, at) == sum, text.c_str());
  }
  for (const char* bad : {"1 (2", "x", "(1 (2 ?))"}) {
    bool thrown = false;
    try {
      std::size_t at = 0;
      self_parse(bad, at);
    } catch (const SelfError& error) {
      thrown = std::string(error.what()).size() > 5;
    }
    self_expect(thrown, bad);
  }
}

SELF void test_shapes() {
  const auto tree = self_tree(3);
  self_expect(tree->area() == 8 * 4.0, "area");
}

SELF void test_containers(unsigned seed) {
  std::vector<unsigned> numbers;
  std::multiset<unsigned> sorted;
  std::unordered_map<unsigned, std::string> names;
  std::list<unsigned> list;
  std::deque<unsigned> deque;
  for (int i = 0; i < 15; ++i) {
    seed = seed * 1664525 + 1013904223;
    numbers.push_back(seed % 1000);
    sorted.insert(seed % 1000);
    names[seed % 1000] = std::to_string(seed % 1000);
    list.push_front(seed % 1000);
    deque.push_back(seed % 1000);
  }
  std::sort(numbers.begin(), numbers.end());
  list.sort();
  std::stable_sort(deque.begin(), deque.end());
  self_expect(std::equal(numbers.begin(), numbers.end(), sorted.begin(), sorted.end()), "set");
  self_expect(std::equal(numbers.begin(), numbers.end(), list.begin(), list.end()), "list");
  self_expect(std::equal(numbers.begin(), numbers.end(), deque.begin(), deque.end()), "deque");
  for (const auto& [number, name] : names) self_expect(std::to_string(number) == name, "names");
  const std::function<unsigned(unsigned)> twice = [](unsigned n) { return 2 * n; };
  std::vector<unsigned> doubled(numbers.size());
  std::transform(numbers.begin(), numbers.end(), doubled.begin(), twice);
  self_expect(std::accumulate(doubled.begin(), doubled.end(), 0U) ==
                  2 * std::accumulate(numbers.begin(), numbers.end(), 0U),
              "transform");
}

std::string self_tests(unsigned seed) {
  try {
    test_parse();
    test_shapes();
    test_containers(seed);
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

const void* self_where() {
  const void* here;
  asm volatile("lea 0(%%rip), %0" : "=r"(here));
  return here;
}
