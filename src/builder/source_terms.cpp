#include "builder/source_terms.hpp"

#include <cxxabi.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <fmt/format.h>

namespace molt::builder {
namespace {

std::string at(const std::string& file, int line) {
  return file.empty() || line == 0 ? "" : fmt::format("{}:{}", file, line);
}

}  // namespace

std::string readable(std::string_view name) {
  const std::string mangled(name);
  const std::unique_ptr<char, void (*)(void*)> text(
      name.starts_with("_Z") ? abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr)
                             : nullptr,
      std::free);
  return text ? text.get() : mangled;
}

bool is_called(std::string_view name, std::string_view given) {
  if (name == given) return true;
  const std::string text = readable(name);
  return text == given || text.substr(0, text.find('(')) == given;
}

// --- where ------------------------------------------------------------------------------------------------

std::string coroutine_of(std::string_view body) {
  // gcc has the function's name in that of its frame, "...16_ZL5countl.Frame.actor".
  if (const std::size_t frame = body.find(".Frame"); frame != body.npos) {
    const std::size_t begin = body.rfind("_Z", frame);
    return std::string(body.substr(begin, frame - begin));
  }
  return std::string(body.substr(0, body.rfind('.')));
}

namespace {

// A lambda, or a template's function that has one: the function that it stands in.
const FunctionInfo* around_lambda(const DebugInfo& info, const std::string& readable_name) {
  for (const auto& [mangled, one] : info.functions) {
    const std::string outer = readable(mangled) + "::";
    const std::size_t found = readable_name.find(outer);
    if (found == readable_name.npos) continue;
    const char next = readable_name.c_str()[found + outer.size()];
    if (next == '{' || next == '$' || next == '\'') return &one;
  }
  return nullptr;
}

}  // namespace

std::string place_of_function(const DebugInfo& info, std::string_view name) {
  if (const FunctionInfo* one = around_lambda(info, readable(name)))
    return at(one->file, one->line);
  for (std::string_view whole = name;; whole = whole.substr(0, whole.rfind('.'))) {
    const auto found = info.functions.find(std::string(whole));
    if (found != info.functions.end()) return at(found->second.file, found->second.line);
    if (whole.find('.') == whole.npos) return "";
  }
}

std::string place_of_variable(const DebugInfo& info, std::uint32_t section, std::uint64_t offset,
                              std::string_view name) {
  for (const auto* list : {&info.locals, &info.variables}) {
    for (const StaticLocal& v : *list) {
      if (section != 0 && v.section == section && v.offset == offset) return at(v.file, v.line);
    }
  }
  for (const StaticLocal& v : info.variables) {
    if (v.name == name) return at(v.file, v.line);
  }
  return "";
}

std::string place_of_symbol(const DebugInfo& info, const View& view, std::uint32_t symbol) {
  const ObjectSymbol& s = view.symbol(symbol);
  return s.is_function() ? place_of_function(info, s.name)
                         : place_of_variable(info, s.section, s.value, s.name);
}

std::string place_of_class(const DebugInfo& info, std::string_view table) {
  std::string name = readable(table);
  for (std::string_view begin : {"vtable for ", "typeinfo for "}) {
    if (name.starts_with(begin)) name.erase(0, begin.size());
  }
  const auto found = info.types.find("struct " + name);
  return found == info.types.end() ? "" : at(found->second.file, found->second.line);
}

std::string place_in_diff(const Edits& edits, std::string_view source) {
  const auto is_of_source = [&](const EditedLine& line) {
    return source == line.file || source.ends_with("/" + line.file) ||
           std::string_view(line.file).ends_with(fmt::format("/{}", source));
  };
  const auto& lines = edits.lines();
  auto found = std::ranges::find_if(lines, is_of_source);
  if (found == lines.end()) found = lines.begin();
  return found == lines.end() ? "" : at(found->file, found->line);
}

std::string plain_name(const DebugInfo& info, const View& view, std::uint32_t symbol) {
  const ObjectSymbol& s = view.symbol(symbol);
  for (const auto* list : {&info.locals, &info.variables}) {
    for (const StaticLocal& v : *list) {
      if (v.section == s.section && v.offset == s.value) return v.name;
    }
  }
  return std::string(without_number(s.name));
}

// --- what -------------------------------------------------------------------------------------------------

namespace {

using Bytes = std::span<const std::byte>;

// A piece of a variable in both states; `bytes` are empty where all are 0.
struct State {
  const View& view;
  std::uint32_t section;

  std::byte byte(std::uint64_t at) const {
    const Bytes bytes = view.section(section).bytes;
    return at < bytes.size() ? bytes[at] : std::byte{};
  }
  const Relocation* relocation(std::uint64_t at) const {
    for (const Relocation& r : view.section(section).relocations) {
      if (r.offset == at) return &r;
    }
    return nullptr;
  }
  std::string text_at(const Relocation& r) const {
    const Referent ref = view.reference(section, r);
    if (ref.section != 0 && view.section(ref.section).is_mergeable()) {
      return quoted(view.merged(ref.section, ref.offset));
    }
    const std::string name = ref.symbol != 0    ? readable(view.symbol(ref.symbol).name)
                             : ref.section != 0 ? std::string(view.section(ref.section).name)
                                                : "nothing";
    return ref.offset == 0 ? name : fmt::format("{} + {}", name, ref.offset);
  }
  static std::string quoted(Bytes bytes) {
    constexpr std::size_t longest = 32;
    std::string text = "\"";
    for (const std::byte b : bytes) {
      const auto c = std::to_integer<unsigned char>(b);
      if (c == 0) break;
      if (text.size() > longest) return text + "...\"";
      text += std::isprint(c) != 0 ? static_cast<char>(c) : '?';
    }
    return text + "\"";
  }
};

struct Change {
  const DebugInfo& info;
  State before, now;

  bool differs(std::uint64_t at) const {
    if (before.byte(at) != now.byte(at)) return true;
    const Relocation* old_one = before.relocation(at);
    const Relocation* new_one = now.relocation(at);
    if ((old_one == nullptr) != (new_one == nullptr)) return true;
    return old_one != nullptr && before.text_at(*old_one) != now.text_at(*new_one);
  }

  std::optional<std::uint64_t> first(std::uint64_t begin, std::uint64_t size) const {
    for (std::uint64_t at = begin; at < begin + size; ++at) {
      if (differs(at)) return at;
    }
    return std::nullopt;
  }

  std::string scalar(const State& state, const std::string& type, std::uint64_t at,
                     std::uint64_t size) const {
    if (const Relocation* r = state.relocation(at)) return state.text_at(*r);
    std::uint64_t raw = 0;
    for (std::uint64_t i = 0; i < size; ++i) {
      raw |= std::to_integer<std::uint64_t>(state.byte(at + i)) << (8 * i);
    }
    if (type == "double") {
      double value;
      std::memcpy(&value, &raw, sizeof value);
      return fmt::format("{}", value);
    }
    if (type == "float") {
      float value;
      std::memcpy(&value, &raw, sizeof value);
      return fmt::format("{}", value);
    }
    const bool is_hex = type.ends_with('*') || type.empty();
    if (is_hex) return raw == 0 && !type.empty() ? "null" : fmt::format("{:#x}", raw);
    const bool is_unsigned = type.find("unsigned") != type.npos || type.find("ool") != type.npos;
    const int unused = 64 - 8 * static_cast<int>(size);
    const auto value = static_cast<std::int64_t>(raw << unused) >> unused;
    return is_unsigned ? fmt::format("{}", raw) : fmt::format("{}", value);
  }

  const TypeLayout* layout(const std::string& type) const {
    const auto found = info.types.find(type);
    if (found != info.types.end()) return &found->second;
    // Types are written without their scope.
    const TypeLayout* only = nullptr;
    const std::string name = type.substr(type.find(' ') + 1);
    for (const auto& [key, one] : info.types) {
      const bool fits = one.name == name || one.name.ends_with("::" + name);
      if (!fits || !type.starts_with(one.kind)) continue;
      if (only != nullptr) return nullptr;
      only = &one;
    }
    return only;
  }

  // Of the piece at `begin`; "" if it is the same.
  std::string text(std::string type, std::uint64_t begin, std::uint64_t size,
                   const std::string& path, int depth) const {
    const auto at = first(begin, size);
    if (!at) return "";
    constexpr int deepest = 8;
    if (const std::size_t note = type.rfind(" ("); note != type.npos && type.ends_with("bytes)")) {
      type.resize(note);
    }
    for (std::string_view word : {" const", " volatile", " _Atomic"}) {
      if (type.ends_with(word)) type.resize(type.size() - word.size());
    }
    const auto rest = [&](const std::string& a, const std::string& b) {
      return fmt::format("{}{}{} -> {}", path, path.empty() ? "" : ": ", a, b);
    };
    if (depth < deepest && type.ends_with(']')) {
      // The first of its dimensions; the others stay with the element.
      const std::size_t open = type.find('[', type.find_last_not_of("0123456789[]") + 1);
      const std::size_t close = type.find(']', open);
      const std::uint64_t count = std::strtoull(type.c_str() + open + 1, nullptr, 10);
      std::string element = type.substr(0, open) + type.substr(close + 1);
      if (element.starts_with("char") && element.size() <= sizeof "char const") {
        const auto bytes = [&](const State& s) {
          std::vector<std::byte> all;
          for (std::uint64_t i = begin; i < begin + size; ++i) all.push_back(s.byte(i));
          return State::quoted(all);
        };
        if (const std::string a = bytes(before), b = bytes(now); a != b) return rest(a, b);
      }
      if (count != 0 && size % count == 0) {
        const std::uint64_t each = size / count;
        const std::uint64_t index = (*at - begin) / each;
        return text(element, begin + index * each, each, fmt::format("{}[{}]", path, index),
                    depth + 1);
      }
    }
    if (const TypeLayout* found = depth < deepest ? layout(type) : nullptr;
        found != nullptr && found->kind == "struct") {
      const TypeMember* member = nullptr;
      std::uint64_t end = size;
      for (const TypeMember& m : found->members) {
        const auto offset = static_cast<std::uint64_t>(m.offset) / 8;
        if (offset <= *at - begin) {
          member = &m;
          end = size;
        } else {
          end = std::min(end, offset);
        }
      }
      const auto is_bits = [](const std::string& word) {
        return word.find_last_not_of("0123456789") == word.rfind(':') && word.back() != ':';
      };
      if (member != nullptr && !member->type.empty() && !is_bits(member->type)) {
        const auto offset = static_cast<std::uint64_t>(member->offset) / 8;
        std::uint64_t bytes = end - offset;
        if (const std::size_t note = member->type.rfind(" ("); note != member->type.npos) {
          bytes = std::min<std::uint64_t>(
              bytes, std::strtoull(member->type.c_str() + note + 2, nullptr, 10));
        }
        return text(member->type, begin + offset, bytes, path + "." + member->name, depth + 1);
      }
    }
    if (size <= 8) return rest(scalar(before, type, begin, size), scalar(now, type, begin, size));
    return rest(fmt::format("byte {}: {}", *at - begin, scalar(before, "", *at, 1)),
                scalar(now, "", *at, 1));
  }
};

}  // namespace

std::string value_change(const DebugInfo& info, const View& before, std::uint32_t old_section,
                         const View& now, std::uint32_t new_section) {
  const Change change{info, {before, old_section}, {now, new_section}};
  std::string type;
  for (const auto* list : {&info.locals, &info.variables}) {
    for (const StaticLocal& v : *list) {
      if (v.section == new_section && v.offset == 0) type = v.type;
    }
  }
  return change.text(type, 0, now.section(new_section).size, "", 0);
}

std::string table_change(const View& before, std::uint32_t old_section, const View& now,
                         std::uint32_t new_section) {
  const auto entries = [](const View& view, std::uint32_t section) {
    std::vector<std::string> names;
    for (const Relocation& r : view.section(section).relocations) {
      const Referent ref = view.reference(section, r);
      if (ref.symbol != 0) names.push_back(readable(view.symbol(ref.symbol).name));
    }
    return names;
  };
  const std::vector<std::string> olds = entries(before, old_section);
  const std::vector<std::string> news = entries(now, new_section);
  for (const std::string& name : news) {
    if (std::ranges::find(olds, name) == olds.end()) return name + " is new";
  }
  for (const std::string& name : olds) {
    if (std::ranges::find(news, name) == news.end()) return name + " has gone";
  }
  for (std::size_t i = 0; i < std::min(olds.size(), news.size()); ++i) {
    if (olds[i] != news[i]) return fmt::format("entry {}: {} -> {}", i, olds[i], news[i]);
  }
  return fmt::format("{} -> {} bytes", before.section(old_section).size,
                     now.section(new_section).size);
}

}  // namespace molt::builder
