// last_error.hpp - why the calling thread's last function of the C interface failed, in words.
//
// Every function of molt.h that returns an int ends with one of these. The text belongs to the
// thread, and is freed when it ends.
#pragma once

#include "base/result.hpp"

namespace molt {

// Once, before the first use.
void last_error_setup();
// "" if nothing failed.
const char* last_error();
void set_last_error(const char* text);

// 0, and no text.
int succeed();
// The negative errno of the error, and its text.
int answer(const Error& error);
inline int answer(const tl::unexpected<Error>& failed) { return answer(failed.value()); }
template <class T>
int answer(const Result<T>& result) {
  return result ? succeed() : answer(result.error());
}

}  // namespace molt
