// Functions between BANYAN_TARGET_BEGIN("avx2,fma") and BANYAN_TARGET_END are compiled for these
// instruction sets, the rest of the file for the baseline. Include no header inside the region.
#pragma once

#define BANYAN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BANYAN_TARGET_BEGIN(features) \
  BANYAN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define BANYAN_TARGET_END BANYAN_PRAGMA(clang attribute pop)
#else
#define BANYAN_TARGET_BEGIN(features) \
  BANYAN_PRAGMA(GCC push_options)     \
  BANYAN_PRAGMA(GCC target(features))
#define BANYAN_TARGET_END BANYAN_PRAGMA(GCC pop_options)
#endif
