#include "unwind/expression.hpp"

#include <dwarf.h>

#include <vector>

namespace molt::unwind {
namespace {

class Machine {
 public:
  Machine(const Registers& registers, std::optional<std::uint64_t> cfa, const ReadWord& read)
      : registers_(registers), cfa_(cfa), read_(read) {}

  // False: unknown.
  bool step(const Dwarf_Op& op);
  std::optional<Value> result() const {
    if (stack_.empty()) return std::nullopt;
    return Value{stack_.back(), !is_value_};
  }

 private:
  bool push(std::optional<std::uint64_t> value) {
    if (!value) return false;
    stack_.push_back(*value);
    return true;
  }
  template <class F>
  bool binary(F f) {
    if (stack_.size() < 2) return false;
    const std::uint64_t top = stack_.back();
    stack_.pop_back();
    stack_.back() = f(stack_.back(), top);
    return true;
  }
  bool base(unsigned number, Dwarf_Word offset) {
    if (number >= registers_.size() || !registers_[number]) return false;
    return push(*registers_[number] + offset);
  }

  const Registers& registers_;
  const std::optional<std::uint64_t> cfa_;
  const ReadWord& read_;
  std::vector<std::uint64_t> stack_;
  bool is_value_ = false;
};

bool Machine::step(const Dwarf_Op& op) {
  if (is_value_) return false;  // it says that it is the last
  if (op.atom >= DW_OP_breg0 && op.atom <= DW_OP_breg31) {
    return base(op.atom - DW_OP_breg0, op.number);
  }
  if (op.atom >= DW_OP_lit0 && op.atom <= DW_OP_lit31) return push(op.atom - DW_OP_lit0);
  switch (op.atom) {
    case DW_OP_bregx:
      return base(static_cast<unsigned>(op.number), op.number2);
    case DW_OP_call_frame_cfa:
      return push(cfa_);
    case DW_OP_const1u:
    case DW_OP_const1s:
    case DW_OP_const2u:
    case DW_OP_const2s:
    case DW_OP_const4u:
    case DW_OP_const4s:
    case DW_OP_const8u:
    case DW_OP_const8s:
    case DW_OP_constu:
    case DW_OP_consts:
      return push(op.number);
    case DW_OP_plus_uconst:
      if (stack_.empty()) return false;
      stack_.back() += op.number;
      return true;
    case DW_OP_plus:
      return binary([](auto a, auto b) { return a + b; });
    case DW_OP_minus:
      return binary([](auto a, auto b) { return a - b; });
    case DW_OP_and:
      return binary([](auto a, auto b) { return a & b; });
    case DW_OP_shl:
      return binary([](auto a, auto b) { return b < 64 ? a << b : 0; });
    case DW_OP_ge:
      return binary([](auto a, auto b) {
        return std::uint64_t{static_cast<std::int64_t>(a) >= static_cast<std::int64_t>(b)};
      });
    case DW_OP_deref: {
      if (stack_.empty()) return false;
      const std::uint64_t address = stack_.back();
      stack_.pop_back();
      return push(read_(address));
    }
    case DW_OP_stack_value:
      is_value_ = true;
      return true;
    default:
      return false;
  }
}

}  // namespace

std::optional<Value> evaluate(std::span<const Dwarf_Op> expression, const Registers& registers,
                              std::optional<std::uint64_t> cfa, const ReadWord& read) {
  Machine machine(registers, cfa, read);
  for (const Dwarf_Op& op : expression) {
    if (!machine.step(op)) return std::nullopt;
  }
  return machine.result();
}

}  // namespace molt::unwind
