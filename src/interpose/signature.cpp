#include "interpose/signature.hpp"

#include <cerrno>

namespace molt::interpose {
namespace {

enum class Kind { none, integer, floating, other };

Kind kind_of(std::string_view type) {
  if (type.empty()) return Kind::none;
  if (type.back() == '*' || type.back() == '&') return Kind::integer;
  if (type.substr(0, 6) == "const ") type.remove_prefix(6);
  if (type == "void") return Kind::none;
  if (type == "f32" || type == "f64") return Kind::floating;
  // A structure says its size; so does what is wider than a register.
  if (type.back() == '}' || type == "f128" || type == "i128" || type == "u128") return Kind::other;
  return Kind::integer;
}

}  // namespace

Result<Shape> shape_of(std::string_view signature) {
  Shape shape;
  const auto add = [&](std::string_view type) -> Status {
    switch (kind_of(type)) {
      case Kind::none:
        break;
      case Kind::integer:
        ++shape.integers;
        break;
      case Kind::floating:
        ++shape.floats;
        break;
      case Kind::other:
        return fail(ENOTSUP, "'%.*s' is handed over by value, which hooks on functions cannot do",
                    static_cast<int>(type.size()), type.data());
    }
    return {};
  };
  // The last parenthesis at the outermost level opens the arguments; those of function types are
  // within, or before a star of the result.
  if (signature.empty() || signature.back() != ')') {
    return fail(EINVAL, "'%.*s' is no function's type", static_cast<int>(signature.size()),
                signature.data());
  }
  std::size_t open = std::string_view::npos;
  int depth = 0;
  for (std::size_t i = signature.size(); i-- > 0;) {
    if (signature[i] == ')') ++depth;
    if (signature[i] == '(' && --depth == 0) {
      open = i;
      break;
    }
  }
  if (open == std::string_view::npos) return fail(EINVAL, "its parentheses do not match");
  const Kind result = kind_of(signature.substr(0, open));
  if (result == Kind::other) {
    return fail(ENOTSUP,
                "its result is a structure or wider than 64 bits, which hooks on functions "
                "cannot hand on");
  }
  shape.gives_float = result == Kind::floating;

  const std::string_view list = signature.substr(open + 1, signature.size() - open - 2);
  std::size_t begin = 0;
  depth = 0;
  for (std::size_t i = 0; i <= list.size(); ++i) {
    if (i == list.size() || (list[i] == ',' && depth == 0)) {
      if (Status ok = add(list.substr(begin, i - begin)); !ok) return pass(ok);
      begin = i + 1;
    } else if (std::string_view("(<{[").find(list[i]) != std::string_view::npos) {
      ++depth;
    } else if (std::string_view(")>}]").find(list[i]) != std::string_view::npos) {
      --depth;
    }
  }
  constexpr std::size_t integer_registers = 6;
  constexpr std::size_t float_registers = 8;
  if (shape.integers > integer_registers) shape.stack_words += shape.integers - integer_registers;
  if (shape.floats > float_registers) shape.stack_words += shape.floats - float_registers;
  return shape;
}

}  // namespace molt::interpose
