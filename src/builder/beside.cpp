#include "builder/beside.hpp"

#include "base/hash.hpp"
#include "builder/c_text.hpp"
#include "builder/line_guard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <optional>
#include <span>

namespace molt::builder {
namespace {

// Left in the new texts, for grown().
constexpr std::string_view end_mark = "/*molt:end*/";
constexpr std::string_view size_mark = "/*molt:made*/";
// No power of two: a size that is kept in a byte differs too. A multiple of what types are aligned to.
constexpr unsigned growth = 4096 + 64;
constexpr std::string_view accessor = "molt_beside_of_";

struct Kept {
  Beside told;
  std::vector<std::string> aliases;  // all that sizeof may be asked of
  std::string identifier;            // of the names that are made of it
  std::string declarations;          // of the new members, on one line
};

tl::unexpected<Error> refuse(const std::string& type, const std::string& why) {
  return fail(EINVAL, "--beside=%s: %s", type.c_str(), why.c_str());
}

std::string collapsed(std::string_view code) {
  std::string text;
  for (const char c : code) {
    if (!is_blank(c)) {
      text += c;
    } else if (!text.empty() && text.back() != ' ') {
      text += ' ';
    }
  }
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

// Where `mark` stands outside of brackets.
std::vector<std::string_view> split(std::string_view code, char mark) {
  std::vector<std::string_view> parts;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < code.size();) {
    if (code[at] == '(' || code[at] == '{' || code[at] == '[') {
      at = std::min(end_of_bracket(code, at), code.size());
      continue;
    }
    if (code[at] == mark) {
      parts.push_back(code.substr(begin, at - begin));
      begin = at + 1;
    }
    ++at;
  }
  parts.push_back(code.substr(begin));
  return parts;
}

// Of what stands in a definition's braces, each statement.
std::vector<std::string> declarations_of(std::string_view definition) {
  const std::string code = code_of(definition);
  const std::size_t open = code.find('{');
  const std::string_view body = std::string_view(code).substr(open + 1, code.rfind('}') - open - 1);
  std::vector<std::string> all;
  for (const std::string_view one : split(body, ';')) {
    std::string text = collapsed(one);
    if (!text.empty()) all.push_back(std::move(text));
  }
  return all;
}

std::string_view last_word(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0 && !is_of_name(text[end - 1])) --end;
  std::size_t begin = end;
  while (begin > 0 && is_of_name(text[begin - 1])) --begin;
  return text.substr(begin, end - begin);
}

// The members that a declaration makes; none: it is not understood.
std::vector<std::string> names_of(std::string_view declaration) {
  std::vector<std::string> names;
  for (std::string_view one : split(declaration, ',')) {
    one = split(one, ':').front();
    const std::size_t brace = one.rfind('}');
    if (brace != one.npos) one = one.substr(brace + 1);
    const std::size_t open = one.find('(');
    if (open != one.npos) {
      const std::size_t close = end_of_bracket(one, open);
      if (close != one.npos && skip_spaces(one, close) < one.size() &&
          is_of_name(one[skip_spaces(one, close)])) {
        // `_Atomic(int) name`
        one = one.substr(close);
      } else {
        // A macro: BIT(name).
        const std::string_view inside = one.substr(open + 1, one.find(')') - open - 1);
        const std::string macro = collapsed(one.substr(0, open));
        if (word_at(macro, 0).size() != macro.size() || collapsed(inside) != last_word(inside))
          return {};
        one = inside;
      }
    }
    const std::size_t array = one.find('[');
    if (array != one.npos) one = one.substr(0, array);
    const std::string_view name = last_word(one);
    if (name.empty()) return {};
    names.emplace_back(name);
  }
  return names;
}

// What the new definition has more than the old one; nothing, if that is not all.
std::optional<std::vector<std::string>> only_added(const std::vector<std::string>& before,
                                                   const std::vector<std::string>& now) {
  std::vector<std::string> added;
  std::size_t met = 0;
  for (const std::string& one : now) {
    if (met < before.size() && one == before[met]) {
      ++met;
    } else {
      added.push_back(one);
    }
  }
  if (met != before.size()) return std::nullopt;
  return added;
}

// `typedef struct a b;`
std::vector<std::string> typedefs_of(const std::vector<PatchedFile>& files,
                                     const std::string& name) {
  std::vector<std::string> found;
  for (const PatchedFile& file : files) {
    if (!file.new_text) continue;
    const std::string code = code_of(*file.new_text);
    for (std::size_t at = code.find("typedef"); at != code.npos;
         at = code.find("typedef", at + 1)) {
      const std::size_t end = code.find_first_of(";{", at);
      if (end == code.npos || code[end] == '{') continue;
      const std::string text = collapsed(std::string_view(code).substr(at, end - at));
      const std::string head = "typedef struct " + name + " ";
      if (!text.starts_with(head)) continue;
      const std::string_view alias = std::string_view(text).substr(head.size());
      if (word_at(alias, 0).size() == alias.size()) found.emplace_back(alias);
    }
  }
  return found;
}

// Puts back the old definition, and what lies beside behind it.
Result<Kept> keep_definition(std::vector<PatchedFile>& files, const std::string& type) {
  PatchedFile* where = nullptr;
  TextRange before, now;
  for (PatchedFile& file : files) {
    if (!file.old_text || !file.new_text) continue;
    const auto then = definitions_of(*file.old_text, type);
    const auto here = definitions_of(*file.new_text, type);
    if (then.empty() || here.empty()) continue;
    if (then.size() != 1 || here.size() != 1 || where != nullptr) {
      return refuse(type, "there is more than one definition of it");
    }
    where = &file;
    before = then.front();
    now = here.front();
  }
  if (where == nullptr) return refuse(type, "no file of the diff defines it before and after");
  const std::string old_definition =
      where->old_text->substr(before.begin, before.end - before.begin);
  const std::string new_definition = where->new_text->substr(now.begin, now.end - now.begin);
  if (!old_definition.starts_with("struct")) return refuse(type, "it is no struct");
  for (const char* ending : {".cc", ".cpp", ".cxx", ".C", ".hpp", ".hh"}) {
    if (where->path.ends_with(ending)) return refuse(type, "only structs of C can be kept so");
  }

  // `packed` and `aligned` stand there.
  const auto head_of = [](std::string_view text) {
    const std::string code = code_of(text);
    return collapsed(std::string_view(code).substr(0, code.find('{')));
  };
  const auto old_declarations = declarations_of(old_definition);
  if (head_of(old_definition) != head_of(new_definition)) {
    return refuse(type, "the diff changes more of it than its members");
  }
  const auto added = only_added(old_declarations, declarations_of(new_definition));
  if (!added) {
    return refuse(
        type,
        "the diff does more to it than to add members: others were changed, moved or taken away");
  }
  if (added->empty()) return refuse(type, "the diff adds no member to it");
  // `malloc(offsetof(struct a, last) + bytes)` makes one, and asks for no size.
  if (!old_declarations.empty() && old_declarations.back().ends_with(']')) {
    return refuse(
        type,
        fmt::format("it ends with an array, `{}`: objects may be longer than it says, and "
                    "nothing tells where such are made: keep the members by hand (--callbacks)",
                    old_declarations.back()));
  }

  Kept kept;
  kept.told.type = type;
  kept.told.file = where->path;
  for (const std::string& one : *added) {
    const std::vector<std::string> names = names_of(one);
    if (names.empty()) return refuse(type, fmt::format("`{}` is no plain member", one));
    kept.told.members.insert(kept.told.members.end(), names.begin(), names.end());
    kept.declarations += one + "; ";
  }
  const std::string code = code_of(old_definition);
  const std::string_view tag = word_at(code, skip_spaces(code, std::string_view("struct").size()));
  const bool has_tag =
      !tag.empty() && code[skip_spaces(code, code.find(tag, 6) + tag.size())] == '{';
  kept.told.spelled = has_tag ? fmt::format("struct {}", tag) : type;
  kept.identifier = has_tag ? std::string(tag) : type;
  kept.aliases = {kept.told.spelled};
  if (has_tag && tag != type) kept.aliases.push_back(type);
  if (has_tag) {
    for (std::string& alias : typedefs_of(files, std::string(tag))) {
      kept.aliases.push_back(std::move(alias));
    }
  }
  const std::string content = kept.told.spelled + "{" + kept.declarations + "}";
  kept.told.type_id = fmt::format(
      "0x{}ul", content_hash(std::as_bytes(std::span(kept.told.spelled))).substr(0, 15));
  kept.told.id =
      fmt::format("0x{}ul", content_hash(std::as_bytes(std::span(content))).substr(0, 15));

  // The definition ends with its statement; all that is put behind is on that line.
  std::string& text = *where->new_text;
  text.replace(now.begin, now.end - now.begin, old_definition);
  const std::size_t brace = now.begin + old_definition.size() - 1;
  const std::size_t end = code_of(text).find(';', brace);
  if (end == text.npos) return refuse(type, "its definition has no end");
  text.insert(
      end + 1,
      fmt::format(" struct molt_beside_{0} {{ {1}}}; "
                  "extern void *molt_beside(const void *, unsigned long, unsigned long) "
                  "__attribute__((weak)); "
                  "extern void *molt_beside_born(void *, unsigned long) __attribute__((weak)); "
                  "static __inline__ __attribute__((always_inline, unused)) struct molt_beside_{0} "
                  "*{2}{0}(const {3} *object) "
                  "{{ return (struct molt_beside_{0} *) molt_beside(object, {4}, sizeof(struct "
                  "molt_beside_{0}) + "
                  "0 * sizeof(char[sizeof(struct molt_beside_{0}) <= 4096 && "
                  "__alignof__(struct molt_beside_{0}) <= 16 ? 1 : -1])); }} "
                  "static __inline__ __attribute__((always_inline, unused)) void "
                  "*molt_beside_not_{0}(const void *object) "
                  "{{ return (void *) object; }}",
                  kept.identifier, kept.declarations, accessor, kept.told.spelled, kept.told.id));
  text.insert(brace, end_mark);
  return kept;
}

bool is_keyword(std::string_view word) {
  constexpr std::array<std::string_view, 11> keywords = {
      "return", "sizeof", "if", "while", "for", "switch", "case", "else", "do", "goto", "_Generic"};
  return std::ranges::find(keywords, word) != keywords.end();
}

std::size_t skip_spaces_back(std::string_view code, std::size_t end) {
  while (end > 0 && is_blank(code[end - 1])) --end;
  return end;
}

// Where the name that ends there begins.
std::size_t begin_of_word(std::string_view code, std::size_t end) {
  while (end > 0 && is_of_name(code[end - 1])) --end;
  return end;
}

// Whether the bracket that ends there is that of `if (...)`.
bool is_condition(std::string_view code, std::size_t end) {
  const std::size_t open = begin_of_bracket(code, end - 1);
  if (open == code.npos) return false;
  const std::size_t before = skip_spaces_back(code, open);
  const std::size_t word = begin_of_word(code, before);
  constexpr std::array<std::string_view, 4> words = {"if", "while", "for", "switch"};
  return std::ranges::find(words, code.substr(word, before - word)) != words.end();
}

// Where the expression begins whose member is named at `at`, which is behind it: `f(x)[1].y`; npos: nowhere.
std::size_t begin_of_postfix(std::string_view code, std::size_t at) {
  std::size_t end = skip_spaces_back(code, at);
  for (;;) {
    if (end == 0) return code.npos;
    const char last = code[end - 1];
    if (last == ']' || last == ')') {
      const std::size_t open = begin_of_bracket(code, end - 1);
      if (open == code.npos) return code.npos;
      const std::size_t before = skip_spaces_back(code, open);
      const bool is_name = before > 0 && is_of_name(code[before - 1]);
      const std::size_t word = begin_of_word(code, before);
      const bool goes_on =
          (is_name && !is_keyword(code.substr(word, before - word))) ||
          (before > 0 && (code[before - 1] == ']' || (code[before - 1] == ')' && last == ']')));
      if (!goes_on) {
        // `(*f)(x)`: a call, or `(type) (x)`; nothing tells which.
        const bool is_behind_bracket =
            before > 0 && code[before - 1] == ')' && !is_condition(code, before);
        return last == ')' && !is_behind_bracket ? open : code.npos;
      }
      end = before;
      continue;
    }
    if (!is_of_name(last)) return code.npos;
    const std::size_t begin = begin_of_word(code, end);
    const std::size_t before = skip_spaces_back(code, begin);
    if (before > 1 && code.substr(before - 2, 2) == "->") {
      end = skip_spaces_back(code, before - 2);
    } else if (before > 0 && code[before - 1] == '.') {
      end = skip_spaces_back(code, before - 1);
    } else {
      return begin;
    }
  }
}

// A new text while it is edited. What is put in is an expression in the place of one: neither the code behind it nor the
// lines of it become others, and a large file is read once.
class Edited {
 public:
  explicit Edited(PatchedFile& file)
      : text_(*file.new_text),
        code_(code_of(text_)),
        added_(added_lines(file.old_text.value_or(""), text_)) {}

  const std::string& text() const { return text_; }
  const std::string& code() const { return code_; }
  std::size_t line_of(std::size_t at) const {
    return lines_in(std::string_view(text_).substr(0, at));
  }
  bool is_added(std::size_t line) const { return added_.at(line); }
  void replace(std::size_t begin, std::size_t end, std::string made) {
    const std::size_t lines = lines_in(std::string_view(text_).substr(begin, end - begin));
    // It may have stood on several lines.
    if (lines_in(made) < lines) made.append(lines - lines_in(made), '\n');
    const auto first = added_.begin() + static_cast<std::ptrdiff_t>(line_of(begin));
    added_.insert(first, lines_in(made) - lines, true);
    text_.replace(begin, end - begin, made);
    code_.replace(begin, end - begin, code_of(made));
  }

 private:
  static std::size_t lines_in(std::string_view text) {
    return static_cast<std::size_t>(std::ranges::count(text, '\n'));
  }
  std::string& text_;
  std::string code_;
  std::vector<bool> added_;
};

// Each `p->member` on lines that the diff adds.
Status lead_beside(PatchedFile& file, const Kept& kept) {
  Edited edited(file);
  const std::string& text = edited.text();
  const std::string& code = edited.code();
  for (const std::string& member : kept.told.members) {
    for (std::size_t at = 0;;) {
      at = code.find(member, at);
      if (at == code.npos) break;
      const std::size_t end = at + member.size();
      const bool is_word =
          (at == 0 || !is_of_name(code[at - 1])) && (end == code.size() || !is_of_name(code[end]));
      const std::size_t before = skip_spaces_back(code, at);
      const bool is_arrow = before > 1 && code.compare(before - 2, 2, "->") == 0;
      const bool is_dot = !is_arrow && before > 0 && code[before - 1] == '.';
      if (!is_word || (!is_arrow && !is_dot) || !edited.is_added(edited.line_of(at))) {
        at = end;
        continue;
      }
      const std::size_t mark = before - (is_arrow ? 2 : 1);
      const std::size_t begin = begin_of_postfix(code, mark);
      if (begin == code.npos) {
        return refuse(kept.told.type,
                      fmt::format("{}:{}: it is not understood what `{}` is a member of there",
                                  file.path, edited.line_of(at) + 1, member));
      }
      std::string object = text.substr(begin, skip_spaces_back(code, mark) - begin);
      if (is_dot) object = "&(" + object + ")";
      // Of another type it is what it says; which it is the compiler knows.
      const std::string made = fmt::format(
          "((__typeof__(__extension__ _Generic(({0}), {1} *: (struct molt_beside_{2} *) 0, const "
          "{1} *: (struct "
          "molt_beside_{2} *) 0, default: ({0}) + 0))) __extension__ _Generic(({0}), {1} *: "
          "{3}{2}, const {1} *: {3}{2}, "
          "default: molt_beside_not_{2})({0}))->{4}",
          object, kept.told.spelled, kept.identifier, accessor, member);
      edited.replace(begin, end, made);
      at = begin + made.size();
    }
  }
  return {};
}

// Whether a variable of that name, of the function in which `at` is, is a pointer to the type.
bool is_pointer_to(std::string_view code, std::size_t at, std::string_view name, const Kept& kept) {
  const std::size_t function = code.substr(0, at).rfind("\n}");
  const std::string body = collapsed(code.substr(function == code.npos ? 0 : function,
                                                 at - (function == code.npos ? 0 : function)));
  return std::ranges::any_of(kept.aliases, [&](const std::string& alias) {
    for (std::size_t found = body.find(alias); found != body.npos;
         found = body.find(alias, found + 1)) {
      std::size_t star = skip_spaces(body, found + alias.size());
      if (star >= body.size() || body[star] != '*') continue;
      // All that this declares: `a *x, *y`.
      const std::size_t end = std::min(body.find_first_of(";){", star), body.size());
      for (std::string_view one : split(std::string_view(body).substr(star, end - star), ',')) {
        one = one.substr(0, one.find('='));
        const std::size_t pointer = one.find('*');
        if (pointer != one.npos && last_word(one) == name && one.find('*', pointer + 1) == one.npos)
          return true;
      }
    }
    return false;
  });
}

// By its name. What takes an object that is there, or fills a new one, makes none; and what lies in memory of several
// processes, others use too.
bool is_allocator(std::string_view function) {
  std::string name(function);
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  const auto has = [&](const char* part) { return name.find(part) != name.npos; };
  constexpr std::array<const char*, 13> others = {"realloc", "dealloc", "dup",   "copy",  "clone",
                                                  "find",    "lookup",  "_or_",  "array", "shm",
                                                  "slab",    "shared",  "sizeof"};
  return (has("alloc") || has("mem_get")) && std::ranges::none_of(others, has);
}

// What is assigned to, or declared, in front of the `=`; "": not understood.
std::string assigned_object(std::string_view code, std::size_t equals) {
  const std::size_t end = skip_spaces_back(code, equals);
  const std::size_t begin = begin_of_postfix(code, end);
  if (begin == code.npos || begin == end) return "";
  std::size_t stars = begin;
  while (stars > 0 && (is_blank(code[stars - 1]) || code[stars - 1] == '*')) --stars;
  const std::size_t word = begin_of_word(code, stars);
  // `struct a *p =`, `struct a *p, *q =`
  const bool is_declared = (word != stars && !is_keyword(code.substr(word, stars - word))) ||
                           (stars > 0 && code[stars - 1] == ',');
  return std::string(code.substr(is_declared ? begin : stars, end - (is_declared ? begin : stars)));
}

struct Making {
  TextRange call;
  std::string object;
};

// `x = f(sizeof(T))`; none: not understood.
std::optional<Making> making_around(std::string_view code, std::size_t size, std::size_t end) {
  const std::size_t before = skip_spaces_back(code, size);
  const std::size_t behind = skip_spaces(code, end);
  const bool is_argument = before > 0 && (code[before - 1] == '(' || code[before - 1] == ',') &&
                           behind < code.size() && (code[behind] == ')' || code[behind] == ',');
  if (!is_argument) return std::nullopt;
  std::size_t open = before;
  for (;;) {
    if (open == 0) return std::nullopt;
    --open;
    if (code[open] == ')' || code[open] == ']' || code[open] == '}') {
      open = begin_of_bracket(code, open);
      if (open == code.npos) return std::nullopt;
    } else if (code[open] == '(') {
      break;
    } else if (code[open] == ';' || code[open] == '{') {
      return std::nullopt;
    }
  }
  const std::size_t name_end = skip_spaces_back(code, open);
  const std::size_t begin = begin_of_postfix(code, name_end);
  if (begin == code.npos || begin == name_end) return std::nullopt;
  const std::string_view name = code.substr(begin, name_end - begin);
  if (!is_allocator(name)) return std::nullopt;
  // It is assigned, or initialises.
  std::size_t left = skip_spaces_back(code, begin);
  if (left > 0 && code[left - 1] == ')') {
    left = begin_of_bracket(code, left - 1);
    if (left == code.npos) return std::nullopt;
    left = skip_spaces_back(code, left);
  }
  if (left < 2 || code[left - 1] != '=' ||
      std::string_view("=!<>+-*/|&^%").find(code[left - 2]) != std::string_view::npos) {
    return std::nullopt;
  }
  std::string object = assigned_object(code, left - 1);
  if (object.empty()) return std::nullopt;
  return Making{{begin, end_of_bracket(code, open)}, std::move(object)};
}

// Each place where an object is made; any other that asks for the size is found by its code (B3).
void note_makings(PatchedFile& file, Kept& kept) {
  Edited edited(file);
  const std::string& text = edited.text();
  const std::string& code = edited.code();
  for (std::size_t at = 0;;) {
    at = code.find("sizeof", at);
    if (at == code.npos) return;
    const std::size_t size = at;
    at += std::string_view("sizeof").size();
    if ((size > 0 && is_of_name(code[size - 1])) || (at < code.size() && is_of_name(code[at])))
      continue;
    const std::size_t open = skip_spaces(code, at);
    if (open >= code.size() || code[open] != '(') continue;
    const std::size_t end = end_of_bracket(code, open);
    if (end == code.npos) continue;
    const std::string operand = collapsed(std::string_view(code).substr(open + 1, end - open - 2));
    const bool is_type = std::ranges::find(kept.aliases, operand) != kept.aliases.end();
    const bool is_pointee =
        operand.starts_with('*') && is_pointer_to(code, size, collapsed(operand.substr(1)), kept);
    if (!is_type && !is_pointee) continue;
    const auto found = making_around(code, size, end);
    if (!found) continue;
    const TextRange* making = &found->call;

    // What is not assigned to a pointer to the type still knows its size: such as a pool of them.
    std::string call = text.substr(making->begin, making->end - making->begin);
    call.replace(
        size - making->begin, end - size,
        fmt::format(
            "({0} + 0{1} * __extension__ _Generic(({2}), {3} *: 1, const {3} *: 1, default: 0))",
            text.substr(size, end - size), size_mark, collapsed(found->object), kept.told.spelled));
    // One object: no other argument is a number, but for 1; and none is an object, which might be copied.
    std::string checks;
    const std::size_t arguments = code.find('(', making->begin);
    const std::string_view inside =
        std::string_view(code).substr(arguments + 1, making->end - arguments - 2);
    for (const std::string_view one : split(inside, ',')) {
      const std::string argument = collapsed(one);
      // Of a literal nothing is left in `code`.
      if (argument.empty() || argument == "1" ||
          argument == collapsed(std::string_view(code).substr(size, end - size)))
        continue;
      checks += fmt::format(
          "(void) sizeof(struct {{ int molt_makes_one_object : __extension__ _Generic(({0}), "
          "default: 1, {1} *: -1, const {1} *: -1, int: -1, unsigned: -1, long: -1, unsigned long: "
          "-1, short: -1, unsigned "
          "short: -1, "
          "char: -1, signed char: -1, unsigned char: -1, long long: -1, unsigned long long: -1); "
          "}}), ",
          argument, kept.told.spelled);
    }
    const std::string made =
        fmt::format("molt_beside_born(({}{}), {})", checks, call, kept.told.id);
    at = making->begin + made.size();
    edited.replace(making->begin, making->end, made);
    kept.told.makers.push_back(file.path);
  }
}

// `memset(p, 0, offsetof(struct a, kept))` would clear the new members too.
Status refuse_parts(const PatchedFile& file, const Kept& kept) {
  const std::string code = code_of(*file.new_text);
  constexpr std::string_view word = "offsetof";
  for (std::size_t at = code.find(word); at != code.npos; at = code.find(word, at + 1)) {
    const std::size_t open = skip_spaces(code, at + word.size());
    const std::size_t end =
        open < code.size() && code[open] == '(' ? end_of_bracket(code, open) : code.npos;
    if (end == code.npos) continue;
    const std::string type =
        collapsed(split(std::string_view(code).substr(open + 1, end - open - 2), ',').front());
    if (std::ranges::find(kept.aliases, type) == kept.aliases.end()) continue;
    const std::size_t before = code.find_last_of(";{}", at);
    const std::string_view statement = std::string_view(code).substr(
        before == code.npos ? 0 : before,
        std::min(code.find(';', at), code.size()) - (before == code.npos ? 0 : before));
    for (const char* name : {"mem", "copy", "zero", "alloc"}) {
      if (statement.find(name) == statement.npos) continue;
      return refuse(
          kept.told.type,
          fmt::format(
              "{}:{}: a part of it is copied or cleared, and new members would be in it: keep the "
              "members by hand (--callbacks)",
              file.path,
              std::count(code.begin(), code.begin() + static_cast<std::ptrdiff_t>(at), '\n') + 1));
    }
  }
  return {};
}

void replace_all(std::string& text, std::string_view what, std::string_view by) {
  for (std::size_t at = text.find(what); at != text.npos; at = text.find(what, at + by.size())) {
    text.replace(at, what.size(), by);
  }
}

}  // namespace

Result<std::vector<Beside>> keep_beside(std::vector<PatchedFile>& files,
                                        const std::vector<std::string>& types) {
  std::vector<Kept> all;
  for (const std::string& type : types) {
    auto kept = keep_definition(files, type);
    if (!kept) return pass(kept);
    for (const Kept& other : all) {
      for (const std::string& member : other.told.members) {
        if (std::ranges::find(kept->told.members, member) == kept->told.members.end()) continue;
        return refuse(type,
                      fmt::format("{} gets a member `{}` too: nothing tells which is meant where",
                                  other.told.type, member));
      }
    }
    all.push_back(std::move(*kept));
  }
  std::vector<Beside> told;
  for (Kept& kept : all) {
    for (PatchedFile& file : files) {
      if (!file.new_text || !is_c_family(file.path)) continue;
      if (Status done = refuse_parts(file, kept); !done) return pass(done);
      if (Status done = lead_beside(file, kept); !done) return pass(done);
      note_makings(file, kept);
    }
    told.push_back(std::move(kept.told));
  }
  return told;
}

std::string grown(std::string_view text) {
  std::string larger(text);
  replace_all(larger, end_mark, fmt::format(" char molt_grown[{}]; ", growth));
  replace_all(larger, size_mark, fmt::format(" - {}", growth));
  return larger;
}

std::string beside_source(const std::vector<Beside>& types,
                          const std::vector<std::string>& objects) {
  std::string text = R"(#include <molt/livepatch.h>
#include <molt/molt.h>
#include <errno.h>
#include <string.h>

extern "C" void* molt_beside(const void* object, unsigned long id, unsigned long bytes) {
  void* kept = molt_shadow_get(object, id);
  if (kept == nullptr) {
    kept = molt_shadow_get_or_alloc(const_cast<void*>(object), id, bytes, nullptr, nullptr);
  }
  // Without memory it is zero, and what is written is lost. Of a program and its library each has a copy of this.
  static char none[4096];
  return kept != nullptr ? kept : memset(none, 0, bytes);
}

extern "C" void* molt_beside_born(void* object, unsigned long id) {
  if (object != nullptr) molt_shadow_free(object, id, nullptr);
  return object;
}

// What another patch keeps beside the same type would not be forgotten by this one's functions, nor this one's by that
// one's. Of each type the first says who has it.
static const unsigned long types[] = {@TYPES@};
static const unsigned long ids[] = {@IDS@};
static unsigned in_force;

static void forget_all() {
  for (unsigned long id : ids) molt_shadow_free_all(id, nullptr);
}

static void give_up() {
  for (unsigned long type : types) {
    void* key = reinterpret_cast<void*>(type);
    void* owner = molt_shadow_get(key, type);
    if (owner != nullptr && *static_cast<void**>(owner) == &in_force) molt_shadow_free(key, type, nullptr);
  }
}

// Of a program and its library the last.
static void leave(const molt_patch_target*) {
  if (--in_force != 0) return;
  forget_all();
  give_up();
}

static int enter(const molt_patch_target* target) {
  if (in_force++ != 0) return 0;
  for (unsigned long type : types) {
    void* owner = molt_shadow_get_or_alloc(reinterpret_cast<void*>(type), type, sizeof(void*), nullptr, nullptr);
    if (owner != nullptr && *static_cast<void**>(owner) == nullptr) *static_cast<void**>(owner) = &in_force;
    if (owner != nullptr && *static_cast<void**>(owner) == &in_force) continue;
    --in_force;
    give_up();
    molt_log(target->patch, "%s", owner == nullptr ? "no memory" :
             "another patch has members that lie beside the same type: revert it first, and apply one that was built "
             "of both fixes");
    return owner == nullptr ? -ENOMEM : -EEXIST;
  }
  forget_all();  // what a thread left that was in the functions when they were forced out
  return 0;
}
)";
  std::string of_types, of_ids;
  for (const Beside& one : types) {
    of_types += one.type_id + ", ";
    of_ids += one.id + ", ";
  }
  replace_all(text, "@TYPES@", of_types);
  replace_all(text, "@IDS@", of_ids);
  // Nothing replaces this patch that does not know of them.
  for (const Beside& one : types)
    text += fmt::format("MOLT_PATCH_STATE({}, 1, nullptr)\n", one.type_id);
  for (const std::string& object : objects) {
    text += fmt::format("MOLT_PATCH_CALLBACKS({}, enter, nullptr, nullptr, leave)\n",
                        object.empty() ? "nullptr" : "\"" + object + "\"");
  }
  return text;
}

}  // namespace molt::builder
