// Pairs of bfloat16 of a stream and their squares, for the kernels that write `weighted` and `squares`
// (hopper_linear.cu): the same order of sums in each, and no fused multiply-add but the one that is
// written, so that a row has the same bits from any of them.
__device__ __forceinline__ u32 packed(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xFFFF0000u); }
__device__ __forceinline__ u32 times(u32 both, u32 gains) {
  return packed(__fmul_rn(low(both), low(gains)), __fmul_rn(high(both), high(gains)));
}
__device__ __forceinline__ float plus_squares(float total, u32 both) {
  total = __fmaf_rn(low(both), low(both), total);
  return __fmaf_rn(high(both), high(both), total);
}
// the sum over LANES neighbours; all lanes of a warp take part
__device__ __forceinline__ float over_lanes(float total) {
#pragma unroll
  for (int distance = 1; distance < LANES; distance *= 2) total += __shfl_xor_sync(0xFFFFFFFFu, total, distance);
  return total;
}
