// Makes abseil's mutex visible to ThreadSanitizer. Debian's libabsl_synchronization is not compiled
// with it, so a lock taken through it orders nothing in the sanitizer's eyes and every guarded
// field would be reported. The linker sends our calls here first (--wrap, cmake/Sanitizers.cmake):
// an unlock is told as a release, a lock as an acquire. Conditions are evaluated inside the
// library, by whichever thread holds the lock there: their reads are not checked. Thread preset
// only; not instrumented itself.
#include <sanitizer/tsan_interface.h>

#include "absl/time/time.h"

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

// Around a call into the library that gives the lock up or may run conditions.
class InsideLibrary {
 public:
  InsideLibrary() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~InsideLibrary() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

}  // namespace

// The two sides of --wrap=SYMBOL.
#define REAL(symbol) asm("__real_" symbol)
#define WRAP(symbol) asm("__wrap_" symbol)

#define WRAP_LOCK(name, symbol)                   \
  extern "C" void Real##name(void*) REAL(symbol); \
  extern "C" void Wrap##name(void*) WRAP(symbol); \
  void Wrap##name(void* mutex) {                  \
    Real##name(mutex);                            \
    __tsan_acquire(mutex);                        \
  }
#define WRAP_TRY_LOCK(name, symbol)               \
  extern "C" bool Real##name(void*) REAL(symbol); \
  extern "C" bool Wrap##name(void*) WRAP(symbol); \
  bool Wrap##name(void* mutex) {                  \
    const bool locked = Real##name(mutex);        \
    if (locked) __tsan_acquire(mutex);            \
    return locked;                                \
  }
#define WRAP_UNLOCK(name, symbol)                 \
  extern "C" void Real##name(void*) REAL(symbol); \
  extern "C" void Wrap##name(void*) WRAP(symbol); \
  void Wrap##name(void* mutex) {                  \
    __tsan_release(mutex);                        \
    const InsideLibrary inside;                   \
    Real##name(mutex);                            \
  }
// Await and LockWhen: release (harmless where it was not held), wait, acquire.
#define WRAP_WAIT(name, symbol)                                \
  extern "C" void Real##name(void*, const void*) REAL(symbol); \
  extern "C" void Wrap##name(void*, const void*) WRAP(symbol); \
  void Wrap##name(void* mutex, const void* condition) {        \
    __tsan_release(mutex);                                     \
    {                                                          \
      const InsideLibrary inside;                              \
      Real##name(mutex, condition);                            \
    }                                                          \
    __tsan_acquire(mutex);                                     \
  }
#define WRAP_TIMED_WAIT(name, type, symbol)                          \
  extern "C" bool Real##name(void*, const void*, type) REAL(symbol); \
  extern "C" bool Wrap##name(void*, const void*, type) WRAP(symbol); \
  bool Wrap##name(void* mutex, const void* condition, type limit) {  \
    __tsan_release(mutex);                                           \
    bool met = false;                                                \
    {                                                                \
      const InsideLibrary inside;                                    \
      met = Real##name(mutex, condition, limit);                     \
    }                                                                \
    __tsan_acquire(mutex);                                           \
    return met;                                                      \
  }

WRAP_LOCK(Lock, "_ZN4absl7debian35Mutex4LockEv")
WRAP_LOCK(ReaderLock, "_ZN4absl7debian35Mutex10ReaderLockEv")
WRAP_TRY_LOCK(TryLock, "_ZN4absl7debian35Mutex7TryLockEv")
WRAP_TRY_LOCK(ReaderTryLock, "_ZN4absl7debian35Mutex13ReaderTryLockEv")
WRAP_UNLOCK(Unlock, "_ZN4absl7debian35Mutex6UnlockEv")
WRAP_UNLOCK(ReaderUnlock, "_ZN4absl7debian35Mutex12ReaderUnlockEv")
WRAP_WAIT(Await, "_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE")
WRAP_WAIT(LockWhen, "_ZN4absl7debian35Mutex8LockWhenERKNS0_9ConditionE")
WRAP_WAIT(ReaderLockWhen, "_ZN4absl7debian35Mutex14ReaderLockWhenERKNS0_9ConditionE")
WRAP_TIMED_WAIT(AwaitWithTimeout, absl::Duration,
                "_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE")
WRAP_TIMED_WAIT(AwaitWithDeadline, absl::Time,
                "_ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE")
WRAP_TIMED_WAIT(LockWhenWithTimeout, absl::Duration,
                "_ZN4absl7debian35Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE")
WRAP_TIMED_WAIT(LockWhenWithDeadline, absl::Time,
                "_ZN4absl7debian35Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE")

// Condition variables: (condition, mutex).
extern "C" void RealCondVarWait(void*, void*) REAL("_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
extern "C" void WrapCondVarWait(void*, void*) WRAP("_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
void WrapCondVarWait(void* condition, void* mutex) {
  __tsan_release(mutex);
  {
    const InsideLibrary inside;
    RealCondVarWait(condition, mutex);
  }
  __tsan_acquire(mutex);
}
#define WRAP_COND_VAR_TIMED(name, type, symbol)                \
  extern "C" bool Real##name(void*, void*, type) REAL(symbol); \
  extern "C" bool Wrap##name(void*, void*, type) WRAP(symbol); \
  bool Wrap##name(void* condition, void* mutex, type limit) {  \
    __tsan_release(mutex);                                     \
    bool timed_out = false;                                    \
    {                                                          \
      const InsideLibrary inside;                              \
      timed_out = Real##name(condition, mutex, limit);         \
    }                                                          \
    __tsan_acquire(mutex);                                     \
    return timed_out;                                          \
  }
WRAP_COND_VAR_TIMED(CondVarWaitWithTimeout, absl::Duration,
                    "_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE")
WRAP_COND_VAR_TIMED(CondVarWaitWithDeadline, absl::Time,
                    "_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE")

// absl::Notification.
WRAP_UNLOCK(Notify, "_ZN4absl7debian312Notification6NotifyEv")
WRAP_LOCK(WaitForNotification, "_ZNK4absl7debian312Notification19WaitForNotificationEv")
