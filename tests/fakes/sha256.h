// SHA-256, to compare many values with what another program computed.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

namespace banyan::test {

// FIPS 180-4, as hex.
inline std::string Sha256(std::string bytes) {
  // First 32 bits of the fractional parts of the cube roots of the first 64 primes, and of the
  // square roots of the first 8.
  std::array<uint32_t, 64> k;
  std::array<uint32_t, 8> h;
  const auto fraction = [](long double root) {
    return static_cast<uint32_t>((root - std::floor(root)) * 4294967296.0L);
  };
  size_t found = 0;
  for (int n = 2; found < k.size(); ++n) {
    bool prime = true;
    for (int d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
    if (!prime) continue;
    if (found < h.size()) h[found] = fraction(std::sqrt(static_cast<long double>(n)));
    k[found++] = fraction(std::cbrt(static_cast<long double>(n)));
  }
  const uint64_t bits = bytes.size() * 8;
  bytes += '\x80';
  while (bytes.size() % 64 != 56) bytes += '\0';
  for (int i = 7; i >= 0; --i) bytes += static_cast<char>(bits >> (8 * i));
  for (size_t at = 0; at < bytes.size(); at += 64) {
    std::array<uint32_t, 64> w;
    for (size_t i = 0; i < 64; ++i) {
      if (i < 16) {
        w[i] = 0;
        for (size_t j = 0; j < 4; ++j) {
          w[i] = w[i] << 8 | static_cast<uint8_t>(bytes[at + i * 4 + j]);
        }
      } else {
        const uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) + w[i - 7] +
               (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
      }
    }
    std::array<uint32_t, 8> s = h;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t e = s[4], a = s[0];
      const uint32_t t1 = s[7] + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                          ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
      const uint32_t t2 = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) +
                          ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
      std::copy_backward(s.begin(), s.begin() + 7, s.end());
      s[4] += t1;
      s[0] = t1 + t2;
    }
    for (size_t i = 0; i < 8; ++i) h[i] += s[i];
  }
  std::string out;
  for (const uint32_t word : h) {
    for (int i = 28; i >= 0; i -= 4) out += "0123456789abcdef"[word >> i & 15];
  }
  return out;
}

}  // namespace banyan::test
