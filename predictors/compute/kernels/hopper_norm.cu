// out (rows, K) = x / rms(x) * weight in bfloat16, with the root in float32; a block takes a row. K is
// a multiple of 8 and at most 8,192. Launched chained, so that the linear after it can load its weights.
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 256
#define VECTORS 4  // of 8 values, that a thread holds at most

__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xFFFF0000u); }
__device__ __forceinline__ float squares(u32 both) { return low(both) * low(both) + high(both) * high(both); }
__device__ __forceinline__ u32 scaled(u32 both, float scale, u32 weight) {
  u32 made;
  const float a = low(both) * scale * low(weight), b = high(both) * scale * high(weight);
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(made) : "f"(b), "f"(a));
  return made;
}

extern "C" __global__ void __launch_bounds__(THREADS)
hopper_norm(const u16 *x, const u16 *weight, u16 *out, int K, float eps) {
  __shared__ float parts[THREADS / 32];
  const int vectors = K / 8, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  uint4 w[VECTORS], v[VECTORS];
#pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    const int at = threadIdx.x + j * THREADS;
    if (at < vectors) w[j] = ((const uint4 *)weight)[at];
  }
  asm volatile("griddepcontrol.wait;" ::: "memory");  // the kernel before has written x, and has read what lay in out
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    const int at = threadIdx.x + j * THREADS;
    if (at >= vectors) continue;
    v[j] = ((const uint4 *)(x + (u64)blockIdx.x * K))[at];
    sum += squares(v[j].x) + squares(v[j].y) + squares(v[j].z) + squares(v[j].w);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
  if (lane == 0) parts[warp] = sum;
  __syncthreads();
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < THREADS / 32; i++) total += parts[i];
  const float scale = rsqrtf(total / K + eps);
#pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    const int at = threadIdx.x + j * THREADS;
    if (at >= vectors) continue;
    uint4 y;
    y.x = scaled(v[j].x, scale, w[j].x);
    y.y = scaled(v[j].y, scale, w[j].y);
    y.z = scaled(v[j].z, scale, w[j].z);
    y.w = scaled(v[j].w, scale, w[j].w);
    ((uint4 *)(out + (u64)blockIdx.x * K))[at] = y;
  }
}
