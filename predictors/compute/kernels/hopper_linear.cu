// A linear over 1 to 64 rows on Hopper (sm_90a): out = x W^T, plus a bias or a residual, or
// silu(x Wgate^T) * (x Wup^T). x (rows, K) and W (PARTS * N, K) in bfloat16, out (rows, N) in bfloat16
// or float32, row major; sums in float32. K is a multiple of 64, N of 8.
//
// So few rows are bound by reading W once. A block multiplies all rows by WIDTH features of each part,
// over its share of K. One warp keeps loads of W and x under way (TMA); four warps multiply (wgmma,
// whose 64 rows are those of x). A cluster of SPLITS blocks shares its features: each block takes a
// share of K and sends its sums to the block that finishes those rows. That one adds them in a fixed
// order, so a row's bits depend neither on time nor on the other rows.
//
// Launched chained: a block begins while the kernel before still runs. It loads weights, which no
// kernel writes, and waits for that kernel's end before it touches anything else.
//
// Macros: BOX (rows of x that are loaded: 8, 16, 32 or 64), WIDTH, PARTS, SPLITS, STAGES, HAS_ADDEND,
// OUT_F32. The function `wgmma` is written by hopper_linear.py: its text depends on WIDTH.
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define BLOCK_K 64
#define ROWS 64
#define X_BYTES (BOX * BLOCK_K * 2)    // wgmma reads 64 rows; what lies behind these gives sums that nobody uses
#define PART_BYTES (WIDTH * BLOCK_K * 2)
#define STAGE_BYTES (X_BYTES + PARTS * PART_BYTES)
#define PITCH (WIDTH + 4)              // of a row of sums, so that fewer lanes meet in a bank
#define SUMS_AT (STAGES * STAGE_BYTES)
#define SUMS_BYTES (SPLITS > 1 ? ROWS * PITCH * 4 : 0)
#define BARRIERS_AT (SUMS_AT + SUMS_BYTES)
#define CONSUMERS 128
#define THREADS (CONSUMERS + 32)
#define PAIRS (WIDTH / 2)
#define ITEMS ((ROWS / SPLITS * PAIRS + THREADS - 1) / THREADS)  // pairs of features that a thread of a cluster finishes

static_assert(WIDTH % 8 == 0 && WIDTH <= 256, "a wgmma has 8 to 256 columns");
static_assert(STAGE_BYTES >= ROWS * BLOCK_K * 2, "a wgmma reads within its stage");
static_assert(ROWS % SPLITS == 0 && SPLITS <= 8 && (SPLITS == 1 || PARTS == 1), "a cluster");

// ---- instructions: PTX ISA, "Asynchronous barriers", "Tensor copies", "wgmma", "griddepcontrol" ----
struct __align__(128) TensorMap { char bytes[128]; };

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void barrier_init(u32 at, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(u32 at, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 at, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(at), "r"(parity) : "memory");
}
__device__ __forceinline__ void prefetch_map(const TensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void load_2d(u32 to, const TensorMap *map, int c0, int c1, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
      ::"r"(to), "l"(map), "r"(c0), "r"(c1), "r"(barrier) : "memory");
}
__device__ __forceinline__ void load_3d(u32 to, const TensorMap *map, int c0, int c1, int c2, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
      ::"r"(to), "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(barrier) : "memory");
}
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void wait_for_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_wait_but_one() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
__device__ __forceinline__ void keep(float &v) { asm volatile("" : "+f"(v)::"memory"); }  // no use of v moves before the wait
// WGMMA

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void send(u32 address, u32 rank, float a, float b) {  // to this place of that block's memory
  u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(a), "f"(b) : "memory");
}

__device__ __forceinline__ u32 packed(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xFFFF0000u); }
__device__ __forceinline__ float gated(float gate, float up) { return gate / (1.f + __expf(-gate)) * up; }

// A tile whose rows are 64 values of K, swizzled over 128 bytes; 8 rows are 1,024 bytes (PTX ISA, "Matrix descriptor").
__device__ __forceinline__ u64 descriptor(u32 address) {
  return ((u64)((address & 0x3FFFF) >> 4)) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// `weights` loads boxes (64, WIDTH, PARTS) of W as (K, N, PARTS); `input` boxes (64, BOX) of x as (K, rows).
// `addend` is a bias, with a pitch of 0, or a residual (rows, N), with one of N; `out` may be the residual.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_linear(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap input,
              const u16 *addend, int addend_pitch, void *out, int rows, int N, int K) {
  extern __shared__ __align__(1024) char raw[];
  const u32 base = shared_address(raw);
  auto full = [&](int stage) { return base + BARRIERS_AT + stage * 8; };
  auto empty = [&](int stage) { return base + BARRIERS_AT + (STAGES + stage) * 8; };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = blockIdx.x % SPLITS, first_feature = blockIdx.x / SPLITS * WIDTH;
  const int first = K / BLOCK_K * rank / SPLITS, count = K / BLOCK_K * (rank + 1) / SPLITS - first;

  launch_dependents();
  if (threadIdx.x == CONSUMERS) { prefetch_map(&weights); prefetch_map(&input); }
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) { barrier_init(full(s), 1); barrier_init(empty(s), CONSUMERS / 32); }
    barrier_init_fence();
  }
  __syncthreads();
#if SPLITS > 1
  cluster_arrive();  // this block's memory is there
#endif

  float sums[PARTS][WIDTH / 2];
#pragma unroll
  for (int p = 0; p < PARTS; p++)
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) sums[p][i] = 0.f;

  if (warp == CONSUMERS / 32) {
    if (lane == 0) {
      auto load_weights = [&](int i) {
        // bytes of both loads; what lies beyond the end counts, too
        barrier_expect(full(i % STAGES), STAGE_BYTES);
        load_3d(base + i % STAGES * STAGE_BYTES + X_BYTES, &weights, (first + i) * BLOCK_K, first_feature, 0, full(i % STAGES));
      };
      auto load_input = [&](int i) {
        load_2d(base + i % STAGES * STAGE_BYTES, &input, (first + i) * BLOCK_K, 0, full(i % STAGES));
      };
      const int ahead = min(STAGES, count);
      for (int i = 0; i < ahead; i++) load_weights(i);
      wait_for_kernel_before();
      for (int i = 0; i < ahead; i++) load_input(i);
      for (int i = ahead; i < count; i++) {
        barrier_wait(empty(i % STAGES), (i / STAGES - 1) & 1);
        load_weights(i);
        load_input(i);
      }
    }
    __syncwarp();
  } else {
    for (int i = 0; i < count; i++) {
      const u32 stage = base + i % STAGES * STAGE_BYTES;
      barrier_wait(full(i % STAGES), (i / STAGES) & 1);
      __syncwarp();
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < BLOCK_K / 16; k++)
#pragma unroll
        for (int p = 0; p < PARTS; p++)
          wgmma(sums[p], descriptor(stage + k * 32), descriptor(stage + X_BYTES + p * PART_BYTES + k * 32));
      wgmma_commit();
      wgmma_wait_but_one();  // the one before has ended: its stage is free
      if (lane == 0 && i > 0) barrier_arrive(empty((i - 1) % STAGES));
    }
    wgmma_wait();
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
      for (int i = 0; i < WIDTH / 2; i++) keep(sums[p][i]);
  }

  wait_for_kernel_before();  // each thread, before it reads a residual or writes over what another kernel reads
#if HAS_ADDEND
  auto added = [&](int row, int feature) { return *(const u32 *)(addend + (u64)row * addend_pitch + feature); };
#endif
  auto store = [&](int row, int feature, float a, float b) {
#if OUT_F32
    *(float2 *)((float *)out + (u64)row * N + feature) = make_float2(a, b);
#else
    *(u32 *)((u16 *)out + (u64)row * N + feature) = packed(a, b);
#endif
  };
  // a consumer holds, of rows r and r + 8, the features 8 j + f and the next one
  const int own_row = warp * 16 + lane / 4, own_feature = lane % 4 * 2;

#if SPLITS == 1
  if (warp != CONSUMERS / 32) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = own_row + half * 8;
      if (row >= rows) continue;
#pragma unroll
      for (int j = 0; j < WIDTH / 8; j++) {
        const int feature = first_feature + 8 * j + own_feature, at = 4 * j + 2 * half;
        if (feature >= N) continue;
        float a = sums[0][at], b = sums[0][at + 1];
#if PARTS == 2
        a = gated(a, sums[1][at]);
        b = gated(b, sums[1][at + 1]);
#endif
#if HAS_ADDEND
        const u32 more = added(row, feature);
        a += low(more);
        b += high(more);
#endif
        store(row, feature, a, b);
      }
    }
  }
#else
  const int each = (rows + SPLITS - 1) / SPLITS;  // rows that a block of the cluster finishes, from rank * each on
  const int mine = max(0, min(each, rows - rank * each)) * PAIRS;
#if HAS_ADDEND
  u32 more[ITEMS];  // read before the wait, since nothing there depends on it
#pragma unroll
  for (int n = 0; n < ITEMS; n++) {
    const int i = threadIdx.x + n * THREADS, feature = first_feature + i % PAIRS * 2;
    if (i < mine && feature < N) more[n] = added(rank * each + i / PAIRS, feature);
  }
#endif
  cluster_wait();  // each block of the cluster has begun
  if (warp != CONSUMERS / 32) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = own_row + half * 8;
      if (row >= rows) continue;
      const int owner = row / each;
      const u32 to = base + SUMS_AT + ((rank * each + row - owner * each) * PITCH + own_feature) * 4;
#pragma unroll
      for (int j = 0; j < WIDTH / 8; j++)
        send(to + 8 * j * 4, owner, sums[0][4 * j + 2 * half], sums[0][4 * j + 2 * half + 1]);
    }
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // all sums are here, and no block reads another's memory from now on
#pragma unroll
  for (int n = 0; n < ITEMS; n++) {
    const int i = threadIdx.x + n * THREADS, row = i / PAIRS, feature = first_feature + i % PAIRS * 2;
    if (i >= mine || feature >= N) continue;
    float a = 0.f, b = 0.f;
#pragma unroll
    for (int r = 0; r < SPLITS; r++) {
      const float2 part = *(const float2 *)(raw + SUMS_AT + ((r * each + row) * PITCH + i % PAIRS * 2) * 4);
      a += part.x;
      b += part.y;
    }
#if HAS_ADDEND
    a += low(more[n]);
    b += high(more[n]);
#endif
    store(rank * each + row, feature, a, b);
  }
#endif
}
