// SiLU over a vector type V (operations: ffn_tile-inl.h), for every kernel of the FFN. The same
// bits for every V whose MulAdd rounds once. Included inside a tier's target region and namespace;
// no include guard on purpose.

// silu(x) = x / (1 + e), e = exp(-x) = 2^n exp(r), |r| <= ln 2 / 2. Polynomial: the minimax of
// degree 5 for (exp(r) - 1 - r) / r^2 of Cephes' expf, relative error of e below 2 units in the
// last place. 2^n is applied in two halves, so that e overflows to infinity and the result to -0.
template <class V>
inline typename V::Reg Silu(typename V::Reg x) {
  const typename V::Reg limit = V::Set1(104.0f);
  typename V::Reg t = V::Sub(V::Zero(), x);
  t = V::Max(V::Sub(V::Zero(), limit), V::Min(limit, t));
  const typename V::Reg n = V::RoundInt(V::Mul(t, V::Set1(1.44269504088896341f)));
  typename V::Reg r = V::MulAdd(n, V::Set1(-0.693359375f), t);
  r = V::MulAdd(n, V::Set1(2.12194440e-4f), r);
  typename V::Reg p = V::Set1(1.9875691500e-4f);
  p = V::MulAdd(p, r, V::Set1(1.3981999507e-3f));
  p = V::MulAdd(p, r, V::Set1(8.3334519073e-3f));
  p = V::MulAdd(p, r, V::Set1(4.1665795894e-2f));
  p = V::MulAdd(p, r, V::Set1(1.6666665459e-1f));
  p = V::MulAdd(p, r, V::Set1(5.0000001201e-1f));
  p = V::MulAdd(V::Mul(p, r), r, r);
  p = V::Add(p, V::Set1(1.0f));
  const typename V::Reg half = V::RoundInt(V::Mul(n, V::Set1(0.5f)));
  const typename V::Reg e = V::Mul(V::Mul(p, V::Pow2(half)), V::Pow2(V::Sub(n, half)));
  return V::Div(x, V::Add(V::Set1(1.0f), e));
}
