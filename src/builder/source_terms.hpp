// source_terms.hpp - what refusals say in the terms of the source: where a function, variable or class is
// declared, and which member of a variable has which other initial value.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "builder/compare.hpp"
#include "builder/debug_info.hpp"
#include "builder/edits.hpp"

namespace molt::builder {

// "FILE:LINE", or "" where debug information does not say it.

// Of a copy or piece that the compiler made, and of a lambda: where that is which it was made of.
std::string place_of_function(const DebugInfo& info, std::string_view name);
// The function that a coroutine's body was made of.
std::string coroutine_of(std::string_view body);
// What lies at that place of the object; without any, what has that name.
std::string place_of_variable(const DebugInfo& info, std::uint32_t section, std::uint64_t offset,
                              std::string_view name);
// Of a function or variable of the object.
std::string place_of_symbol(const DebugInfo& info, const View& view, std::uint32_t symbol);
// By the name of its table of virtual functions or its type information.
std::string place_of_class(const DebugInfo& info, std::string_view table);
// The first line of that source file that the diff edits; of another one, if it edits none there.
std::string place_in_diff(const Edits& edits, std::string_view source);

// As a person writes it; what is not mangled stays.
std::string readable(std::string_view name);

// Whether a person may call it that: mangled or not, with its parameters or without.
bool is_called(std::string_view name, std::string_view given);
// What a person calls the variable: without the compiler's number, or clang's function.
std::string plain_name(const DebugInfo& info, const View& view, std::uint32_t symbol);

// Two states of one variable: ".limits[2].low: 10 -> 20"; "10 -> 20" if it has no members.
std::string value_change(const DebugInfo& info, const View& before, std::uint32_t old_section,
                         const View& now, std::uint32_t new_section);
// The same of two tables of virtual functions: "Thing::other() is new".
std::string table_change(const View& before, std::uint32_t old_section, const View& now,
                         std::uint32_t new_section);

}  // namespace molt::builder
