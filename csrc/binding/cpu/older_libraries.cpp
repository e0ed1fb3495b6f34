// This file lets the library run with glibc 2.28 and the libstdc++ of GCC 8 (manylinux_2_28),
// although headers of newer ones call functions that these lack. Each is defined here by means of
// what the older libraries have. All are hidden, so no other library gets them.
//
// libstdc++ is not linked statically instead: torch catches exceptions that the ops throw, and two
// copies of libstdc++ would disagree on how many are in flight.
#if defined(__linux__)

#include <new>
#include <sstream>

#if defined(__GLIBC__) && defined(__GLIBCXX__)

// Members of string streams that GCC 9 and 11 have added.
template class std::basic_stringbuf<char>;
template class std::basic_stringstream<char>;
template class std::basic_ostringstream<char>;

// The others have names of their own here, because the headers declare them as visible.
extern "C" {

// glibc 2.32. While it is 0, std::shared_ptr counts with atomic instructions.
extern const char single_threaded __asm__("__libc_single_threaded");
const char single_threaded = 0;

// GCC 11 has moved the members of std::exception_ptr into its header, where they call these two.
// The library has kept the members.
void copy_exception_ptr(void* copy, const void* pointer) __asm__(
    "_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void destroy_exception_ptr(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");

void add_reference(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void add_reference(void* pointer) {
  void* copy;  // not destroyed
  copy_exception_ptr(&copy, pointer);
}

void release(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void release(void* pointer) { destroy_exception_ptr(pointer); }

// GCC 11: std::vector and new[] call it if they are asked for too many elements.
[[noreturn]] void refuse_length() __asm__("_ZSt28__throw_bad_array_new_lengthv");
void refuse_length() { throw std::bad_array_new_length(); }

}  // extern "C"

#endif
#endif
