// decode_heatmaps: the peak of each heatmap, refined below the size of a cell, mapped to the caller's frame.
// The twin, and the specification: decode_heatmaps of _decode.py.
//
// Threads    one block a heatmap. 16-byte loads, four in flight a thread, what is before and after the aligned part one
//            by one; the first maximum by warp shuffles, then one word of shared memory a warp. The window around the
//            peak is blurred by the block (rows) and its first warp (columns), which solves for the step.
// Bytes      each heatmap once (and the mirrored one), the window again from L1 or L2, 12 bytes written. Channels that
//            an instance does not have and instances from call->count on are not read.
// Floor      8x25 fp16 maps of 64x48: 1.2 MB, 0.4 us of an H100's 3.35 TB/s; so what it takes is a launch and three
//            trips to memory in a row (the call, the map, the window). 8x294: 14.5 MB, 4.3 us.
// Whole maps are blurred where the step magnifies rounding (noise, plateaus) or a value may be below the logarithm's
//            floor. There MMPose's float32 arithmetic is repeated bit by bit: OpenCV's order of summation, its
//            rescaling by the blurred map's maximum, NumPy's logarithm. Other roundings move such points by 0.1 px.
//
// Defines: T (Half or float), REFINEMENT, FLIP (0 or 1), THREADS (32, 64, 128 or 256) and, for dark and dark_udp,
// BLUR_KERNEL and BLUR_WEIGHTS (its float literals, comma-separated).

#include "common.cuh"

#define SHIFT 1  // 0 is none
#define DARK 2
#define DARK_UDP 3

constexpr unsigned FULL = 0xffffffffu;
constexpr int WARPS = THREADS / 32;
constexpr int PACKED = 16 / sizeof(T);  // elements of a 16-byte load
constexpr int IN_FLIGHT = 4;            // such loads of a thread at a time
constexpr float LARGEST = 0x1.fffffep127f;
#if FLIP || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800)
constexpr int HELD = 1024;              // threads that an SM shall hold: 64 registers each, and all that sm_75 can;
#else
constexpr int HELD = 1280;              // or 48 registers each, which do without spilling
#endif

struct alignas(16) Pack { unsigned words[4]; };

__device__ __forceinline__ float element(const Pack& pack, int j) {
    if constexpr (sizeof(T) == 2) return to_float(Half{(unsigned short)(pack.words[j / 2] >> 16 * (j % 2))});
    else return __uint_as_float(pack.words[j]);
}

__device__ __forceinline__ int misaligned(const T* address) {  // elements past the last multiple of 16 bytes
    return int(reinterpret_cast<unsigned long long>(address) % 16 / sizeof(T));
}

struct Map {                  // one heatmap, merged with that of the mirrored crop if FLIP
    const T* values;          // (height, width)
    const T* mirrored;        // (height, width), the channel that this one swaps with
    int width, height;
    int shift;                // whether the mirrored map moves one cell to the right, its column 0 staying

    __device__ __forceinline__ float at(int y, int x) const {
        const float value = to_float(values[y * width + x]);
        if constexpr (FLIP) return 0.5f * (value + to_float(mirrored[y * width + width - 1 - x + (shift && x > 0)]));
        else return value;
    }
    __device__ __forceinline__ float at(int index) const {
        if constexpr (FLIP) return at(index / width, index % width);
        else return to_float(values[index]);
    }
};

struct Peak { float value; int index; };

// The first maximum above 0 among this thread's elements, which come in rising order. NaN loses every comparison.
__device__ __forceinline__ void consider(Peak& peak, float value, int index) {
    if (value > peak.value) peak = {value, index};
}

__device__ __forceinline__ Peak search(const Map& map) {
    const int size = map.width * map.height;
    // Mirrored, a pack is a pack if rows are whole numbers of them; otherwise all elements are read one by one.
    const bool packed = !FLIP || (map.width % PACKED == 0 && !misaligned(map.values) && !misaligned(map.mirrored));
    const int head = packed ? min(size, (PACKED - misaligned(map.values)) % PACKED) : size;
    const int packs = (size - head) / PACKED, tail = head + packs * PACKED;
    Peak peak = {0.0f, 0};
#pragma unroll 4
    for (int i = threadIdx.x; i < head; i += THREADS) consider(peak, map.at(i), i);
    for (int first = threadIdx.x; first < packs; first += IN_FLIGHT * THREADS) {
        Pack loaded[IN_FLIGHT], mirrored[IN_FLIGHT];
        float ahead[IN_FLIGHT];  // with shift: what meets a pack's first element, the one after the mirrored pack
#pragma unroll
        for (int n = 0; n < IN_FLIGHT; ++n) {
            const int i = head + (first + n * THREADS) * PACKED;
            const bool there = first + n * THREADS < packs;
            loaded[n] = there ? *reinterpret_cast<const Pack*>(map.values + i) : Pack{};  // zeros: never a peak
            if (!FLIP) continue;
            const int x = i % map.width, end = i - x + map.width - x;  // after the last of the mirrored pack
            mirrored[n] = there ? *reinterpret_cast<const Pack*>(map.mirrored + end - PACKED) : Pack{};
            ahead[n] = there && map.shift ? to_float(map.mirrored[x ? end : end - 1]) : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < IN_FLIGHT; ++n)
#pragma unroll
            for (int j = 0; j < PACKED; ++j) {
                float value = element(loaded[n], j);
                if (FLIP) {
                    const float straight = element(mirrored[n], PACKED - 1 - j);
                    const float shifted = j == 0 ? ahead[n] : element(mirrored[n], (PACKED - j) % PACKED);
                    value = 0.5f * (value + (map.shift ? shifted : straight));
                }
                consider(peak, value, head + (first + n * THREADS) * PACKED + j);
            }
    }
    for (int i = tail + threadIdx.x; i < size; i += THREADS) consider(peak, map.at(i), i);
    return peak;
}

// The block's first maximum, to every thread.
__device__ __forceinline__ Peak find_peak(const Map& map) {
    __shared__ unsigned long long keys[WARPS];
    const Peak own = search(map);
    // Floats above 0 sort as their bits do; below them lies the index, turned round since the lower one wins.
    unsigned long long key = (unsigned long long)__float_as_uint(own.value) << 32 | (FULL - own.index);
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) key = max(key, __shfl_xor_sync(FULL, key, lanes));
    if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = key;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) key = max(key, keys[warp]);
    return {__uint_as_float(unsigned(key >> 32)), int(FULL - unsigned(key))};
}

#if REFINEMENT == SHIFT
// +-0.25 towards the larger neighbour; NaN counts as minus infinity.
__device__ __forceinline__ double quarter(float before, float after) {
    const float lowest = __uint_as_float(0xff800000u);
    if (before != before) before = lowest;
    if (after != after) after = lowest;
    return after > before ? 0.25 : after < before ? -0.25 : 0.0;
}
#elif REFINEMENT >= DARK
constexpr bool UDP = REFINEMENT == DARK_UDP;
constexpr int RADIUS = BLUR_KERNEL / 2;
constexpr int REACH = UDP ? 1 : 2;                  // how far the differences look from the peak, cells
constexpr int SIDE = 2 * REACH + 1;
constexpr int CELLS = SIDE * SIDE, CENTRE = CELLS / 2;
constexpr int SPAN = 2 * RADIUS + SIDE;             // rows that the window's blur looks at
constexpr float FLOOR = UDP ? 1e-3f : 1e-10f;       // of the values under the logarithm
constexpr float CEILING = UDP ? 50.0f : LARGEST;
constexpr float MARGIN = 1e-3f;                     // relative; as the twin's
constexpr double MAX_AMPLIFICATION = 200;           // cells for each unit of a logarithm; 8 on a clean peak of sigma 2
constexpr int GROUP = BLUR_KERNEL >= 7 && BLUR_KERNEL <= 17 ? 4 : 1;  // blurred values of a thread at a time
constexpr int LEAST_ROWS = 2 * RADIUS + 16;
constexpr int BAND = LEAST_ROWS * 16 > 2048 ? LEAST_ROWS * 16 : 2048;  // floats: 8 KB, so that many blocks fit on an SM
static_assert(SPAN * SIDE <= BAND && CELLS <= 32, "the window fits");
__constant__ float WEIGHTS[BLUR_KERNEL] = {BLUR_WEIGHTS};

__device__ __forceinline__ float finite_at(const Map& map, int y, int x) {  // 0 outside, and for NaN and infinities
    if (x < 0 || x >= map.width) return 0.0f;
    const float value = map.at(y, x);
    return fabsf(value) <= LARGEST ? value : 0.0f;
}

// G values of row y, blurred along x, from x on; in OpenCV's order: left to right, small kernels from the centre.
template <int G> __device__ __forceinline__ void blur_row(const Map& map, int y, int x, float* sums) {
    if constexpr (BLUR_KERNEL < 7) {
        sums[0] = __fmul_rn(finite_at(map, y, x), WEIGHTS[RADIUS]);
#pragma unroll
        for (int k = 1; k <= RADIUS; ++k)
            sums[0] = __fmaf_rn(finite_at(map, y, x + k) + finite_at(map, y, x - k), WEIGHTS[RADIUS + k], sums[0]);
    } else {
        for (int j = 0; j < G; ++j) sums[j] = 0.0f;
#pragma unroll 20
        for (int k = 0; k < BLUR_KERNEL + G - 1; ++k) {
            const float value = finite_at(map, y, x + k - RADIUS);
#pragma unroll
            for (int j = 0; j < G; ++j)
                if (k >= j && k < j + BLUR_KERNEL) sums[j] = __fmaf_rn(value, WEIGHTS[k - j], sums[j]);
        }
    }
}

// G values of a column of `band`, blurred along y; the first one's upper end is band[0]. From the centre, as OpenCV.
template <int G, bool FUSED> __device__ __forceinline__ void sum_column(const float* band, int stride, float* sums) {
#pragma unroll
    for (int j = 0; j < G; ++j) sums[j] = __fmul_rn(band[(j + RADIUS) * stride], WEIGHTS[RADIUS]);
#pragma unroll 20
    for (int k = 1; k <= RADIUS; ++k)
#pragma unroll
        for (int j = 0; j < G; ++j) {
            const float pair = band[(j + RADIUS + k) * stride] + band[(j + RADIUS - k) * stride];
            sums[j] = FUSED ? __fmaf_rn(pair, WEIGHTS[RADIUS + k], sums[j])
                            : __fadd_rn(sums[j], __fmul_rn(pair, WEIGHTS[RADIUS + k]));
        }
}
// x and width: of the map. MMPose pads it by RADIUS; OpenCV's vector code, which fuses multiplication and addition,
// takes eight columns at a time and leaves the last ones to code that does not. (Along x all of those are padding.)
template <int G>
__device__ __forceinline__ void blur_column(const float* band, int stride, int x, int width, float* sums) {
    const bool fused = x + RADIUS < (width + 2 * RADIUS & ~7);
    fused ? sum_column<G, true>(band, stride, sums) : sum_column<G, false>(band, stride, sums);
}

// Rows around the peak, blurred along x at the columns of the window: (SPAN, SIDE). The block's; a barrier must follow.
__device__ __forceinline__ void blur_window_rows(const Map& map, int peak_x, int peak_y, float* band) {
    for (int task = threadIdx.x; task < SPAN * SIDE; task += THREADS) {
        const int y = peak_y - REACH - RADIUS + task / SIDE;
        const int x = min(max(peak_x - REACH + task % SIDE, 0), map.width - 1);  // edge padding, after the blur
        float sum[1] = {0.0f};
        if (y >= 0 && y < map.height) blur_row<1>(map, y, x, sum);
        band[task] = sum[0];
    }
}

// The blurred window (SIDE, SIDE) out of those rows, a value a lane.
__device__ __forceinline__ float blur_window_columns(
    const Map& map, int peak_x, int peak_y, int lane, const float* band) {
    const int row = min(max(peak_y - REACH + lane / SIDE, 0), map.height - 1) - (peak_y - REACH);
    const int column = lane % SIDE;
    const int x = min(max(peak_x - REACH + column, 0), map.width - 1);
    float sum[1];
    blur_column<1>(band + row * SIDE + column, SIDE, x, map.width, sum);
    return sum[0];
}

// The maximum of the whole blurred map, to every thread. For the whole block, which may not touch `band` meanwhile.
__device__ __forceinline__ float blurred_maximum(const Map& map, float* band) {
    __shared__ float maxima[WARPS];
    const int most = BAND / LEAST_ROWS & ~3;                                 // columns of a tile
    const int across = (map.width + most - 1) / most;
    const int columns = ((map.width + across - 1) / across + 3) & ~3;        // whole groups
    const int rows = (BAND / columns - 2 * RADIUS) / GROUP * GROUP;          // so a last group stays within `band`
    const int groups = columns / GROUP;
    float largest = -LARGEST;
    for (int top = 0; top < map.height; top += rows)
        for (int left = 0; left < map.width; left += columns) {
            const int height = min(rows, map.height - top);
            for (int task = threadIdx.x; task < (height + 2 * RADIUS) * groups; task += THREADS) {
                const int row = task / groups, column = task % groups * GROUP, y = top + row - RADIUS;
                float sums[GROUP] = {};
                if (y >= 0 && y < map.height && left + column < map.width) blur_row<GROUP>(map, y, left + column, sums);
#pragma unroll
                for (int j = 0; j < GROUP; ++j) band[row * columns + column + j] = sums[j];
            }
            __syncthreads();
            for (int task = threadIdx.x; task < (height + GROUP - 1) / GROUP * columns; task += THREADS) {
                const int row = task / columns * GROUP, column = task % columns;
                if (left + column >= map.width) continue;
                float sums[GROUP];  // the last ones may lie below the tile
                blur_column<GROUP>(band + row * columns + column, columns, left + column, map.width, sums);
#pragma unroll
                for (int j = 0; j < GROUP; ++j)
                    if (row + j < height) largest = fmaxf(largest, sums[j]);
            }
            __syncthreads();
        }
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, lanes));
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int warp = 0; warp < WARPS; ++warp) largest = fmaxf(largest, maxima[warp]);
    return largest;
}

// log(value / centre) with an error relative to itself, so that near the peak, where it is small, nothing is lost.
__device__ __forceinline__ float log_ratio(float value, float centre) {
    const float change = (value - centre) / centre;
    return fabsf(change) < 0.5f ? log1pf(change) : logf(value / centre);
}

// The logarithm as NumPy computes it in float32: ln 2 times the exponent, and a ratio of polynomials of the mantissa in
// [sqrt 1/2, sqrt 2). It errs by up to 4 units in the last place. `value` is at least 1e-10, infinite or NaN.
__device__ __forceinline__ float numpy_log(float value) {
    if (!(value <= LARGEST)) return value;
    const unsigned bits = __float_as_uint(value);
    float exponent = int(bits >> 23) - 126;
    float m = __uint_as_float((bits & 0x7fffffu) | 126u << 23);
    if (m <= 0x1.6a09e6p-1f) {
        m += m;
        exponent -= 1.0f;
    }
    m -= 1.0f;
    constexpr float P[] = {0x1.a8579ap-6f, 0x1.860666p-2f, 0x1.7ae152p+0f, 0x1.0e6c38p+1f, 1.0f, 0.0f};
    constexpr float Q[] = {0x1.8107bep-8f, 0x1.3cb7e6p-3f, 0x1.f915c8p-1f, 0x1.39fc1ap+1f, 0x1.4e6c38p+1f, 1.0f};
    float above = P[0], below = Q[0];
#pragma unroll
    for (int i = 1; i < 6; ++i) {
        above = __fmaf_rn(above, m, P[i]);
        below = __fmaf_rn(below, m, Q[i]);
    }
    return __fmaf_rn(exponent, 0x1.62e430p-1f, __fdiv_rn(above, below));
}

struct Step { double x, y, amplification; };  // cells; how much it magnifies an error of the logarithms

// The Newton step from the logarithms of the window, a value a lane. For a whole warp; every lane gets it.
__device__ __forceinline__ Step solve(float logarithm) {
    const auto at = [&](int x, int y) { return __shfl_sync(FULL, logarithm, CENTRE + y * SIDE + x); };
    const float here = at(0, 0), right = at(1, 0), left = at(-1, 0), below = at(0, 1), above = at(0, -1);
    double dx = 0.5f * (right - left), dy = 0.5f * (below - above), dxx, dxy, dyy;
    if constexpr (UDP) {  // the mixed one along a single diagonal; the ridge keeps a flat map's Hessian regular
        constexpr double RIDGE = 0x1p-23;
        dxx = (right - 2 * here + left) + RIDGE;
        dyy = (below - 2 * here + above) + RIDGE;
        dxy = 0.5f * (at(1, 1) - right - below + here + here - left - above + at(-1, -1));
    } else {
        dxx = 0.25f * (at(REACH, 0) - 2 * here + at(-REACH, 0));
        dyy = 0.25f * (at(0, REACH) - 2 * here + at(0, -REACH));
        dxy = 0.25f * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1));
    }
    const double inverse = 1.0 / (dxx * dyy - dxy * dxy);
    Step step;
    step.x = (dxy * dy - dyy * dx) * inverse;
    step.y = (dxy * dx - dxx * dy) * inverse;
    const double norm = (fmax(fabs(dxx), fabs(dyy)) + fabs(dxy)) * fabs(inverse);
    step.amplification = norm * (1 + fmax(fabs(step.x), fabs(step.y)));
    return step;
}

// The step from the peak, which is finite; thread 0's is the result. For the whole block.
__device__ __forceinline__ Step newton_step(const Map& map, int peak_x, int peak_y, float score) {
    __shared__ float band[BAND];
    __shared__ int done;
    const int lane = threadIdx.x;  // of the first warp
    blur_window_rows(map, peak_x, peak_y, band);
    __syncthreads();
    Step step = {0, 0, 0};
    float value = 0;
    if (lane < 32) {
        if (lane < CELLS) value = blur_window_columns(map, peak_x, peak_y, lane, band);
        // MMPose rescales the blurred map by score / its maximum. The factor drops out of a logarithm's derivatives
        // unless it lifts a value over the floor or the ceiling.
        const bool sure = __all_sync(FULL, lane >= CELLS || value > FLOOR * (1 + MARGIN));
        step = solve(log_ratio(value, __shfl_sync(FULL, value, CENTRE)));
        bool local = sure && score < CEILING * (1 - MARGIN) && step.amplification < MAX_AMPLIFICATION;
        if (UDP && score < FLOOR * (1 - MARGIN) && __any_sync(FULL, lane < CELLS && value > 0)) {
            step = {0, 0, 0};  // a blurred map that stays below the floor is flat
            local = true;
        }
        if (lane == 0) done = local;
    }
    __syncthreads();
    if (!done) {
        const float factor = __fdiv_rn(score, blurred_maximum(map, band));
        if (lane < 32) {
            const float scaled = __fmul_rn(value, factor);  // NaN stays NaN
            step = solve(numpy_log(scaled < FLOOR ? FLOOR : UDP && scaled > CEILING ? CEILING : scaled));
        }
    }
    if (!(fabs(step.x) < 1e300 && fabs(step.y) < 1e300)) step.x = step.y = 0;
    return step;
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, HELD / THREADS < 16 ? HELD / THREADS : 16)
decode_heatmaps(                            // grid: crops * channels
    const Call* __restrict__ call,          // null: every channel of every crop, in heatmap cells
    const T* __restrict__ heatmaps,         // (crops, channels, height, width)
    const T* __restrict__ flipped,          // the same of the mirrored crops; with FLIP
    const int* __restrict__ flip_indices,   // (channels,); with FLIP
    int channels, int height, int width, int flip_shift,
    int planar,                             // 0: x, y, score of a landmark together; 1: all (x, y), then all scores
    float* __restrict__ out)                // (crops, channels, 3), or (crops, channels, 2) and (crops, channels)
{
    const int crop = blockIdx.x / channels, channel = blockIdx.x % channels;
    const Instance* instance = call ? call->instances() + crop : nullptr;
    const int count = call ? call->count : crop + 1;  // these are read at once, not one after the other
    const int begin = call ? instance->channels[0] : 0, end = call ? instance->channels[1] : channels;
    if (crop >= count) return;
    double x = -1, y = -1;
    float score = 0;
    if (channel >= begin && channel < end) {  // alike for the whole block
        const long long size = (long long)height * width;
        const T* mirrored = FLIP ? flipped + ((long long)crop * channels + flip_indices[channel]) * size : nullptr;
        const Map map = {heatmaps + blockIdx.x * size, mirrored, width, height, flip_shift};
        const Peak peak = find_peak(map);
        score = peak.value;
        if (score > 0) {
            const int peak_y = peak.index / width, peak_x = peak.index - peak_y * width;
            x = peak_x;
            y = peak_y;
#if REFINEMENT == SHIFT
            if (peak_x > 1 && peak_x < width - 1 && peak_y > 0)
                x += quarter(map.at(peak_y, peak_x - 1), map.at(peak_y, peak_x + 1));
            if (peak_y > 1 && peak_y < height - 1 && peak_x > 0)
                y += quarter(map.at(peak_y - 1, peak_x), map.at(peak_y + 1, peak_x));
#elif REFINEMENT >= DARK
            const bool inside = peak_x > 1 && peak_x < width - 2 && peak_y > 1 && peak_y < height - 2;
            if (score <= LARGEST && (UDP || inside)) {
                const Step step = newton_step(map, peak_x, peak_y, score);
                x += step.x;
                y += step.y;
            }
#endif
        }
    }
    if (threadIdx.x != 0) return;
    const double cells_x = x, cells_y = y;
    if (instance) {
        const double* place = instance->place;
        x = place[0] * cells_x + place[1] * cells_y + place[2];
        y = place[3] * cells_x + place[4] * cells_y + place[5];
    }
    const long long landmark = blockIdx.x, landmarks = gridDim.x;
    float* location = out + landmark * (planar ? 2 : 3);
    location[0] = float(x);
    location[1] = float(y);
    (planar ? out + 2 * landmarks + landmark : location + 2)[0] = score;
}
