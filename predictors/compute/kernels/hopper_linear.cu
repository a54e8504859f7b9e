// A linear over 1 to 64 rows on Hopper (sm_90a), with the norm before it or after it. x (rows, K) and
// W (PARTS * N, K) in bfloat16, row major; sums in float32. K is a multiple of 64, N of 8.
//
// An RMS norm of a stream s with weights g is s * g, which the linear that wrote s stores beside it
// (`weighted`, bfloat16), divided by each row's root mean square, which the linear that reads it
// divides its sums by. In between go each row's sums of squares per tile of s (`squares`, float32).
//   IS_ADDED: out += x W^T, where out is the stream (rows, N); writes weighted and squares of it.
//   Else: out = x W^T / rms, plus a bias, or silu(x Wgate^T / rms) * (x Wup^T / rms), in bfloat16 or
//   float32; x is `weighted`.
//
// So few rows are bound by reading W once. A block multiplies all rows by WIDTH features of each part,
// over its share of K. One warp keeps loads of W and x under way (TMA); four warps multiply (wgmma,
// whose 64 rows are those of x). A cluster of SPLITS blocks shares its features: each block takes a
// share of K and sends its sums to the block that finishes those rows. All sums are added in a fixed
// order, those of squares too, so a row's bits depend neither on time nor on the other rows.
//
// Launched chained: a block begins while the kernel before still runs. It loads weights, which no
// kernel writes, and waits for that kernel's end (griddepcontrol.wait) before it touches anything else.
// Why that is enough, although the wait is for one kernel only: in each kernel of a chain some block
// waits, so a kernel ends after the one before it, and that one after its own. After the wait all
// earlier kernels have ended: what they wrote is seen, and what they read may be overwritten. The
// kernels of a layer, with what they read and write beside weights:
//   qkv: weighted, squares -> qkv.            attention: qkv, pages -> heads, pages, its scratch.
//   out: heads, stream -> stream, weighted, squares.
//   gate and up: weighted, squares -> wide.   down: wide, stream -> stream, weighted, squares.
// Within a kernel blocks run in any order: none writes what another block reads, since a block
// reads and writes the same values of the stream, and the rest goes to other memory than it comes from.
//
// Macros: BOX (rows of x that are loaded: 8, 16, 32 or 64), WIDTH, PARTS, SPLITS, STAGES, IS_ADDED,
// HAS_BIAS, OUT_F32, TILES (tiles of a row of the stream, whose sums of squares are apart). The
// function `wgmma` is written by hopper_linear.py: its text depends on WIDTH.
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
#define LANES 8                        // that finish a row of a cluster's, every eighth four features each
#define ITEMS ((WIDTH / 4 + LANES - 1) / LANES)
#define CHUNKS ((TILES + 15) / 16)     // of sums of squares that four lanes read at a time
#define SQUARES_PITCH (CHUNKS * 16)

static_assert(WIDTH % 8 == 0 && WIDTH <= 256, "a wgmma has 8 to 256 columns");
static_assert(STAGE_BYTES >= ROWS * BLOCK_K * 2, "a wgmma reads within its stage");
static_assert(ROWS % SPLITS == 0 && SPLITS <= 8 && (SPLITS == 1 || PARTS == 1), "a cluster");
static_assert(SPLITS == 1 || ROWS / SPLITS * LANES <= THREADS, "a block of a cluster finishes its rows at once");
static_assert(!IS_ADDED || (SPLITS > 1 && !HAS_BIAS && !OUT_F32), "a cluster adds to the stream");

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

// STREAM
__device__ __forceinline__ float gated(float gate, float up) { return gate / (1.f + __expf(-gate)) * up; }

// A tile whose rows are 64 values of K, swizzled over 128 bytes; 8 rows are 1,024 bytes (PTX ISA, "Matrix descriptor").
__device__ __forceinline__ u64 descriptor(u32 address) {
  return ((u64)((address & 0x3FFFF) >> 4)) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// `weights` loads boxes (64, WIDTH, PARTS) of W as (K, N, PARTS); `input` boxes (64, BOX) of x as (K, rows).
// `norm` (N,) are the weights of the norm after, `eps` that of the norm before; `squares` (rows, SQUARES_PITCH).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_linear(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap input,
              const u16 *bias, void *out, const u16 *norm, u16 *weighted, float *squares, float eps,
              int rows, int N, int K) {
  extern __shared__ __align__(1024) char raw[];
  const u32 base = shared_address(raw);
  auto full = [&](int stage) { return base + BARRIERS_AT + stage * 8; };
  auto empty = [&](int stage) { return base + BARRIERS_AT + (STAGES + stage) * 8; };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = blockIdx.x % SPLITS, first_feature = blockIdx.x / SPLITS * WIDTH;
  const int first = K / BLOCK_K * rank / SPLITS, count = K / BLOCK_K * (rank + 1) / SPLITS - first;

  // a consumer holds, of rows own_row and own_row + 8, the features 8 j + own_feature and the next one
  const int own_row = warp * 16 + lane / 4, own_feature = lane % 4 * 2;

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

  float scales[2] = {1.f, 1.f};  // of rows own_row and own_row + 8: 1 / rms
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
#if !IS_ADDED
    // squares of rows own_row and own_row + 8, by the four lanes that hold them; they are added behind the
    // products, since shuffles before those make ptxas run one wgmma after the other (its note C7515)
    wait_for_kernel_before();
    float4 found[2][CHUNKS];
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        const int row = min(own_row + half * 8, rows - 1);
        found[half][c] = *(const float4 *)(squares + row * SQUARES_PITCH + c * 16 + lane % 4 * 4);
      }
#endif
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
#if !IS_ADDED
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = 0.f;
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        const int tile = c * 16 + lane % 4 * 4;  // nothing is written beyond the last tile
        total += tile < TILES ? found[half][c].x : 0.f;
        total += tile + 1 < TILES ? found[half][c].y : 0.f;
        total += tile + 2 < TILES ? found[half][c].z : 0.f;
        total += tile + 3 < TILES ? found[half][c].w : 0.f;
      }
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
      scales[half] = rsqrtf(total / K + eps);
    }
#endif
    wgmma_wait();
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
      for (int i = 0; i < WIDTH / 2; i++) keep(sums[p][i]);
  }

  wait_for_kernel_before();  // each thread, before it reads the stream or writes over what another kernel reads

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
        float a = __fmul_rn(sums[0][at], scales[half]), b = __fmul_rn(sums[0][at + 1], scales[half]);
#if PARTS == 2
        a = gated(a, __fmul_rn(sums[1][at], scales[half]));
        b = gated(b, __fmul_rn(sums[1][at + 1], scales[half]));
#endif
#if HAS_BIAS
        const u32 more = *(const u32 *)(bias + feature);
        a += low(more);
        b += high(more);
#endif
        const u64 to = (u64)row * N + feature;
#if OUT_F32
        *(float2 *)((float *)out + to) = make_float2(a, b);
#else
        *(u32 *)((u16 *)out + to) = packed(a, b);
#endif
      }
    }
  }
#else
  // rows that a block of the cluster finishes, from rank * each on; eight lanes a row
  const int each = (rows + SPLITS - 1) / SPLITS, place = threadIdx.x / LANES, row = rank * each + place;
  auto column = [&](int item) { return (threadIdx.x % LANES + item * LANES) * 4; };  // of the tile
  auto is_mine = [&](int item) {
    return place < each && row < rows && column(item) < WIDTH && first_feature + column(item) < N;
  };
#if IS_ADDED || HAS_BIAS
  uint2 more[ITEMS];  // read before the wait, since nothing there depends on it
#if IS_ADDED
  uint2 gains[ITEMS];
#endif
#pragma unroll
  for (int n = 0; n < ITEMS; n++) {
    const int feature = first_feature + column(n);
    if (!is_mine(n)) continue;
#if IS_ADDED
    more[n] = *(const uint2 *)((const u16 *)out + (u64)row * N + feature);
    gains[n] = *(const uint2 *)(norm + feature);
#else
    more[n] = *(const uint2 *)(bias + feature);
#endif
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
      for (int j = 0; j < WIDTH / 8; j++) {
        const int at = 4 * j + 2 * half;
        send(to + 8 * j * 4, owner, __fmul_rn(sums[0][at], scales[half]), __fmul_rn(sums[0][at + 1], scales[half]));
      }
    }
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // all sums are here, and no block reads another's memory from now on
  float total = 0.f;  // of squares
#pragma unroll
  for (int n = 0; n < ITEMS; n++) {
    if (!is_mine(n)) continue;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int r = 0; r < SPLITS; r++) {
      const float4 part = *(const float4 *)(raw + SUMS_AT + ((r * each + place) * PITCH + column(n)) * 4);
      sum.x += part.x;
      sum.y += part.y;
      sum.z += part.z;
      sum.w += part.w;
    }
#if IS_ADDED || HAS_BIAS
    sum.x += low(more[n].x);
    sum.y += high(more[n].x);
    sum.z += low(more[n].y);
    sum.w += high(more[n].y);
#endif
    const u64 to = (u64)row * N + first_feature + column(n);
#if OUT_F32
    *(float4 *)((float *)out + to) = sum;
#else
    const uint2 stored = make_uint2(packed(sum.x, sum.y), packed(sum.z, sum.w));
    *(uint2 *)((u16 *)out + to) = stored;
#endif
#if IS_ADDED
    *(uint2 *)(weighted + to) = make_uint2(times(stored.x, gains[n].x), times(stored.y, gains[n].y));
    total = plus_squares(plus_squares(total, stored.x), stored.y);
#endif
  }
#if IS_ADDED
  total = over_lanes(total);
  if (place < each && row < rows && threadIdx.x % LANES == 0)
    squares[row * SQUARES_PITCH + first_feature / WIDTH] = total;
#endif
#endif
}
