// weighted (rows, K) = x * norm in bfloat16, and of each row of x the sums of squares of tiles of WIDTH
// features, float32 (rows, SQUARES_PITCH): what a linear that adds to a stream leaves beside it (see
// hopper_linear.cu), bit for bit. A block takes a row, eight lanes a tile. K is a multiple of 8.
// Launched chained, so that the linear after it can load its weights.
//
// Macros: WIDTH, TILES.
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 256
#define LANES 8
#define ITEMS ((WIDTH / 4 + LANES - 1) / LANES)
#define ROUNDS ((TILES + THREADS / LANES - 1) / (THREADS / LANES))
#define SQUARES_PITCH ((TILES + 15) / 16 * 16)

// STREAM

extern "C" __global__ void __launch_bounds__(THREADS)
hopper_weighted(const u16 *x, const u16 *norm, u16 *weighted, float *squares, int K) {
  const u64 row = blockIdx.x;
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");  // the kernel before has written x, and has read what lay in weighted
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    const int tile = round * (THREADS / LANES) + threadIdx.x / LANES;
    auto column = [&](int item) { return (threadIdx.x % LANES + item * LANES) * 4; };
    auto is_mine = [&](int item) {
      return tile < TILES && column(item) < WIDTH && tile * WIDTH + column(item) < K;
    };
    uint2 values[ITEMS], gains[ITEMS];
#pragma unroll
    for (int n = 0; n < ITEMS; n++) {
      if (!is_mine(n)) continue;
      const int feature = tile * WIDTH + column(n);
      values[n] = *(const uint2 *)(x + row * K + feature);
      gains[n] = *(const uint2 *)(norm + feature);
    }
    float total = 0.f;
#pragma unroll
    for (int n = 0; n < ITEMS; n++) {
      if (!is_mine(n)) continue;
      *(uint2 *)(weighted + row * K + tile * WIDTH + column(n)) =
          make_uint2(times(values[n].x, gains[n].x), times(values[n].y, gains[n].y));
      total = plus_squares(plus_squares(total, values[n].x), values[n].y);
    }
    total = over_lanes(total);
    if (tile < TILES && threadIdx.x % LANES == 0) squares[row * SQUARES_PITCH + tile] = total;
  }
}
